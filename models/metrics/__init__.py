"""How good predictions are: against annotators who disagree, and against a known truth."""

from revgrad.models.metrics.annotator_dice import (
    label_frequencies,
    mean_prediction_dice,
    sample_dice,
)
from revgrad.models.metrics.calibration import (
    calibration_bins,
    calibration_gap,
    expected_calibration_error,
)
from revgrad.models.metrics.cross_correlation import normalized_cross_correlation
from revgrad.models.metrics.cumulative import (
    CumulativeMetric,
    Diversity,
    ExpectedCalibrationError,
    GeneralizedEnergyDistance,
    HungarianMatchedIoU,
    MeanPredictionDice,
    NormalizedCrossCorrelation,
    SampleDice,
    VolumeCRPS,
)
from revgrad.models.metrics.energy_distance import (
    EnergyTerms,
    diversity,
    energy_terms,
    generalized_energy_distance,
)
from revgrad.models.metrics.ged_limits import GEDLimits, ged_limits
from revgrad.models.metrics.ignored import drop_ignored
from revgrad.models.metrics.known_truth import KnownTruthReport, known_truth_report
from revgrad.models.metrics.matching import hungarian_matched_iou, optimal_assignment
from revgrad.models.metrics.modes import mode_frequencies, switch_shares, total_variation
from revgrad.models.metrics.volume_crps import volume_crps

__all__ = [
    "CumulativeMetric",
    "Diversity",
    "EnergyTerms",
    "ExpectedCalibrationError",
    "GEDLimits",
    "GeneralizedEnergyDistance",
    "HungarianMatchedIoU",
    "KnownTruthReport",
    "MeanPredictionDice",
    "NormalizedCrossCorrelation",
    "SampleDice",
    "VolumeCRPS",
    "calibration_bins",
    "calibration_gap",
    "diversity",
    "drop_ignored",
    "energy_terms",
    "expected_calibration_error",
    "ged_limits",
    "generalized_energy_distance",
    "hungarian_matched_iou",
    "known_truth_report",
    "label_frequencies",
    "mean_prediction_dice",
    "mode_frequencies",
    "normalized_cross_correlation",
    "optimal_assignment",
    "sample_dice",
    "switch_shares",
    "total_variation",
    "volume_crps",
]
