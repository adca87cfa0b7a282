import functools
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from revgrad.models import metrics

NAN = float("nan")


def sets(seed=0, cases=5):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randint(3, (cases, 4, 6, 6), generator=generator),
        torch.randint(3, (cases, 3, 6, 6), generator=generator),
    )


def probabilities(seed=0, cases=5, samples=()):
    generator = torch.Generator().manual_seed(seed)
    classes_last = torch.rand(cases, *samples, 6, 6, 3, generator=generator).softmax(-1)
    return classes_last.movedim(-1, 1 + len(samples))


@pytest.mark.parametrize(
    ("metric", "function", "options", "arguments"),
    [
        (metrics.GeneralizedEnergyDistance, metrics.generalized_energy_distance,
         {"num_classes": 3, "unbiased": True}, sets),
        (metrics.Diversity, metrics.diversity, {"num_classes": 3}, lambda: sets()[:1]),
        (metrics.NormalizedCrossCorrelation, metrics.normalized_cross_correlation, {},
         lambda: (probabilities(samples=(4,)), sets()[1])),
        (metrics.SampleDice, metrics.sample_dice, {"num_classes": 3, "draws": None}, sets),
        (metrics.SampleDice, metrics.sample_dice,
         {"num_classes": 3, "draws": None, "per_class": True}, sets),
        (metrics.MeanPredictionDice, metrics.mean_prediction_dice, {"draws": None},
         lambda: (probabilities(), sets()[1])),
        (metrics.VolumeCRPS, metrics.volume_crps, {"num_classes": 3, "per_class": True}, sets),
        (metrics.HungarianMatchedIoU, metrics.hungarian_matched_iou, {"num_classes": 3}, sets),
        (metrics.ExpectedCalibrationError, metrics.expected_calibration_error, {"num_bins": 4},
         lambda: (probabilities(), sets()[1])),
    ],
)  # fmt: skip
def test_keeps_what_the_function_says(metric, function, options, arguments):
    # Made here: tensors that live as long as the module count in other tests' measurements.
    arguments = arguments()
    expected = function(*arguments, **options)
    cumulative = metric(**options)
    for part in (slice(0, 2), slice(2, 4), 4):  # two batches and one image without a batch axis
        found = cumulative(*(a[part] for a in arguments))
        torch.testing.assert_close(found, expected[part])
    torch.testing.assert_close(cumulative.aggregate("none"), expected)
    if metric is not metrics.ExpectedCalibrationError:
        torch.testing.assert_close(cumulative.aggregate(), expected.mean(0))
    cumulative.reset()
    with pytest.raises(ValueError, match="has seen no image yet"):
        cumulative.aggregate()


def test_the_mean_leaves_out_what_is_not_defined():
    empty = torch.zeros(1, 2, 6, 6, dtype=torch.int64)
    metric = metrics.GeneralizedEnergyDistance(num_classes=3, empty=NAN)
    first = metric(*sets(cases=1))
    assert metric(empty, empty).isnan().all()
    assert metric.aggregate() == first.item()
    assert metric.aggregate("none").isnan().tolist() == [False, True]


def test_calibration_error_fills_its_bins_from_all_images():
    mean, annotators = probabilities(), sets()[1]
    metric = metrics.ExpectedCalibrationError(num_bins=4)
    metric(mean[:3], annotators[:3])
    metric(mean[3:], annotators[3:])
    # One wide image of all of them.
    side_by_side = torch.cat(list(mean), -1), torch.cat(list(annotators), -1)
    expected = metrics.expected_calibration_error(*side_by_side, num_bins=4)
    torch.testing.assert_close(metric.aggregate(), expected)
    assert metric.aggregate() < 0.95 * metric.aggregate("none").mean()


def test_ragged_annotators_and_a_generator():
    samples, annotators = sets()
    ragged = [a[: 1 + i % 3] for i, a in enumerate(annotators)]
    metric = metrics.SampleDice(num_classes=3, generator=torch.Generator().manual_seed(0))
    again = metrics.sample_dice(
        samples, ragged, num_classes=3, generator=torch.Generator().manual_seed(0)
    )
    torch.testing.assert_close(metric(samples, ragged), again)


def test_merging_is_seeing_all_images():
    samples, annotators = sets()
    parts = [metrics.GeneralizedEnergyDistance(num_classes=3) for _ in range(2)]
    parts[0](samples[:1], annotators[:1])
    parts[1](samples[1:], annotators[1:])
    parts[0].merge(parts[1:])
    expected = metrics.generalized_energy_distance(samples, annotators, num_classes=3)
    torch.testing.assert_close(parts[0].aggregate("none"), expected)


def _see_a_part(rank, file, results):
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    samples, annotators = sets()
    part = slice(0, 1) if rank == 0 else slice(1, None)  # unequal parts
    metric = metrics.GeneralizedEnergyDistance(num_classes=3)
    metric(samples[part], annotators[part])
    metric.synchronize()
    torch.save(metric.aggregate("none"), f"{results}/{rank}.pt")
    dist.destroy_process_group()


def test_processes_put_their_images_together(tmp_path):
    # Importlib mode gives this file no name that a new process could import: fork.
    mp.start_processes(
        functools.partial(_see_a_part, file=tmp_path / "store", results=tmp_path),
        nprocs=2,
        start_method="fork",
    )
    expected = metrics.generalized_energy_distance(*sets(), num_classes=3)
    for rank in range(2):
        torch.testing.assert_close(torch.load(tmp_path / f"{rank}.pt"), expected)


def test_follows_monais_protocol_without_it():
    # In a process of its own: other tests do import MONAI.
    code = "import sys, revgrad.models.metrics; sys.exit('monai' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
    metric = metrics.GeneralizedEnergyDistance(num_classes=3)
    for method in ("aggregate", "reset", "get_buffer"):
        assert callable(getattr(metric, method))


def test_says_what_is_wrong():
    with pytest.raises(TypeError, match="missing a required argument: 'num_classes'"):
        metrics.GeneralizedEnergyDistance()
    with pytest.raises(TypeError, match="unexpected keyword argument 'unbiassed'"):
        metrics.GeneralizedEnergyDistance(num_classes=2, unbiassed=True)
    with pytest.raises(ValueError, match="'mean' or 'none', got 'sum'"):
        metrics.GeneralizedEnergyDistance(num_classes=2, reduction="sum")
