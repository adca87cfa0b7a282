"""Against a known truth: what a perfect model would score, and how far a model is from it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from revgrad.models.metrics.cases import check_empty, label_pairs, scored_classes
from revgrad.models.metrics.energy_distance import EnergyTerms, mean_of_pairs
from revgrad.models.metrics.ged_limits import GEDLimits, checked_probabilities, limits_of
from revgrad.models.metrics.modes import nearest_shares, switch_shares, total_variation
from revgrad.models.metrics.overlap import iou_distances

if TYPE_CHECKING:
    from revgrad.models.data.case import Case

# Same-size samples of the truth that the model's total variation is compared with.
TRUE_SAMPLES = 200
# A class has flipped as one where this share of its pixels agrees.
WHOLE = 0.95


@dataclass(frozen=True)
class KnownTruthReport:
    """How far a model's samples are from the distribution that they should have.

    Attributes:
        draws: samples for each image.
        ged: ``(images,)`` float64, biased squared GED of the samples and the truth.
        limits: what it is for a perfect model and for the best single mode, of the same images.
        frequencies: ``(modes,)``, share of all samples that are nearest to each mode.
        probabilities: ``(modes,)``, what they should be.
        total_variation: distance of these two.
        true_variation: the same of as many samples of the truth: mean, and 95 % quantile.
        flipped: ``(switches,)``, share of the samples in which most of a class has flipped.
        as_one: ``(switches,)``, share of a class's pixels that agree on having flipped or not,
            averaged over samples. Half would be chance.
        whole: ``(switches,)``, share of the samples in which at least 95 % of them agree.
        recalled: ``(switches,)``, share of a class's pixels that get it or its alternative, over
            all samples. Only these count in the three above.
    """

    draws: int
    ged: Tensor
    limits: GEDLimits
    frequencies: Tensor
    probabilities: Tensor
    total_variation: float
    true_variation: tuple[float, float]
    flipped: Tensor
    as_one: Tensor
    whole: Tensor
    recalled: Tensor

    @property
    def normalized_ged(self) -> float:
        """Where the mean GED lies between a perfect model's, 0, and the best single mode's, 1."""
        return self.normalized_by(float(self.limits.single_mode.nanmean()))

    def normalized_by(self, ged: float) -> float:
        """Where it lies between a perfect model's, 0, and a given one, 1."""
        perfect = float(self.limits.perfect.nanmean())
        return (float(self.ged.nanmean()) - perfect) / (ged - perfect)

    @property
    def excess_variation(self) -> float:
        """The total variation less the mean one of as many samples of the truth."""
        return self.total_variation - self.true_variation[0]

    def __str__(self) -> str:
        mean, high = self.true_variation
        perfect, single_mode = (float(limit.nanmean()) for limit in self.limits)

        def shares(values: Tensor) -> str:
            return " ".join(f"{value:.3f}" for value in values.tolist())

        return "\n".join(
            [
                f"{len(self.ged)} images, {self.draws} samples each",
                f"GED {float(self.ged.nanmean()):.4f} (perfect model {perfect:.4f}, best single "
                f"mode {single_mode:.4f}): {self.normalized_ged:.3f} of the way",
                f"total variation of the modes {self.total_variation:.3f} (as many true samples "
                f"{mean:.3f}, 95 % of them below {high:.3f})",
                f"each switch, share of samples flipped   {shares(self.flipped)}",
                f"  pixels that flip as one               {shares(self.as_one)}",
                f"  samples in which 95 % of them do      {shares(self.whole)}",
                f"  pixels that get either class          {shares(self.recalled)}",
            ]
        )


def known_truth_report(
    samples: Iterable[Tensor],
    cases: Iterable[Case],
    *,
    num_classes: int,
    classes: Sequence[int] | None = None,
    empty: float = float("nan"),
    generator: torch.Generator | None = None,
) -> KnownTruthReport:
    """Compare samples of images with the whole distribution of their annotations.

    Both are gone through once, so that a generator and a dataset will do, and memory holds one
    image's maps at a time.

    Args:
        samples: label maps of each case, integers ``(S, *spatial)``.
        cases: of the same modes with the same probabilities, all of them, as `Scenes` and
            `CityscapesFolder` give: with weights, and "scene" and "switches" among the facts.
        num_classes: the labels are 0 to `num_classes` - 1.
        classes: the labels that count in distances; by default those that switch and their
            alternatives, as in Kohl et al. 2018.
        empty: the IoU of a class that neither map has; by default it is left out, as there.
        generator: where the same-size true samples come from; seeded with 0 by default.

    Raises:
        ValueError: a case is no known truth, or differs from the first in its modes; numbers of
            samples differ; or there are no cases, or not as many as samples.
    """
    generator = generator or torch.Generator().manual_seed(0)
    scores: list[_Score] = []
    first: Case | None = None
    for drawn, case in zip(samples, cases, strict=True):
        first = first or case
        _check_case(case, first)
        if scores and len(drawn) != scores[0].draws:
            raise ValueError(
                f"each image needs the same number of samples, as GED depends on it: "
                f"{case.name} has {len(drawn)}, the first {scores[0].draws}"
            )
        scored = classes or sorted(label for pair in case.facts["switches"] for label in pair)
        scores.append(_score(drawn, case, num_classes, scored, empty, generator))
    if first is None or first.weights is None:
        raise ValueError("there are no cases to report on")
    return _report(scores, first.weights.cpu().double())


