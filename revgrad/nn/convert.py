"""Put reversible sequences in the places of a network's convolution units."""

from __future__ import annotations

import copy
import itertools
import warnings
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from revgrad.nn.conv_unit import CONVOLUTIONS, ConvUnit, parts_of
from revgrad.nn.convert_report import Conversion, ConvertReport
from revgrad.nn.coupling import AdditiveCoupling
from revgrad.nn.layer import ReversibleLayer
from revgrad.nn.sequence import ReversibleSequence
from revgrad.nn.surgery import Uses, joined, order_of_children

Network = TypeVar("Network", bound=nn.Module)
Filter = Callable[[str, nn.Module], bool]

_UNSEEN = "called by code in a forward that convert can't read as a row of modules"


def convert(
    module: Network,
    *,
    only: str | Iterable[str] | Filter | None = None,
    min_length: int = 2,
    couplings_per_unit: int = 1,
    arithmetic: str = "float",
    fraction_bits: int = 20,
    copy_output: bool = False,
    inplace: bool = False,
) -> tuple[Network, ConvertReport]:
    """Make runs of convolution units in a network reversible. This makes ANOTHER FUNCTION.

    A unit is a convolution with stride 1 that keeps the image's size, and at most one norm, one
    dropout and one activation behind it, packed in modules or not. A run of units of one width
    becomes a 1x1 convolution, where the width changes at its beginning, and a `ReversibleSequence`
    of additive couplings, whose sub-networks are such units of half the channels. This is how
    RevPHiSeg (Gantenbein et al. 2020) was made of PHiSeg. ::

        net, report = revgrad.convert(net)
        print(report)

    The weights are fresh, in PyTorch's initialisation by its global random generator: the network
    is to be trained anew. A conversion that keeps trained weights does not exist. What is not a run
    stays as it is, and the report gives the reason for each convolution. Trained weights of these
    stay, and so do their names: the run's first module gives way to the sequence, the others to
    `nn.Identity`.

    Args:
        module: Any network. Runs are seen in `nn.Sequential` and in modules whose `forward` does no
            more than call children one after the other, at any depth of a network.
        only: Which modules to touch: paths, each with all that is inside, or a function of the path
            and the module in which a run stands.
        min_length: Units that a run must have at least.
        couplings_per_unit: Two give a run about the weights and operations that it had; one has
            half of each.
        arithmetic: "float" or "exact", see `ReversibleSequence`.
        fraction_bits: Binary digits behind the point in exact arithmetic.
        copy_output: Hand a copy of each sequence's output on, for code that changes it in place
            (`y += x`). Without, such code gets an error in the backward pass, at half the memory.
        inplace: Change `module` itself and return it. Else it stays untouched.

    Returns:
        The converted network and the report, whose first lines are also given as a warning.

    Raises:
        TypeError: If `module` is no `nn.Module`, or is wrapped in `DistributedDataParallel`.
        ValueError: If a name in `only` is no module of the network, or a number is not positive.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, not {type(module).__name__}")
    if any(isinstance(m, nn.parallel.DistributedDataParallel) for m in module.modules()):
        raise TypeError(
            "DistributedDataParallel knows only the parameters that it was made with: convert the "
            "module before wrapping it"
        )
    for name, value in (("min_length", min_length), ("couplings_per_unit", couplings_per_unit)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, not {value!r}")
    wanted = _filter(only, module)
    network = module if inplace else copy.deepcopy(module)
    options = {"arithmetic": arithmetic, "fraction_bits": fraction_bits}
    settings = _Settings(wanted, min_length, couplings_per_unit, copy_output, options)
    report = _Surgeon(network, settings).operate()
    warnings.warn(report.notice, stacklevel=2)
    return network, report


@dataclass
class _Member:
    """A unit in its container.

    Attributes:
        names: The children that make it up.
        unit: What they compute.
        follows: Whether nothing stands between it and the unit before.
        obstacle: Why it can't be replaced; empty if it can.
    """

    names: list[str]
    unit: ConvUnit
    follows: bool
    obstacle: str = ""


@dataclass(frozen=True)
class _Settings:
    """What the caller wants."""

    wanted: Filter
    min_length: int
    couplings_per_unit: int
    copy_output: bool
    options: dict[str, Any]


class _Copy(nn.Module):
    """Gives its input's numbers to whoever may write into them."""

    def forward(self, x: Tensor) -> Tensor:
        return x.clone()


