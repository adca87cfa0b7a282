"""Leave pixels without a label, such as Cityscapes' 255, out of every metric."""

from __future__ import annotations

from torch import Tensor

from revgrad.models.metrics.cases import MapSets, pair_cases, split_cases


def drop_ignored(
    samples: MapSets, annotators: MapSets, ignore_index: int, *, spatial_dims: int = 2
) -> tuple[list[Tensor], list[Tensor]]:
    """Remove the pixels that the annotators ignore, and make one axis of what space is left.

    Call a metric on the result, with ``spatial_dims=1``. All of its pairs, samples with samples
    too, are then of the same pixels, so that every property of the metric holds: it is the metric
    of the rest of the image.

    Args:
        samples: label maps or probabilities, with any axes between a case's and the image's:
            ``(N, ..., *spatial)``, or a list of N of ``(..., *spatial)``.
        annotators: label maps, ``(N, A, *spatial)``, or a list of N of ``(A, *spatial)``.
        ignore_index: the label that says that there is none.
        spatial_dims: axes of an image.

    Returns:
        Lists of N tensors, ``(..., pixels)`` and ``(A, pixels)``, in the image's order.

    Raises:
        TypeError: the annotators are no integers.
        ValueError: the shapes do not belong together; annotators of one image ignore different
            pixels, of which no distance between all of them is left; or all pixels are ignored.
    """
    names = ("samples", "annotators")
    axes = max(0, samples[0].ndim - spatial_dims) if len(samples) else 1
    pairs, _ = pair_cases(
        split_cases(list(samples), "samples", ("...",) * axes, spatial_dims),
        split_cases(list(annotators), "annotators", ("A",), spatial_dims),
        names,
        spatial_dims,
    )
    kept = [
        _keep(index, drawn.flatten(-spatial_dims), truth.flatten(1), ignore_index)
        for index, (drawn, truth) in enumerate(pairs)
    ]
    return [drawn for drawn, _ in kept], [truth for _, truth in kept]


def _keep(index: int, samples: Tensor, annotators: Tensor, ignore_index: int) -> list[Tensor]:
    if annotators.is_floating_point() or annotators.is_complex():
        raise TypeError(f"annotators must be label maps of an integer type, got {annotators.dtype}")
    # A comparison casts the number to the tensor's type: -1 would find the 255 of a uint8.
    ignored = annotators.long() == ignore_index
    if bool((ignored != ignored[0]).any()):
        raise ValueError(
            f"the annotators of case {index} ignore different pixels (ignore_index="
            f"{ignore_index}): give the label to all of them where one has it, or leave out the "
            "annotators that do not know the whole"
        )
    known = ~ignored[0]
    if not bool(known.any()):
        raise ValueError(f"case {index} has no pixel left: all are {ignore_index}")
    return [samples[..., known], annotators[:, known]]
