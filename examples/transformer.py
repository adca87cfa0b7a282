"""Train a reversible transformer encoder: attention and feed-forward in turn, with dropout.

The couplings are those of the Reformer (Kitaev, Kaiser and Levskaya 2020): y1 = x1 + attention(x2),
y2 = x2 + feed_forward(y1), on two streams (N, T, C) that both begin as the embedding. The task is
to sort a row of digits. Dropout draws the same numbers again in the backward pass.

    python examples/transformer.py
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from revgrad import AdditiveCoupling, ReversibleSequence
from revgrad.memory import MemoryReport, measure

DIGITS = 10


class Attention(nn.Module):
    """Layer norm, self-attention and dropout, (N, T, C) to the same."""

    def __init__(self, channels: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.attention = nn.MultiheadAttention(channels, heads, dropout, batch_first=True)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Let each position look at all."""
        x = self.norm(x)
        mixed: Tensor = self.dropout(self.attention(x, x, x, need_weights=False)[0])
        return mixed


def feed_forward(channels: int, dropout: float) -> nn.Sequential:
    """Layer norm, two linear layers and dropout, (N, T, C) to the same."""
    return nn.Sequential(
        nn.LayerNorm(channels),
        nn.Linear(channels, 4 * channels),
        nn.GELU(),
        nn.Linear(4 * channels, channels),
        nn.Dropout(dropout),
    )


class Transformer(nn.Module):
    """A reversible encoder with an embedding before and a linear head behind.

    Args:
        length: T, the number of tokens.
        channels: C of each stream.
        heads: Of the attention.
        depth: Couplings.
        dropout: Probability of each dropout.

    Shapes:
        (N, T) of integers below `DIGITS` to (N, T, DIGITS), as logits.
    """

    def __init__(self, length: int, channels: int, heads: int, depth: int, dropout: float) -> None:
        super().__init__()
        self.tokens = nn.Embedding(DIGITS, channels)
        self.positions = nn.Parameter(0.02 * torch.randn(length, channels))
        self.body = ReversibleSequence(
            [
                AdditiveCoupling(
                    Attention(channels, heads, dropout), feed_forward(channels, dropout)
                )
                for _ in range(depth)
            ],
            split_dim=-1,
        )
        self.head = nn.Sequential(nn.LayerNorm(2 * channels), nn.Linear(2 * channels, DIGITS))

    def forward(self, tokens: Tensor) -> Tensor:
        """Say which digit belongs at each place."""
        x = self.tokens(tokens) + self.positions
        logits: Tensor = self.head(self.body(torch.cat([x, x], -1)))
        return logits


def step(net: nn.Module, tokens: Tensor) -> Tensor:
    """The loss of sorting (N, T) digits, with its gradients."""
    loss = F.cross_entropy(net(tokens).transpose(1, 2), tokens.sort(1).values)
    loss.backward()
    return loss


def train(net: nn.Module, steps: int, length: int, seed: int) -> list[float]:
    """Train on fresh rows of digits."""
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    generator = torch.Generator().manual_seed(seed)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        losses.append(step(net, torch.randint(DIGITS, (32, length), generator=generator)).item())
        optimizer.step()
    return losses


def compare(net: Transformer, length: int) -> dict[str, MemoryReport]:
    """The peak memory of a step on 32 rows with either kind of autograd."""
    tokens = torch.randint(DIGITS, (32, length), generator=torch.Generator().manual_seed(0))
    reports = {}
    for name, saving in (("plain", False), ("reversible", True)):
        net.body.save_memory = saving
        reports[name] = measure(lambda: step(net, tokens), net)
    return reports


def main(argv: Sequence[str] | None = None) -> int:
    """Train, and print loss and memory."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--length", type=int, default=16, help="digits in a row (16)")
    parser.add_argument("--channels", type=int, default=32, help="of each stream (32)")
    parser.add_argument("--heads", type=int, default=4, help="of the attention (4)")
    parser.add_argument("--depth", type=int, default=6, help="couplings (6)")
    parser.add_argument("--dropout", type=float, default=0.1, help="probability (0.1)")
    parser.add_argument("--steps", type=int, default=100, help="of the optimizer (100)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)

    torch.manual_seed(args.seed)
    net = Transformer(args.length, args.channels, args.heads, args.depth, args.dropout)
    losses = train(net, args.steps, args.length, args.seed)
    print(f"loss {losses[0]:.3f} at the beginning, {losses[-1]:.3f} after {args.steps} steps")
    for name, report in compare(net, args.length).items():
        print(f"{name:<10} peak {report.peak_without_scratch / 2**20:.1f} MiB")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
