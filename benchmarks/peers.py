"""The same couplings run in every way there is: revgrad's, PyTorch's own, other libraries'.

An adaptor takes pairs of sub-networks (f, g) and makes a module of them that maps x (N, C, ...) to
an output of the same shape. On the two halves (x1, x2) of the channels each pair computes::

    y1 = x1 + f(x2)
    y2 = x2 + g(y1)

All adaptors compute the same function with the very sub-networks they were given, so results and
gradients can be compared; "revgrad-exact" alone rounds the streams to a grid. Some change what they
were given, such as the fused ones, so no two may share sub-networks. They use each library as its
own documentation tells, and hide nothing of what it does: a difference is the library's.
"""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import cast

import torch
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from revgrad import AdditiveCoupling, ReversibleSequence
from revgrad.nn import fuse

Couplings = Sequence[tuple[nn.Module, nn.Module]]
Streams = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Adaptor:
    """One way of running couplings.

    Attributes:
        wrap: Makes a module of pairs of sub-networks.
        about: What it does, in a few words.
        packages: The packages it needs besides torch.
        on_cpu: What to know about its figures on a machine without CUDA.
        other_format: It gets input and weights in the memory format that the others do not have,
            for plain code is not always fastest in the format that is best for reversible code.
        compiles: Whether it needs a C++ compiler.
    """

    wrap: Callable[[Couplings], nn.Module]
    about: str
    packages: tuple[str, ...] = ()
    on_cpu: str = ""
    other_format: bool = False
    compiles: bool = False


@dataclass(frozen=True)
class Availability:
    """Whether an adaptor can run here; true or false by itself."""

    reason: str = ""

    def __bool__(self) -> bool:
        return not self.reason


def available(name: str) -> Availability:
    """Say whether the adaptor `name` can run on this machine, and if not, why and what to do."""
    missing = [package for package in ADAPTORS[name].packages if find_spec(package) is None]
    if missing:
        return Availability(f"{', '.join(missing)} not installed; it comes with: make peers")
    if ADAPTORS[name].compiles and not _compiler():
        return Availability("torch.compile finds no C++ compiler; install g++ or set CXX")
    return Availability()


def _compiler() -> str | None:
    candidates = filter(None, (os.environ.get("CXX"), "g++", "clang++"))
    return next(filter(None, map(shutil.which, candidates)), None)


# --- PyTorch's own ------------------------------------------------------------------------------


def _couple(f: nn.Module, g: nn.Module, x1: Tensor, x2: Tensor) -> Streams:
    y1 = x1 + f(x2)
    return y1, x2 + g(y1)


class _Streams(nn.Module):
    """Splits once, runs each pair through `couple`, joins once: the best ordinary code.

    Args:
        couplings: Pairs of sub-networks.
        couple: Called with f, g and the two streams.
    """

    def __init__(self, couplings: Couplings, couple: Callable[..., Streams] = _couple) -> None:
        super().__init__()
        self.sub_networks = nn.ModuleList(module for pair in couplings for module in pair)
        self.couple = couple

    def forward(self, x: Tensor) -> Tensor:
        x1, x2 = x.chunk(2, dim=1)
        for f, g in zip(self.sub_networks[::2], self.sub_networks[1::2], strict=True):
            x1, x2 = self.couple(f, g, x1, x2)
        return torch.cat([x1, x2], dim=1)


class _Offloaded(_Streams):
    """Keeps what autograd saves in the memory of the CPU."""

    def forward(self, x: Tensor) -> Tensor:
        with save_on_cpu(pin_memory=x.is_cuda):
            return super().forward(x)


def _plain(couplings: Couplings) -> nn.Module:
    return _Streams(couplings)


def _checkpoint(couplings: Couplings) -> nn.Module:
    return _Streams(couplings, functools.partial(checkpoint, _couple, use_reentrant=False))


def _checkpoint_selective(couplings: Couplings) -> nn.Module:
    keep = functools.partial(
        create_selective_checkpoint_contexts, [torch.ops.aten.convolution.default]
    )
    couple = functools.partial(checkpoint, _couple, use_reentrant=False, context_fn=keep)
    return _Streams(couplings, couple)


def _offload(couplings: Couplings) -> nn.Module:
    return _Offloaded(couplings)


def _compiled(couplings: Couplings) -> nn.Module:
    return cast(nn.Module, torch.compile(_Streams(couplings), dynamic=False))


def _plain_group(couplings: Couplings) -> nn.Module:
    net = _Streams(couplings)
    for parent in list(net.modules()):
        for name, module in parent.named_children():
            if isinstance(module, nn.InstanceNorm1d | nn.InstanceNorm2d | nn.InstanceNorm3d):
                setattr(parent, name, _as_group_norm(module))
    return net


def _as_group_norm(norm: nn.Module) -> nn.GroupNorm:
    """The same function with the same parameters."""
    made = nn.GroupNorm(norm.num_features, norm.num_features, norm.eps, affine=False)  # type: ignore[arg-type]
    made.weight, made.bias = norm.weight, norm.bias  # type: ignore[assignment]
    return made


def _fused(couplings: Couplings) -> Couplings:
    for pair in couplings:
        for module in pair:
            fuse(module)
    return couplings


# --- reversible libraries -----------------------------------------------------------------------


