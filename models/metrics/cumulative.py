"""Metrics over a data set, in MONAI's protocol: call for each batch, `aggregate`, `reset`.

They only speak that protocol: MONAI is not needed, and no class of its is a base of these.
"""

import inspect
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Literal, Self

import torch
import torch.distributed as dist
from torch import Tensor

from revgrad.models.metrics.annotator_dice import mean_prediction_dice, sample_dice
from revgrad.models.metrics.calibration import calibration_bins, calibration_gap
from revgrad.models.metrics.cases import MapSets
from revgrad.models.metrics.cross_correlation import normalized_cross_correlation
from revgrad.models.metrics.energy_distance import diversity, generalized_energy_distance
from revgrad.models.metrics.matching import hungarian_matched_iou
from revgrad.models.metrics.volume_crps import volume_crps


class CumulativeMetric:
    """Keeps what a function says of each image until it is asked for the mean.

    Args:
        reduction: ``"mean"`` over images, or ``"none"``.
        options: the function's keyword arguments.

    Raises:
        TypeError: the function has no such option, or needs one more.
    """

    function: ClassVar[Callable[..., Tensor]]

    def __init__(self, *, reduction: Literal["mean", "none"] = "mean", **options: Any) -> None:
        if reduction not in ("mean", "none"):
            raise ValueError(f"reduction must be 'mean' or 'none', got {reduction!r}")
        signature = inspect.signature(type(self).function)
        required = [p for p in signature.parameters.values() if p.kind is not p.KEYWORD_ONLY]
        signature.bind(*required, **options)
        self.reduction = reduction
        self.options = options
        self._values: list[Tensor] = []

    def __call__(self, *arguments: MapSets) -> Tensor:
        """Score one image or a batch, keep the scores and return them."""
        values = type(self).function(*arguments, **self.options)
        self._values.extend(self._rows(values).detach().cpu())
        return values

    def aggregate(self, reduction: Literal["mean", "none"] | None = None) -> Tensor:
        """Mean over all images since the last `reset`, NaN left out; or the images one by one."""
        values = self.get_buffer()
        return values if (reduction or self.reduction) == "none" else values.nanmean(0)

    def get_buffer(self) -> Tensor:
        """What was kept, one row for each image, in float64 on the CPU."""
        if not self._values:
            raise ValueError(f"{type(self).__name__} has seen no image yet")
        return torch.stack(self._values)

    def reset(self) -> None:
        """Forget all images."""
        self._values = []

    def merge(self, others: Iterable[Self]) -> None:
        """Add the images that other metrics of the same kind have seen."""
        for other in others:
            self._values.extend(other._values)

    def synchronize(self) -> None:
        """Put together what all processes of `torch.distributed` have seen, in order of rank.

        Every process must call it, once, after its last image. A sampler that repeats images to
        fill the last batch makes them count twice.
        """
        gathered: list[list[Tensor]] = [[] for _ in range(dist.get_world_size())]
        dist.all_gather_object(gathered, self._values)
        self._values = [value for values in gathered for value in values]

    def _rows(self, values: Tensor) -> Tensor:
        """One row for each image."""
        per_class = int(bool(self.options.get("per_class")))
        return values if values.ndim > per_class else values[None]


class GeneralizedEnergyDistance(CumulativeMetric):
    """`generalized_energy_distance` over a data set: call with (samples, annotators)."""

    function = staticmethod(generalized_energy_distance)


class Diversity(CumulativeMetric):
    """`diversity` over a data set: call with (samples) or with (annotators)."""

    function = staticmethod(diversity)


class NormalizedCrossCorrelation(CumulativeMetric):
    """`normalized_cross_correlation` over a data set: call with (probabilities, annotators)."""

    function = staticmethod(normalized_cross_correlation)


class SampleDice(CumulativeMetric):
    """`sample_dice` over a data set: call with (samples, annotators)."""

    function = staticmethod(sample_dice)


class MeanPredictionDice(CumulativeMetric):
    """`mean_prediction_dice` over a data set: call with (mean_probabilities, annotators)."""

    function = staticmethod(mean_prediction_dice)


class VolumeCRPS(CumulativeMetric):
    """`volume_crps` over a data set: call with (samples, annotators)."""

    function = staticmethod(volume_crps)


class HungarianMatchedIoU(CumulativeMetric):
    """`hungarian_matched_iou` over a data set: call with (samples, annotators)."""

    function = staticmethod(hungarian_matched_iou)


class ExpectedCalibrationError(CumulativeMetric):
    """Calibration error of a data set: call with (mean_probabilities, annotators).

    A call returns `expected_calibration_error` of each image. `aggregate` takes the gaps of the
    bins that all images together have filled; with reduction "none", those of each image.
    """

    function = staticmethod(calibration_bins)

    def __call__(self, *arguments: MapSets) -> Tensor:
        return calibration_gap(super().__call__(*arguments))

    def aggregate(self, reduction: Literal["mean", "none"] | None = None) -> Tensor:
        bins = self.get_buffer()
        return calibration_gap(bins if (reduction or self.reduction) == "none" else bins.sum(0))

    def _rows(self, values: Tensor) -> Tensor:
        return values if values.ndim == 3 else values[None]