class _Score(NamedTuple):
    """What one image adds to the report."""

    draws: int
    ged: Tensor
    limits: GEDLimits
    frequencies: Tensor  # (modes,)
    true_frequencies: Tensor  # (TRUE_SAMPLES, modes), of as many samples of the truth
    shares: Tensor  # (draws, switches), how much of each class each sample has flipped
    recalled: Tensor  # (switches,), pixels of all samples with the class or its alternative
    pixels: Tensor  # (switches,), pixels of the class, once for each sample


def _score(
    samples: Tensor,
    case: Case,
    num_classes: int,
    classes: Sequence[int],
    empty: float,
    generator: torch.Generator,
) -> _Score:
    """Score one image; all distances, of samples and modes, are computed once."""
    on, dims = samples.device, case.annotators.ndim - 1
    pairs, _ = label_pairs(samples, case.annotators.to(on), num_classes, dims)
    ((drawn, modes),) = pairs
    scored = scored_classes(num_classes, False, classes)
    check_empty(empty)
    n, weights = len(drawn), checked_probabilities(case.weights, len(modes))
    distance = iou_distances([drawn, modes], scored, empty).cpu()
    even = torch.ones(n, dtype=torch.float64)
    between, within, among = distance[:n, n:], distance[:n, :n], distance[n:, n:]
    terms = EnergyTerms(
        mean_of_pairs(between, even, weights),
        mean_of_pairs(within, even, even),
        mean_of_pairs(among, weights, weights),
    )
    # Modes that look the same share their samples, those of the truth as well.
    true = _draw(weights, n, generator) @ nearest_shares(among, weights)
    scene, switches = case.facts["scene"].to(on), case.facts["switches"]
    shares = switch_shares(drawn, scene, switches, num_classes=num_classes, spatial_dims=dims)
    return _Score(
        n,
        terms.squared_distance,
        limits_of(among, weights, n),
        nearest_shares(between, weights).mean(0),
        true,
        shares.cpu(),
        *_recalled(drawn, scene, switches),
    )


def _recalled(
    drawn: Tensor, scene: Tensor, switches: Sequence[tuple[int, int]]
) -> tuple[Tensor, Tensor]:
    """Pixels of each class that get it or its alternative, and all of its pixels."""
    inside = [drawn[:, scene == label] for label, _ in switches]
    found = [torch.isin(at, at.new_tensor(pair)) for at, pair in zip(inside, switches, strict=True)]
    counts = [(int(either.sum()), either.numel()) for either in found]
    recalled, pixels = torch.tensor(counts).unbind(1)
    return recalled, pixels


def _draw(weights: Tensor, draws: int, generator: torch.Generator) -> Tensor:
    """How often `draws` samples of the truth have each mode, ``(TRUE_SAMPLES, modes)``."""
    drawn = torch.multinomial(weights, TRUE_SAMPLES * draws, replacement=True, generator=generator)
    found = torch.zeros(TRUE_SAMPLES, len(weights), dtype=torch.float64)
    ones = torch.full((TRUE_SAMPLES, draws), 1 / draws, dtype=torch.float64)
    return found.scatter_add_(1, drawn.view(TRUE_SAMPLES, draws), ones)


def _report(scores: list[_Score], probabilities: Tensor) -> KnownTruthReport:
    frequencies = torch.stack([score.frequencies for score in scores]).mean(0)
    true = total_variation(
        torch.stack([score.true_frequencies for score in scores]).mean(0), probabilities
    )
    shares = torch.cat([score.shares for score in scores])
    known, agree = ~shares.isnan(), torch.maximum(shares, 1 - shares)
    count = known.sum(0).double()
    recalled = torch.stack([score.recalled for score in scores]).sum(0)
    pixels = torch.stack([score.pixels for score in scores]).sum(0)
    return KnownTruthReport(
        draws=scores[0].draws,
        ged=torch.stack([score.ged for score in scores]),
        limits=GEDLimits(
            torch.stack([score.limits.perfect for score in scores]),
            torch.stack([score.limits.single_mode for score in scores]),
        ),
        frequencies=frequencies,
        probabilities=probabilities,
        total_variation=float(total_variation(frequencies, probabilities)),
        true_variation=(float(true.mean()), float(true.quantile(0.95))),
        flipped=(shares > 0.5).sum(0) / count,
        as_one=agree.nanmean(0),
        whole=(agree >= WHOLE).sum(0) / count,
        recalled=recalled / pixels,
    )


def _check_case(case: Case, first: Case) -> None:
    if case.weights is None or not {"scene", "switches"} <= set(case.facts):
        raise ValueError(
            f"{case.name} is no known truth: it needs weights, and 'scene' and 'switches' among "
            f"its facts"
        )
    same = case.facts["switches"] == first.facts["switches"]
    if not same or not torch.equal(case.weights, torch.as_tensor(first.weights)):
        raise ValueError(f"{case.name} and {first.name} differ in their switches or probabilities")