class _Surgeon:
    """Goes through a network once and replaces runs."""

    def __init__(self, root: nn.Module, settings: _Settings) -> None:
        ReversibleSequence([], **settings.options)  # refuses wrong ones before anything is changed
        self._root, self._settings = root, settings
        self._uses = Uses(root)
        self._visited: set[int] = set()
        self._reasons: dict[int, str] = {}  # by id of the convolution; empty where it was replaced
        self._report = ConvertReport()

    def operate(self) -> ConvertReport:
        """Replace the runs, and say what was done."""
        report = self._report
        convolutions = list(_convolutions(self._root))
        report.parameters_before = _count(self._root)
        self._visit(self._root, "")
        report.parameters_after = _count(self._root)
        for path, convolution in convolutions:
            reason = self._reasons.get(id(convolution), _UNSEEN)
            if reason:
                report.left.append((path, reason))
        return report

    def _visit(self, module: nn.Module, path: str) -> None:
        if id(module) in self._visited:
            return
        self._visited.add(id(module))
        if isinstance(module, ReversibleLayer | ReversibleSequence):
            self._note((c for _, c in _convolutions(module)), "in a reversible layer already")
            return
        order = order_of_children(module)
        members = list(_members(module, order)) if order is not None else []
        if order is not None:
            self._operate_on(module, path, order, members)
        inside = {name for member in members for name in member.names}
        for name, child in list(module._modules.items()):
            if name not in inside and child is not None:
                self._visit(child, joined(path, name))

    def _operate_on(
        self, module: nn.Module, path: str, order: tuple[str, ...], members: list[_Member]
    ) -> None:
        wanted = self._settings.wanted(path, module)
        for member in members:
            member.obstacle = self._obstacle(module, order, member)
            if not wanted:
                member.obstacle = "not among the modules asked for"
        for run in _runs(members):
            obstacle = run[0].obstacle or self._obstacle_of_run(order, run)
            self._note((member.unit.convolution for member in run), obstacle)
            if not obstacle:
                self._replace(module, path, run)

    def _note(self, convolutions: Iterable[nn.Module], reason: str) -> None:
        self._reasons.update((id(convolution), reason) for convolution in convolutions)

    def _obstacle(self, module: nn.Module, order: tuple[str, ...], member: _Member) -> str:
        if any(self._uses.shared(module, name) for name in member.names):
            return "its weights stand in another place too"
        if any(order.count(name) > 1 and _has_state(module, name) for name in member.names):
            return "called several times"
        return member.unit.obstacle()

    def _obstacle_of_run(self, order: tuple[str, ...], run: list[_Member]) -> str:
        least = self._settings.min_length
        if len(run) < least:
            return f"in a run of {len(run)}, shorter than min_length={least}"
        if all(len(member.unit.parts) == 1 for member in run):
            return "no norm or activation behind it, so there is nothing to save"
        calls = Counter(name for member in run for name in member.names)
        outside = [name for name, count in calls.items() if order.count(name) > count]
        return f"shares {', '.join(outside)} with what is outside of the run" if outside else ""

    def _replace(self, module: nn.Module, path: str, run: list[_Member]) -> None:
        first, *others = dict.fromkeys(name for member in run for name in member.names)
        units = [member.unit for member in run]
        made, after = self._made_of(units)
        before = [part for unit in units for part in unit.parts]
        self._report.replaced.append(
            Conversion(
                joined(path, first),
                len(units),
                _described(units),
                after,
                sum(map(_count, before)),
                _count(made),
            )
        )
        module._modules[first] = made
        for name in others:
            module._modules[name] = nn.Identity().train(made.training)

    def _made_of(self, units: list[ConvUnit]) -> tuple[nn.Module, str]:
        """What stands for a run, and its description."""
        first = units[0].convolution
        channels = units[0].out_channels
        twins = [unit for unit in units for _ in range(self._settings.couplings_per_unit)]
        narrow = channels // 2
        couplings = [AdditiveCoupling(unit.twin(narrow), unit.twin(narrow)) for unit in twins]
        made = OrderedDict[str, nn.Module]()
        made["couplings"] = ReversibleSequence(couplings, **self._settings.options)
        text = (
            f"{len(couplings)} coupling{'s' * (len(couplings) > 1)} of {narrow} + {narrow} channels"
        )
        if units[0].in_channels != channels:
            place = {"device": first.weight.device, "dtype": first.weight.dtype}
            made["projection"] = type(first)(units[0].in_channels, channels, 1, **place)
            made.move_to_end("projection", last=False)
            text = f"1x1 convolution {units[0].in_channels} to {channels}, {text}"
        if self._settings.copy_output:
            made["copy"] = _Copy()
            text += ", a copy"
        module = nn.Sequential(made) if len(made) > 1 else made["couplings"]
        return module.train(first.training), text


