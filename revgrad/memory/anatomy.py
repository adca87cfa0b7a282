"""What the bytes at a peak are there for, and how a report shows them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from .events import Block, Timeline

_MIB = 1024 * 1024
_CATEGORIES = ("parameters", "gradients", "kept_for_backward", "workspace", "scratch", "other")


def anatomy(
    timeline: Timeline, known: Mapping[str, set[int]], names: Sequence[str]
) -> tuple[dict[str, int], dict[str, int]]:
    """Sum up by category what is alive at the peak.

    Args:
        timeline: The recording.
        known: `id` of each block whose category is known, by category.
        names: Layers that store something, by the number of the mark.

    Returns:
        Bytes by category; and, of `kept_for_backward`, bytes by layer that stores them.
    """
    sums = dict.fromkeys((*_CATEGORIES, *known), 0)
    stored_by: dict[str, int] = {}
    for block in timeline.blocks:
        if block.alive_at(timeline.peak_index):
            given = (kind for kind, blocks in known.items() if id(block) in blocks)
            kind = next(given, None) or _category(timeline, block)
            sums[kind] += block.size
            if block.stored is not None and kind == "kept_for_backward":
                where = names[block.stored]
                stored_by[where] = stored_by.get(where, 0) + block.size
    return sums, stored_by


def _category(timeline: Timeline, block: Block) -> str:
    if block.gradient:
        return "gradients"
    if block.born == -1:
        return "other"
    if block.scratch:
        return "scratch"
    return "kept_for_backward" if timeline.kept_for_backward(block) else "workspace"


def aligned(rows: Iterable[tuple[str, int | None]]) -> str:
    """Lines of a report: what, and its bytes in MiB; None: not measured."""
    listed = list(rows)
    width = max(24, 1 + max(len(name) for name, _ in listed))
    return "\n".join(
        f"{name:<{width}}" + ("not measured" if size is None else f"{size / _MIB:12.2f} MiB")
        for name, size in listed
    )
