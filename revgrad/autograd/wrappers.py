"""Wrappers of modules that reduce or gather over processes, and where they can't stand."""

from __future__ import annotations

import sys

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from revgrad.autograd.inventory import Inventory
from revgrad.errors import ReversibleError


def refuse_wrapped(layer: object, inventory: Inventory) -> None:
    """Refuse wrappers inside a layer.

    They work by hooks around the module's call and by the graph that it records. A sub-network
    records none in the forward pass, and in the backward pass its parameters must be there before
    it is called: they are inputs of the layer's node.
    """
    for path, module in inventory.named:
        kind = _wrapper(module)
        if kind is not None and module is not layer:
            place = f"'{path}' in the sub-network" if path else "the sub-network"
            raise ReversibleError(
                f"{place} is wrapped by {kind}, whose hooks would not meet its backward pass. "
                "Wrap whole reversible layers, or the sequence: for layer in sequence: "
                "fully_shard(layer); for DistributedDataParallel the whole network"
            )


def _wrapper(module: nn.Module) -> str | None:
    if isinstance(module, DistributedDataParallel):
        return "DistributedDataParallel"
    fsdp = sys.modules.get("torch.distributed.fsdp")  # not loaded: nothing can be wrapped by it
    if fsdp is None:
        return None
    if isinstance(module, fsdp.FSDPModule):
        return "fully_shard"
    return "FullyShardedDataParallel" if isinstance(module, fsdp.FullyShardedDataParallel) else None