def _members(module: nn.Module, order: tuple[str, ...]) -> Iterator[_Member]:
    """The units that the children of a module make up."""
    member: _Member | None = None
    for name in order:
        parts = parts_of(module.get_submodule(name))
        if parts == ():  # identities
            continue
        begun = _begun(parts)
        extended = member.unit.extended(parts) if member and parts and not begun else None
        if member and extended:
            member.names.append(name)
            member.unit = extended
            continue
        if member:
            yield member
        member = _Member([name], begun, follows=member is not None) if begun else None
    if member:
        yield member


def _begun(parts: tuple[nn.Module, ...] | None) -> ConvUnit | None:
    """The unit that parts begin, if they are one."""
    if not parts or not isinstance(parts[0], CONVOLUTIONS):
        return None
    return ConvUnit(parts[:1]).extended(parts[1:])


def _runs(members: list[_Member]) -> Iterator[list[_Member]]:
    """Units of one width that follow each other; those with an obstacle by themselves."""
    run: list[_Member] = []
    for member in members:
        last = run[-1] if run else None
        if last and (
            not member.follows
            or last.obstacle
            or member.obstacle
            or member.unit.out_channels != last.unit.out_channels
        ):
            yield run
            run = []
        run.append(member)
    if run:
        yield run


def _filter(only: str | Iterable[str] | Filter | None, module: nn.Module) -> Filter:
    if only is None:
        return lambda path, container: True
    if callable(only):
        return only
    names = (only,) if isinstance(only, str) else tuple(only)
    known = {path for path, _ in module.named_modules(remove_duplicate=False)}
    unknown = [name for name in names if name not in known]
    if unknown:
        children = ", ".join(name for name, _ in module.named_children())
        raise ValueError(f"only names {unknown}, which the network has not; it has: {children}")
    return lambda path, container: any(
        not name or f"{path}.".startswith(f"{name}.") for name in names
    )


def _convolutions(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    return ((path, m) for path, m in module.named_modules() if isinstance(m, CONVOLUTIONS))


def _has_state(module: nn.Module, name: str) -> bool:
    child = module.get_submodule(name)
    return any(True for _ in itertools.chain(child.parameters(), child.buffers()))


def _count(module: nn.Module) -> int:
    """Numbers in the parameters; lazy ones have none yet."""
    return sum(p.numel() for p in module.parameters() if not isinstance(p, UninitializedParameter))


def _described(units: list[ConvUnit]) -> str:
    groups = [(text, len(list(same))) for text, same in itertools.groupby(map(str, units))]
    body = "; ".join(f"{count} x ({text})" for text, count in groups)
    return f"{body}, {units[0].in_channels} to {units[0].out_channels} channels"
