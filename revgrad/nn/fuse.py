"""Put fused kernels in the places of a network's norms and the activations behind them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from itertools import zip_longest

from torch import nn

from revgrad.nn.norm_act import NormAct, activation_of, norm_of
from revgrad.nn.surgery import changed, joined, runs_in_order

# Modules by these names normalise too, in ways of their own.
_OTHER_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.LocalResponseNorm)


@dataclass(frozen=True)
class Replacement:
    """A norm that `fuse` replaced.

    Attributes:
        name: Its place in the network.
        norm: The class that stood there.
        activation: Place and class of the activation that went into it, or None.
    """

    name: str
    norm: str
    activation: tuple[str, str] | None = None

    def __str__(self) -> str:
        behind = f" and {self.activation[0]}: {self.activation[1]}" if self.activation else ""
        return f"{self.name}: {self.norm}{behind}"


@dataclass
class FuseReport:
    """What `fuse` did.

    Attributes:
        replaced: The norms that it replaced.
        left: Norms, and activations behind norms, that it left alone, with the reason.
    """

    replaced: list[Replacement] = field(default_factory=list)
    left: list[tuple[str, str]] = field(default_factory=list)

    def __str__(self) -> str:
        pairs = sum(item.activation is not None for item in self.replaced)
        lines = [f"replaced {len(self.replaced)} norms, {pairs} with their activation"]
        lines += [f"  {item}" for item in self.replaced]
        lines += [f"left {len(self.left)} alone"] if self.left else []
        lines += [f"  {name}: {reason}" for name, reason in self.left]
        return "\n".join(lines)


def fuse(module: nn.Module) -> FuseReport:
    """Replace norms, and activations behind them, by `NormAct`, in place.

    Parameters and buffers stay the same objects under the same names, so state_dicts and
    optimizers fit as before. An activation goes into the norm in front of it where both follow each
    other in an `nn.Sequential`; an `nn.Identity` keeps its place. What computes something else
    stays: subclasses, norms with hooks, in several places or with a `forward` of their own.

    Code that calls the modules of a Sequential one by one finds the norm's result already
    activated.

    Args:
        module: Any network; its own norms, not itself.

    Returns:
        What was replaced, and what was left alone for which reason.
    """
    report = FuseReport()
    if norm_of(module) is not None:
        report.left.append(("the module itself", "only what it contains can be replaced"))
    places = Counter(id(m) for _, m in module.named_modules(remove_duplicate=False))
    for path, parent in list(module.named_modules()):
        names = list(parent._modules)
        for name, after in zip_longest(names, names[1:]):
            _replace(parent, path, name, after, places, report)
    return report


def _replace(
    parent: nn.Module,
    path: str,
    name: str,
    after: str | None,
    places: Counter[int],
    report: FuseReport,
) -> None:
    """Replace one child, if it is a norm, and the child after it, if that is its activation."""
    norm, full = parent._modules[name], joined(path, name)
    if norm is None or not isinstance(norm, _OTHER_NORMS):
        return
    obstacle = _obstacle(norm, places)
    if obstacle:
        report.left.append((full, obstacle))
        return
    behind = parent._modules[after] if after is not None and runs_in_order(parent) else None
    if behind is None or activation_of(behind) in (None, "none"):
        parent._modules[name] = NormAct.like(norm)
        report.replaced.append(Replacement(full, type(norm).__name__))
        return
    assert after is not None
    if changed(behind):
        report.left.append((joined(path, after), changed(behind)))
        parent._modules[name] = NormAct.like(norm)
        report.replaced.append(Replacement(full, type(norm).__name__))
        return
    parent._modules[name] = NormAct.like(norm, behind)
    parent._modules[after] = nn.Identity().train(behind.training)
    activation = (joined(path, after), type(behind).__name__)
    report.replaced.append(Replacement(full, type(norm).__name__, activation))


def _obstacle(norm: nn.Module, places: Counter[int]) -> str:
    """Why a norm cannot be replaced; empty if it can."""
    if norm_of(norm) is None:
        return f"{type(norm).__name__} is none of torch's norms that NormAct stands for"
    if places[id(norm)] > 1:
        return "used in several places"
    return changed(norm)
