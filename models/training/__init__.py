"""Train segmentation networks, keep them, and say how good they are."""

from revgrad.models.training.checkpoint import CheckpointError, load_segmenter
from revgrad.models.training.config import TrainConfig
from revgrad.models.training.intervals import Interval, Resampling
from revgrad.models.training.loop import Training, TrainingError
from revgrad.models.training.scores import CaseScores, paired_difference, score_network, summary

__all__ = [
    "CaseScores",
    "CheckpointError",
    "Interval",
    "Resampling",
    "TrainConfig",
    "Training",
    "TrainingError",
    "load_segmenter",
    "paired_difference",
    "score_network",
    "summary",
]
