"""Samples and annotators matched one to one for the best overlap."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from revgrad.models.metrics.cases import (
    MapSets,
    check_empty,
    join_cases,
    label_pairs,
    scored_classes,
)
from revgrad.models.metrics.overlap import iou_distance


def hungarian_matched_iou(
    samples: MapSets,
    annotators: MapSets,
    *,
    num_classes: int,
    spatial_dims: int = 2,
    include_background: bool = False,
    classes: Sequence[int] | None = None,
    empty: float = 1,
) -> Tensor:
    """Mean IoU of the one-to-one matching of samples and annotators that makes it largest.

    Both sets are repeated up to the least common multiple of their sizes (Kohl et al. 2019), so
    every sample and every annotator counts alike: it is one minus the optimal transport cost of
    d = 1 - IoU. One is best. The time grows with the cube of that multiple.

    Args:
        samples, annotators, num_classes, spatial_dims, include_background, classes: as in
            `generalized_energy_distance`.
        empty: the IoU of a class that neither map has: 1, 0, or nan to leave it out of the pair's
            average. A pair that has none of the classes is then matched as equal and not counted.

    Returns:
        ``(N,)``, or a scalar for one image, in float64.
    """
    scored = scored_classes(num_classes, include_background, classes)
    check_empty(empty)
    cases, single = label_pairs(samples, annotators, num_classes, spatial_dims)
    return join_cases([_matched(iou_distance(*c, scored, empty)) for c in cases], single)


def optimal_assignment(cost: np.ndarray) -> np.ndarray:
    """Return the column of each row of a square matrix for the smallest sum, one to one.

    Shortest augmenting paths with row and column potentials (Kuhn 1955; Jonker and Volgenant
    1987), O(n³). The costs must be finite.
    """
    if cost.ndim != 2 or cost.shape[0] != cost.shape[1]:
        raise ValueError(f"cost must be a square matrix, got {cost.shape}")
    if not np.isfinite(cost).all():
        raise ValueError("cost must be finite")
    return _assign(np.asarray(cost, dtype=np.float64))[0]


def _matched(distance: Tensor) -> Tensor:
    maps, others = distance.shape
    common = math.lcm(maps, others)
    square = distance.repeat_interleave(common // maps, 0).repeat_interleave(common // others, 1)
    columns = optimal_assignment(square.nan_to_num(nan=0.0).cpu().numpy())
    pairs = square[torch.arange(common), torch.from_numpy(columns)]
    return 1 - pairs.nanmean()


def _assign(cost: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The columns of the rows, and potentials with row[i] + column[j] <= cost[i, j].

    The potentials prove the result: equality holds for the assigned pairs, so no other assignment
    costs less.
    """
    size = len(cost)
    row_of = np.full(size, -1)
    row_potential, column_potential = np.zeros(size), np.zeros(size)
    for start in range(size):
        distance = np.full(size, np.inf)
        came_from = np.full(size, -1)  # the column before, on the shortest path to a column
        done = np.zeros(size, dtype=bool)
        row, column, reached = start, -1, 0.0
        while row >= 0:
            slack = cost[row] - row_potential[row] - column_potential
            closer = ~done & (reached + slack < distance)
            distance[closer] = reached + slack[closer]
            came_from[closer] = column
            column = int(np.where(done, np.inf, distance).argmin())
            reached = distance[column]
            done[column] = True
            row = row_of[column]
        matched = done & (row_of >= 0)
        row_potential[start] += reached
        row_potential[row_of[matched]] += reached - distance[matched]
        column_potential[done] += distance[done] - reached
        while column >= 0:  # turn the path: each row moves on to the next column
            before = came_from[column]
            row_of[column] = start if before < 0 else row_of[before]
            column = before
    columns = np.empty(size, dtype=np.int64)
    columns[row_of] = np.arange(size)
    return columns, row_potential, column_potential
