"""What `convert` replaced, what it left alone and why, as a table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

_SHOWN = 3  # places of each reason


@dataclass(frozen=True)
class Conversion:
    """A run of convolution units that `convert` replaced.

    Attributes:
        path: Where the reversible sequence stands now: in the place of the run's first module.
        units: How many convolution units there were.
        before: What stood there.
        after: What stands there now.
        parameters_before: Numbers in the parameters of the run.
        parameters_after: The same of what stands there now.
    """

    path: str
    units: int
    before: str
    after: str
    parameters_before: int
    parameters_after: int


@dataclass
class ConvertReport:
    """What `convert` did.

    Attributes:
        replaced: The runs that it replaced.
        left: Path of each convolution that it left alone, and the reason.
        parameters_before: Numbers in the parameters of the whole network.
        parameters_after: The same afterwards.
    """

    replaced: list[Conversion] = field(default_factory=list)
    left: list[tuple[str, str]] = field(default_factory=list)
    parameters_before: int = 0
    parameters_after: int = 0

    @property
    def convolutions_replaced(self) -> int:
        """How many convolutions the replaced runs had."""
        return sum(item.units for item in self.replaced)

    @property
    def notice(self) -> str:
        """What must be known before the network is used, in a sentence."""
        total = self.convolutions_replaced + len(self.left)
        if not self.replaced:
            return (
                f"convert replaced none of {total} convolutions: print its report for the reasons"
            )
        return (
            f"convert replaced {self.convolutions_replaced} of {total} convolutions. What stands "
            "there now is ANOTHER FUNCTION WITH FRESH WEIGHTS: train the network anew, with an "
            "optimizer made afterwards. No conversion can keep trained weights, because an "
            "ordinary convolution does not compute what a coupling does"
        )

    def __str__(self) -> str:
        lines = [f"{self.notice}."]
        if self.replaced:
            lines += ["", *_table(self._rows())]
        if self.left:
            lines += ["", f"left {len(self.left)} convolutions as they are, because", *self._left()]
        return "\n".join(lines)

    def _rows(self) -> list[tuple[str, str, str, str]]:
        head = ("path", "what stood there", "what stands there now", "parameters")
        rows = [(i.path, i.before, i.after, _change(i)) for i in self.replaced]
        return [head, *rows, ("whole network", "", "", _change(self))]

    def _left(self) -> Iterable[str]:
        reasons: dict[str, list[str]] = {}
        for path, reason in self.left:
            reasons.setdefault(reason, []).append(path)
        for reason, paths in reasons.items():
            more = f", ... (+{len(paths) - _SHOWN} more)" if len(paths) > _SHOWN else ""
            yield f"  {reason} ({len(paths)}): {', '.join(paths[:_SHOWN])}{more}"


def _change(item: Conversion | ConvertReport) -> str:
    return f"{item.parameters_before:,} -> {item.parameters_after:,}"


def _table(rows: Sequence[tuple[str, ...]]) -> Iterable[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield "  ".join(cells).rstrip()