def _revgrad(couplings: Couplings) -> nn.Module:
    return ReversibleSequence(AdditiveCoupling(f, g) for f, g in couplings)


def _revgrad_compiled(couplings: Couplings) -> nn.Module:
    layers = (AdditiveCoupling(f, g) for f, g in couplings)
    return ReversibleSequence(layers).compile_sub_networks(dynamic=False)


def _revgrad_one_graph(couplings: Couplings) -> nn.Module:
    return cast(nn.Module, torch.compile(_revgrad(couplings), dynamic=False, fullgraph=True))


def revgrad_exact(couplings: Couplings, fraction_bits: int = 20) -> nn.Module:
    """The adaptor "revgrad-exact", for streams with other fraction bits too."""
    layers = (AdditiveCoupling(f, g) for f, g in couplings)
    return ReversibleSequence(layers, arithmetic="exact", fraction_bits=fraction_bits)


def _memcnn(couplings: Couplings) -> nn.Module:
    memcnn = import_module("memcnn")
    return nn.Sequential(
        *(memcnn.InvertibleModuleWrapper(memcnn.AdditiveCoupling(f, g)) for f, g in couplings)
    )


class _Iunets(nn.Module):
    """The package's coupling in memcnn's wrapper, as its own networks have it.

    Each takes one sub-network and swaps the streams. It has to be told where the channels are
    split, which only the input shows.
    """

    def __init__(self, couplings: Couplings) -> None:
        super().__init__()
        coupling = import_module("iunets.layers").StandardAdditiveCoupling
        wrapper = import_module("memcnn").InvertibleModuleWrapper
        self._layers = [coupling(module, None) for pair in couplings for module in pair]
        self.sequence = nn.Sequential(*map(wrapper, self._layers))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self._layers:
            layer.channel_split_pos = x.shape[1] // 2
        y: Tensor = self.sequence(x)
        return y


def _revtorch(couplings: Couplings) -> nn.Module:
    revtorch = import_module("revtorch")
    blocks = nn.ModuleList(revtorch.ReversibleBlock(f, g) for f, g in couplings)
    sequence: nn.Module = revtorch.ReversibleSequence(blocks)
    return sequence


def _revlib(couplings: Couplings) -> nn.Module:
    # It swaps the streams after each sub-network, so that two make one coupling.
    sub_networks = (module for pair in couplings for module in pair)
    sequence: nn.Module = import_module("revlib").ReversibleSequential(*sub_networks)
    return sequence


_COMPILED_ON_CPU = "the growth of its process includes what the compiler leaves behind"

ADAPTORS: Mapping[str, Adaptor] = {
    "plain": Adaptor(_plain, "ordinary autograd, streams split once"),
    "revgrad": Adaptor(_revgrad, "ReversibleSequence of AdditiveCoupling"),
    "revgrad-exact": Adaptor(revgrad_exact, 'the same with arithmetic="exact"'),
    "plain-group": Adaptor(
        _plain_group, "plain with GroupNorm(C, C), the faster twin, in the place of instance norm"
    ),
    "plain-other-format": Adaptor(
        _plain, "plain in the other memory format, contiguous or channels-last", other_format=True
    ),
    "plain-group-other-format": Adaptor(
        _plain_group, "plain-group in the other memory format", other_format=True
    ),
    "plain-fused": Adaptor(lambda pairs: _plain(_fused(pairs)), "plain, fused by revgrad.nn.fuse"),
    "revgrad-fused": Adaptor(
        lambda pairs: _revgrad(_fused(pairs)), "revgrad, fused by revgrad.nn.fuse"
    ),
    "revgrad-exact-fused": Adaptor(
        lambda pairs: revgrad_exact(_fused(pairs)), "revgrad-exact, fused by revgrad.nn.fuse"
    ),
    "checkpoint": Adaptor(_checkpoint, "torch.utils.checkpoint around each coupling"),
    "checkpoint-selective": Adaptor(
        _checkpoint_selective, "the same, but the convolutions' outputs are kept"
    ),
    "offload": Adaptor(
        _offload,
        "save_on_cpu around plain",
        on_cpu="there is nowhere to offload to: the figures are plain's; it needs CUDA",
    ),
    "compiled": Adaptor(
        _compiled,
        "torch.compile of plain, for one shape at a time",
        on_cpu=_COMPILED_ON_CPU,
        compiles=True,
    ),
    "revgrad-compiled": Adaptor(
        _revgrad_compiled,
        "revgrad with each sub-network compiled, for one shape at a time",
        on_cpu=_COMPILED_ON_CPU,
        compiles=True,
    ),
    "revgrad-one-graph": Adaptor(
        _revgrad_one_graph,
        "torch.compile(fullgraph=True) of revgrad, for one shape at a time",
        on_cpu=_COMPILED_ON_CPU,
        compiles=True,
    ),
    "memcnn": Adaptor(_memcnn, "memcnn's wrapper around its AdditiveCoupling", ("memcnn",)),
    "iunets": Adaptor(
        _Iunets, "memcnn's wrapper around iunets' additive coupling", ("iunets", "memcnn")
    ),
    "revtorch": Adaptor(_revtorch, "ReversibleSequence of ReversibleBlock", ("revtorch",)),
    "revlib": Adaptor(_revlib, "ReversibleSequential", ("revlib",)),
}
