"""Intervals over patients, by the bootstrap."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

REPLICATES = 2000


class Interval(NamedTuple):
    """A mean, and the range that holds 95 % of the means of resampled patients."""

    mean: float
    low: float
    high: float


class Resampling:
    """Draws of patients with replacement, the same for everything that is measured on them.

    A patient comes with all of its cases (Efron and Tibshirani 1993, percentile intervals). One
    patient says nothing of others: the interval is NaN then.

    Args:
        patients: of each case.
        seed: of the draws.
        replicates: how many times all patients are drawn.
    """

    def __init__(
        self, patients: Sequence[str], *, seed: int = 0, replicates: int = REPLICATES
    ) -> None:
        if not patients:
            raise ValueError("an interval needs at least one case")
        names = sorted(set(patients))
        place = {name: index for index, name in enumerate(names)}
        self._patient = np.array([place[name] for name in patients])
        self.count = len(names)
        shares = np.full(self.count, 1 / self.count)
        times = np.random.default_rng(seed).multinomial(self.count, shares, replicates)
        self._times = times if self.count > 1 else np.full((replicates, 1), np.nan)

    def sums(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Sums over the cases of each draw, ``(1 + replicates, ...)``; the first is of all cases.

        Args:
            values: ``(cases, ...)``.
        """
        of_patient = np.zeros((self.count, *values.shape[1:]))
        np.add.at(of_patient, self._patient, values)
        drawn = np.tensordot(self._times, of_patient, axes=1)
        return np.concatenate([of_patient.sum(0)[None], drawn])

    def mean(self, values: Sequence[float]) -> Interval:
        """Of the mean over cases; those that are NaN are left out, as `aggregate` does."""
        given = np.asarray(values, dtype=np.float64)
        if given.shape != self._patient.shape:
            raise ValueError(f"expected {len(self._patient)} values, one a case, not {given.shape}")
        known = np.isfinite(given)
        with np.errstate(invalid="ignore"):
            means = self.sums(np.where(known, given, 0)) / self.sums(known.astype(np.float64))
        return interval(means)


def interval(estimates: NDArray[np.float64]) -> Interval:
    """The first estimate, between the 2.5th and 97.5th percentile of the others."""
    drawn = estimates[1:][np.isfinite(estimates[1:])]
    low, high = np.percentile(drawn, [2.5, 97.5]) if drawn.size else (np.nan, np.nan)
    return Interval(float(estimates[0]), float(low), float(high))
