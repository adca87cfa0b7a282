"""Train a reversible U-Net whose weights are divided among GPUs, or processes of a CPU (FSDP2).

Reversible layers remove activations from memory, `fully_shard` divides weights, gradients and the
optimizer's state, and `step_in_backward` frees each gradient as soon as it is reduced. Layers are
sharded one by one, so that the weights of one or two are whole at a time.

    torchrun --nproc-per-node 2 examples/fsdp2.py
"""

from __future__ import annotations

import argparse
import os
import warnings
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

import revgrad
from revgrad.optim import step_in_backward


def main(argv: Sequence[str] | None = None) -> int:
    """Train, and print the loss and what one process holds."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=30, help="of the optimizer (30)")
    parser.add_argument("--channels", type=int, default=32, help="of the upper level (32)")
    args = parser.parse_args(argv)

    # Nothing in a sequence writes into streams, and what changes its output is refused.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        net = sharded(u_net(args.channels).to(device), device)
        losses = train(net, args.steps, device)
        if dist.get_rank() == 0:
            part, whole = sizes(net)
            print(f"loss {losses[0]:.3f} in the first step, {losses[-1]:.3f} in the last")
            print(f"of {whole} weights, {part} are in this process; gradients left: {left(net)}")
    finally:
        dist.destroy_process_group()
    return 0


def u_net(channels: int) -> nn.Sequential:
    """A reversible U-Net of two levels between two ordinary convolutions, the same everywhere."""
    torch.manual_seed(0)
    half = channels // 2
    body = [
        revgrad.AdditiveCoupling(unit(half), unit(half)),
        revgrad.SplitSkip(),
        revgrad.HaarDownsample(2),
        *(revgrad.AdditiveCoupling(unit(channels), unit(channels)) for _ in range(4)),
        revgrad.HaarUpsample(2),
        revgrad.JoinSkip(),
        revgrad.AdditiveCoupling(unit(half), unit(half)),
    ]
    sequence = revgrad.ReversibleSequence(body)
    return nn.Sequential(nn.Conv2d(1, channels, 1), sequence, nn.Conv2d(channels, 1, 1))


def unit(channels: int) -> nn.Module:
    """Convolution, norm and activation."""
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, padding=1), nn.GroupNorm(1, channels), nn.SiLU()
    )


def sharded(net: nn.Sequential, device: torch.device) -> nn.Sequential:
    """The network with its layers sharded, never a sub-network inside a layer."""
    mesh: DeviceMesh = init_device_mesh(device.type, (dist.get_world_size(),))
    # Streams keep their type: what is computed back must be what went in.
    policy = MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False)
    body = net[1]
    assert isinstance(body, revgrad.ReversibleSequence)
    for layer in body:
        if any(True for _ in layer.parameters()):
            fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(net, mesh=mesh, mp_policy=policy)
    return net


def train(net: nn.Sequential, steps: int, device: torch.device) -> list[float]:
    """Learn to take noise out of stripes; the losses of this process."""
    optimizer = torch.optim.AdamW(net.parameters(), 2e-3)
    step_in_backward(optimizer)  # after fully_shard, which makes the parameters anew
    generator = torch.Generator().manual_seed(dist.get_rank())
    losses = []
    for _ in range(steps):
        clean = stripes(4, 32, generator).to(device)
        loss = (net(clean + 0.5 * torch.randn_like(clean)) - clean).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def stripes(count: int, size: int, generator: torch.Generator) -> torch.Tensor:
    """Waves (count, 1, size, size) of random direction and length."""
    frequencies = torch.randn(2, count, 1, 1, 1, generator=generator)
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    return torch.sin(frequencies[0] * x + frequencies[1] * y)


def sizes(net: nn.Module) -> tuple[int, int]:
    """Numbers of weights in this process, and in all."""
    parameters = list(net.parameters())
    local = sum(p.to_local().numel() for p in parameters if isinstance(p, DTensor))
    return local, sum(p.numel() for p in parameters)


def left(net: nn.Module) -> int:
    """How many parameters have a gradient."""
    return sum(p.grad is not None for p in net.parameters())


if __name__ == "__main__":
    raise SystemExit(main())
