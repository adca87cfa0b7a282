"""Figures from elsewhere that stand beside the measured ones, and the goals.

The published ones are Table 1 and 2 of RevPHiSeg (Gantenbein et al. 2020): `max_memory_allocated`
in MB on a GPU of 12 GB, None where PHiSeg did not fit. "saved" is what autograd saves in the
reference code (UNet-Zoo d157c22), measured with torch 2.13 on a CPU in November 2026, in MiB.
"""

from revgrad.benchmarks.revphiseg.settings import Point

# PHiSeg, RevPHiSeg.
PUBLISHED_MB: dict[Point, tuple[int | None, int]] = {
    Point(12): (3251, 2194),
    Point(24): (6076, 4070),
    Point(36): (8905, 5903),
    Point(48): (11374, 7948),
    Point(56): (None, 9238),
    Point(12, 192, 3): (6813, 4621),
    Point(12, 256, 3): (None, 7582),
}
REFERENCE_SAVED_MIB: dict[Point, tuple[float, float]] = {Point(12): (1731.7, 1188.5)}

# By the base: the peak with Adam's state, and saved activations.
GOAL_PEAK = {"revphiseg": 0.30}
GOAL_SAVED = {"revphiseg": 0.25, "revphiseg-iso": 0.33}
# Time by the base's, by operations by the base's.
GOAL_TIME_BY_FLOPS = {"revphiseg": 1.1}
