"""What the metrics accept: cases of label maps or probabilities, one by one or in a batch, checked.

A case is one image: all samples drawn for it, or all its annotators. Cases may differ in the
number of annotators (a list of tensors then), and between lists in size as well.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

MapSets = Tensor | Sequence[Tensor]


def split_cases(
    value: MapSets, name: str, axes: tuple[str, ...], spatial_dims: int
) -> tuple[list[Tensor], bool]:
    """Split tensors of the given axes into cases; also whether it was one without a batch axis."""
    if spatial_dims < 1:
        raise ValueError(f"spatial_dims must be at least 1, got {spatial_dims}")
    rank = len(axes) + spatial_dims
    one = f"({', '.join([*axes, '*spatial'])})"
    wanted = (
        f"{name} must be {one} for one case, (N, {one[1:]} or a list of {one}, with "
        f"spatial_dims={spatial_dims} image axes; got "
    )
    if isinstance(value, Tensor) and value.ndim not in (rank, rank + 1):
        raise ValueError(f"{wanted}{tuple(value.shape)}")
    if isinstance(value, Tensor) and value.ndim == rank:
        cases, single = [value], True
    else:
        cases, single = list(value), False
    if not cases:
        raise ValueError(f"{name} hold no case")
    for index, case in enumerate(cases):
        if not isinstance(case, Tensor) or case.ndim != rank:
            found = tuple(case.shape) if isinstance(case, Tensor) else type(case).__name__
            raise ValueError(f"{wanted}{found} for case {index}")
        if case.numel() == 0:
            raise ValueError(f"{name} are empty: case {index} has shape {tuple(case.shape)}")
    return cases, single


def label_cases(
    maps: MapSets,
    name: str,
    num_classes: int,
    spatial_dims: int,
    axes: tuple[str, ...] = ("K",),
) -> tuple[list[Tensor], bool]:
    """Split sets of label maps into cases.

    Args:
        maps: integers, ``(K, *spatial)`` for one case, ``(N, K, *spatial)``, or N of the former.
        name: what to call them in errors.
        axes: of a case, before the spatial ones; ``()`` where each case is one map.

    Returns:
        The cases, each ``(K, *spatial)``, and whether it was one case given without a batch axis.
    """
    _check_num_classes(num_classes)
    cases, single = split_cases(maps, name, axes, spatial_dims)
    for part in [maps] if isinstance(maps, Tensor) else cases:
        _check_labels(part, name, num_classes)
    return [_wide_enough(case, num_classes) for case in cases], single


def probability_cases(
    probabilities: MapSets, name: str, axes: tuple[str, ...], spatial_dims: int
) -> tuple[list[Tensor], bool]:
    """Split class probabilities into cases; `axes` ends with the class axis, ``"C"``."""
    cases, single = split_cases(probabilities, name, axes, spatial_dims)
    for case in cases:
        if not case.is_floating_point():
            raise TypeError(f"{name} must be class probabilities in floats, got {case.dtype}")
        classes = axes.index("C")
        _check_num_classes(case.shape[classes])
        total = case.sum(classes, dtype=torch.float32)
        # Written so that NaN fails too. Half precision rounds each addend by up to 2^-9.
        if not (bool((case >= 0).all()) and bool(((total - 1).abs() < 0.02).all())):
            raise ValueError(
                f"{name} must be at least 0 and sum to 1 over the class axis, the axis "
                f"{classes - case.ndim} of {tuple(case.shape)}; of logits take softmax first"
            )
    return cases, single


def label_pairs(
    samples: MapSets,
    annotators: MapSets,
    num_classes: int,
    spatial_dims: int,
    names: tuple[str, str] = ("samples", "annotators"),
) -> tuple[list[tuple[Tensor, Tensor]], bool]:
    """Split two sets of label maps into cases that belong together."""
    return pair_cases(
        label_cases(samples, names[0], num_classes, spatial_dims),
        label_cases(annotators, names[1], num_classes, spatial_dims),
        names,
        spatial_dims,
    )


def pair_cases(
    first: tuple[list[Tensor], bool],
    second: tuple[list[Tensor], bool],
    names: tuple[str, str],
    spatial_dims: int,
) -> tuple[list[tuple[Tensor, Tensor]], bool]:
    """Put the cases of two arguments side by side, when they belong together."""
    (left, single), (right, also_single) = first, second
    if single != also_single or len(left) != len(right):
        counts = ["one without a batch axis" if s else len(c) for c, s in (first, second)]
        raise ValueError(
            f"{names[0]} and {names[1]} must be of the same cases, got {counts[0]} and "
            f"{counts[1]} (spatial_dims={spatial_dims})"
        )
    for index, (a, b) in enumerate(zip(left, right, strict=True)):
        if a.shape[-spatial_dims:] != b.shape[-spatial_dims:]:
            raise ValueError(
                f"{names[0]} {tuple(a.shape)} and {names[1]} {tuple(b.shape)} of case {index} "
                f"differ in their last {spatial_dims} axes, the image's (spatial_dims="
                f"{spatial_dims})"
            )
        if a.device != b.device:
            raise ValueError(f"{names[0]} are on {a.device}, {names[1]} on {b.device}")
    return list(zip(left, right, strict=True)), single


def join_cases(values: list[Tensor], single: bool) -> Tensor:
    """Undo the split: ``(N, ...)``, or the one case's value."""
    return values[0] if single else torch.stack(values)


def scored_classes(
    num_classes: int, include_background: bool, classes: Sequence[int] | None
) -> list[int]:
    """Return the classes to score: `classes`, or all, with or without class 0."""
    _check_num_classes(num_classes)
    if classes is None:
        return list(range(0 if include_background else 1, num_classes))
    if include_background:
        raise ValueError("give classes or include_background=True, not both")
    if not classes or len(set(classes)) < len(classes) or not set(classes) <= {*range(num_classes)}:
        raise ValueError(
            f"classes must be different labels from 0 to {num_classes - 1}, at least one, got "
            f"{list(classes)}"
        )
    return list(classes)


def check_empty(empty: float) -> None:
    """Refuse a score of two empty masks that no protocol uses."""
    if not (empty in (0, 1) or math.isnan(empty)):
        raise ValueError(f"empty must be 1, 0 or nan, got {empty}")


def _check_labels(maps: Tensor, name: str, num_classes: int) -> None:
    if maps.is_floating_point() or maps.is_complex():
        raise TypeError(
            f"{name} must be label maps of an integer type, got {maps.dtype}; of class "
            "probabilities take argmax over the class axis"
        )
    low, high = (int(value) for value in maps.aminmax())
    if low < 0 or high >= num_classes:
        raise ValueError(
            f"{name} must hold labels from 0 to {num_classes - 1} (num_classes="
            f"{num_classes}), got values from {low} to {high}"
        )


def _wide_enough(maps: Tensor, num_classes: int) -> Tensor:
    # A comparison casts the number to the tensor's type: 300 would find the 44 of a uint8.
    narrow = maps.dtype != torch.bool and torch.iinfo(maps.dtype).max < num_classes
    return maps.long() if narrow else maps


def _check_num_classes(num_classes: int) -> None:
    if num_classes < 2:
        raise ValueError(
            f"at least two classes are needed, the background among them; got {num_classes}"
        )
