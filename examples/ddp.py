"""Train an iUNet on several GPUs, or processes of a CPU, with DistributedDataParallel.

Each process has the whole network and takes crops of its own from the sample CT; gradients are
averaged while the backward pass computes back through the layers. Nothing in it differs from
ordinary data-parallel training.

    torchrun --nproc-per-node 2 examples/ddp.py
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from revgrad.models import iUNet
from revgrad.models.data.organs import ORGANS, load_organs
from revgrad.models.demo.slices import WINDOWS, batches, split
from revgrad.models.losses import dice_cross_entropy


def main(argv: Sequence[str] | None = None) -> int:
    """Train, and print the loss of all processes together."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=100, help="of the optimizer (100)")
    parser.add_argument("--crop", type=int, default=64, help="pixels along each axis (64)")
    args = parser.parse_args(argv)

    device = join()
    try:
        losses = train(args.steps, args.crop, device)
    finally:
        dist.destroy_process_group()
    if int(os.environ["RANK"]) == 0:
        print(f"loss {losses[0]:.3f} in the first step, {losses[-1]:.3f} in the last")
    return 0


def join() -> torch.device:
    """Meet the other processes that torchrun started; one GPU each, or the CPU for all."""
    if not torch.cuda.is_available():
        dist.init_process_group("gloo")
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(device)
    dist.init_process_group("nccl", device_id=device)
    return device


def train(steps: int, crop: int, device: torch.device) -> list[float]:
    """The loss of each step, averaged over the processes."""
    torch.manual_seed(0)  # DDP also makes the weights equal
    net = iUNet(2, len(WINDOWS), len(ORGANS) + 1, channels=(16, 32, 64), depths=(2, 2, 2))
    ddp = DistributedDataParallel(net.to(device))
    optimizer = torch.optim.AdamW(ddp.parameters(), 2e-3)
    slices, _ = split(load_organs(), held_out_every=5)
    losses = []
    # Another seed in each process: other crops.
    for images, labels in batches(slices, steps, 2, (crop, crop), seed=dist.get_rank()):
        optimizer.zero_grad()
        loss = dice_cross_entropy(ddp(images.to(device)), labels.to(device))
        loss.backward()
        optimizer.step()
        losses.append(averaged(loss))
    return losses


def averaged(loss: torch.Tensor) -> float:
    """The mean over all processes."""
    total = loss.detach().clone()
    dist.all_reduce(total)
    return float(total) / dist.get_world_size()


if __name__ == "__main__":
    raise SystemExit(main())
