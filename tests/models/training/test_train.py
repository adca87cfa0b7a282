"""`revgrad train` and `evaluate`: runs, kills, resumption, what is written and refused."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from dataclasses import astuple, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from revgrad import cli
from revgrad.models import PHiSeg, ProbabilisticUNet
from revgrad.models.data import CaseFolder
from revgrad.models.figures import read_log
from revgrad.models.training import CheckpointError, TrainConfig, checkpoint, load_segmenter
from revgrad.models.training.batches import Batches
from revgrad.models.training.loop import Training, kl_factor
from revgrad.models.training.references import MAJORITY
from revgrad.models.training.stopping import stop_requests

TOYS = Path(__file__).with_name("toys.py")


def arguments(folder, steps=6, **options):
    settings = {"model": "disc-net", "data": "discs", "steps": steps, "batch_size": 3}
    settings |= {"validate_every": 2, "validation_samples": 4, "output": str(folder), **options}
    flags = []
    for name, value in settings.items():
        text = value if isinstance(value, str) else json.dumps(value)
        flags += ["--" + name.replace("_", "-"), text]
    return ["train", *flags]


def tensors(path):
    held = checkpoint.load(path)
    return {**held.weights, **{f"optimizer.{k}": v for k, v in held.optimizer.items()}}


def same(one, other):
    first, second = tensors(one), tensors(other)
    return first.keys() == second.keys() and all(
        torch.equal(value, second[name]) for name, value in first.items()
    )


@pytest.mark.parametrize(
    "options", [{}, {"precision": "float64"}, {"channels_last": True}], ids=lambda o: "".join(o)
)
def test_a_run_stopped_between_checkpoints_ends_in_the_same_bits(toys, tmp_path, options):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert cli.main(arguments(whole, 7, **options)) == 0
    assert cli.main(arguments(parts, 4, **options)) == 0
    with (parts / "log.jsonl").open("a") as log:
        log.write('{"step": 5}\n{"st')  # taken, but lost with the kill
    unfinished = parts / ".latest.safetensors.1234.tmp"
    unfinished.write_bytes(b"half a checkpoint")
    assert cli.main(["train", "--resume", "--output", str(parts), "--steps", "7"]) == 0
    assert same(whole / "latest.safetensors", parts / "latest.safetensors")
    assert not unfinished.exists()
    lines = [json.loads(line) for line in (parts / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 8))
    assert lines[-1]["kl"] and lines[-1]["peak_bytes"] > 0 and "validation_ged" in lines[-1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_after_the_step_and_keeps_it(toys, tmp_path, capsys, monkeypatch, number):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert cli.main(arguments(whole, 6)) == 0
    take_step = Training.take_step

    def signalled(self):
        if self.step == 2:  # the third step, which is not validated after
            os.kill(os.getpid(), number)
        return take_step(self)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "take_step", signalled)
        before = signal.getsignal(number)
        assert cli.main(arguments(parts, 6)) == 130
        assert signal.getsignal(number) is before
    assert f"--resume --output {parts} goes on from step 3" in capsys.readouterr().err
    assert checkpoint.load(parts / "latest.safetensors").facts["step"] == 3
    assert cli.main(["train", "--resume", "--output", str(parts)]) == 0
    assert same(whole / "latest.safetensors", parts / "latest.safetensors")
    assert same(whole / "best.safetensors", parts / "best.safetensors")
    assert [record["step"] for record in read_log(parts / "log.jsonl")] == list(range(1, 7))


@pytest.fixture
def ctrl_c():
    """Of the interpreter, whatever runs the tests has made of it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield signal.default_int_handler
    signal.signal(signal.SIGINT, before)


def test_the_second_ctrl_c_stops_at_once(capsys, ctrl_c):
    with pytest.raises(KeyboardInterrupt), stop_requests() as asked:
        assert not asked()
        os.kill(os.getpid(), signal.SIGINT)
        assert asked() and "once more" in capsys.readouterr().err
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is ctrl_c


def test_only_the_main_thread_listens_to_signals(ctrl_c):
    found = []

    def listen():
        with stop_requests() as asked:
            found.append((asked(), signal.getsignal(signal.SIGINT)))

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert found == [(False, ctrl_c)]


@pytest.mark.parametrize(
    ("call", "words"),
    [(1, "starts anew, for there is no checkpoint yet (validate_every=2)"), (2, "goes on from")],
)
def test_a_run_that_is_interrupted_says_how_to_go_on(
    toys, tmp_path, capsys, monkeypatch, call, words
):
    validate, calls = Training.validate, []

    def interrupted(self):
        calls.append(self.step)
        if len(calls) == call:
            raise KeyboardInterrupt
        return validate(self)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "validate", interrupted)
        assert cli.main(arguments(tmp_path, 6)) == 130
    assert f"--resume --output {tmp_path} {words}" in capsys.readouterr().err
    assert cli.main(["train", "--resume", "--output", str(tmp_path)]) == 0
    assert [record["step"] for record in read_log(tmp_path / "log.jsonl")] == list(range(1, 7))


def test_a_line_that_a_kill_cut_in_two_leaves_the_log_whole(toys, tmp_path):
    assert cli.main(arguments(tmp_path, 4)) == 0
    log = tmp_path / "log.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join([*lines[:3], lines[3][:9]]))
    assert cli.main(["train", "--resume", "--output", str(tmp_path), "--steps", "6"]) == 0
    assert [record["step"] for record in read_log(log)] == [1, 2, 3, 5, 6]


def test_what_a_checkpoint_knows_is_in_the_log_already(toys, tmp_path, monkeypatch):
    logged = []

    def saved(self, name, facts, optimizer):
        logged.append(read_log(self.folder / "log.jsonl")[-1]["step"] == facts["step"])

    monkeypatch.setattr("revgrad.models.training.loop.Training._save", saved)
    assert cli.main(arguments(tmp_path, 4)) == 0
    assert len(logged) >= 3 and all(logged)


def test_the_weight_of_divergences_grows_from_nothing():
    assert [kl_factor(4, step) for step in range(6)] == [0, 0.25, 0.5, 0.75, 1, 1]
    assert kl_factor(0, 0) == 1


@pytest.mark.parametrize("make", [ProbabilisticUNet, PHiSeg])
def test_networks_weigh_divergences_with_the_factor(make):
    options = {"latent_levels": 2, "kl_weights": 3.0} if make is PHiSeg else {"beta": 3.0}
    net = make(2, 1, 2, (8, 8), norm=None, **options)
    image, masks = torch.randn(2, 1, 8, 8), torch.randint(2, (2, 8, 8))
    for factor in (1.0, 0.5, 0.0):
        net.kl_factor = factor
        terms = net.loss(image, masks)
        expected = terms.reconstruction.sum() + 3 * factor * terms.kl.sum()
        torch.testing.assert_close(terms.total.detach(), expected)


def test_a_killed_run_resumes_to_the_bit(tmp_path):
    steps, options = 120, {"validate_every": 3, "validation_cases": 2}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    command = [sys.executable, str(TOYS)]
    quiet = {"stdout": subprocess.DEVNULL, "timeout": 120}
    subprocess.run([*command, *arguments(whole, steps, **options)], check=True, **quiet)
    run = subprocess.Popen(
        [*command, *arguments(killed, steps, **options)], stdout=subprocess.DEVNULL
    )
    log = killed / "log.jsonl"
    target = random.SystemRandom().randrange(1, steps * 2 // 3)
    while run.poll() is None and (not log.exists() or len(log.read_bytes().splitlines()) < target):
        time.sleep(0.0005)
    os.kill(run.pid, signal.SIGKILL)
    assert run.wait(30) == -signal.SIGKILL, "it ended before it was killed"
    resume = ["train", "--resume", "--output", str(killed)]
    subprocess.run([*command, *resume], check=True, **quiet)
    for name in ("latest.safetensors", "best.safetensors"):
        assert same(whole / name, killed / name), f"killed near step {target}"


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_evaluate_prints_runs_and_their_paired_difference(toys, tmp_path, capsys, spatial_dims):
    data = {"spatial_dims": spatial_dims, "known": spatial_dims == 3, "count": 4}
    runs = [tmp_path / "one", tmp_path / "two"]
    for run, width in zip(runs, (4, 5), strict=True):
        options = {"data_options": data, "model_options": {"width": width}}
        assert cli.main(arguments(run, 2, **options)) == 0
    assert cli.main(["evaluate", *map(str, runs), "--samples", "8"]) == 0
    page = capsys.readouterr().out
    for words in ("GED² (n=8)", "NCC", "ECE", "4 cases of 2 patients", "paired difference"):
        assert words in page
    record = json.loads((runs[0] / "evaluation.json").read_text())
    means = [record["scores"][str(run)]["GED² (n=8)"]["mean"] for run in runs]
    means.append(record["scores"][MAJORITY]["GED² (n=8)"]["mean"])
    found = list(record["paired differences"].values())
    for difference, (one, other) in zip(found, [(0, 1), (0, 2), (1, 2)], strict=True):
        assert difference["mean"] == pytest.approx(means[one] - means[other], abs=1e-12)
        assert difference["low"] <= difference["mean"] <= difference["high"]


def test_a_device_that_is_not_there_is_named(toys, tmp_path, capsys):
    assert cli.main(arguments(tmp_path, 1)) == 0
    assert cli.main(["evaluate", str(tmp_path), "--device", "cuda:99"]) == 1
    assert "revgrad evaluate: cannot use the device 'cuda:99'" in capsys.readouterr().err


def test_load_segmenter_gives_the_trained_network(toys, tmp_path):
    assert cli.main(arguments(tmp_path, 2)) == 0
    net = load_segmenter(tmp_path, "latest")
    assert not net.training
    assert net.sample(torch.zeros(1, 1, 8, 8), 3).shape == (1, 3, 2, 8, 8)
    weights = checkpoint.load(tmp_path / "latest.safetensors").weights
    assert all(torch.equal(value, weights[name]) for name, value in net.state_dict().items())


def test_a_loss_that_is_not_finite_keeps_the_last_checkpoint(toys, tmp_path, capsys, monkeypatch):
    assert cli.main(arguments(tmp_path, 2)) == 0
    before = (tmp_path / "latest.safetensors").read_bytes()
    loss = toys.DiscNet.loss
    monkeypatch.setattr(
        toys.DiscNet, "loss", lambda *args: loss(*args)._replace(total=torch.tensor(torch.nan))
    )
    assert cli.main(["train", "--resume", "--output", str(tmp_path), "--steps", "4"]) == 1
    assert "the loss of step 3 is nan" in capsys.readouterr().err
    assert (tmp_path / "latest.safetensors").read_bytes() == before


@pytest.mark.parametrize("keep", [0, 5, 400, -1])
def test_a_damaged_checkpoint_is_named(toys, tmp_path, keep):
    assert cli.main(arguments(tmp_path, 2)) == 0
    path = tmp_path / "best.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"best\.safetensors: damaged"):
        load_segmenter(tmp_path)


def test_foreign_and_missing_checkpoints_are_refused(tmp_path):
    import safetensors.torch

    with pytest.raises(CheckpointError, match="no such checkpoint"):
        load_segmenter(tmp_path)
    safetensors.torch.save_file({"a": torch.zeros(1)}, tmp_path / "best.safetensors")
    with pytest.raises(CheckpointError, match="no checkpoint of revgrad train"):
        load_segmenter(tmp_path)


def test_weights_that_are_not_finite_are_not_written(tmp_path):
    net = torch.nn.Linear(1, 1)
    path = tmp_path / "latest.safetensors"
    checkpoint.save(path, net, {"step": 1})
    before = path.read_bytes()
    torch.nn.init.constant_(net.weight, torch.inf)
    with pytest.raises(ValueError, match="weight is not finite"):
        checkpoint.save(path, net, {"step": 2})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"model": "nonet"}, "unknown model 'nonet'; accepted are unet"),
        ({"data": "nodata"}, "unknown data 'nodata'; accepted are lidc"),
        ({"scheduler": "never"}, "scheduler must be one of constant"),
        ({"model_options": {"breadth": 1}}, "model_options do not fit disc-net"),
        ({"model_options": {"breadth": 1}}, "argument 'breadth'; accepted are width"),
        ({"data_options": {"widths": 1}}, "argument 'widths'; accepted are "),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"data_options": {"split": "test"}}, "data_options must not have a split"),
        ({"device": "gpu"}, "the device must be cpu, cuda or cuda:N, not 'gpu'"),
        ({"device": "cuda:one"}, "cannot use the device 'cuda:one'"),
        ({"device": "cuda:99"}, "cannot use the device 'cuda:99'"),
        ({"device": "meta"}, "the device must be cpu, cuda or cuda:N, not 'meta'"),
    ],
)
def test_wrong_settings_are_named(toys, tmp_path, capsys, options, words):
    assert cli.main(arguments(tmp_path / "run", **options)) == 1
    assert words in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flag", "value", "words"),
    [
        ("--data-options", "{size: 64}", 'must be an object in JSON, such as {"size": 64}, not'),
        ("--model-options", "[4, 8]", "must be an object in JSON"),
        ("--channels-last", "yes", "must be true or false, not 'yes'"),
    ],
)
def test_a_flag_that_is_no_json_says_what_it_takes(capsys, flag, value, words):
    with pytest.raises(SystemExit):
        cli.main(["train", flag, value])
    assert f"argument {flag}: {words}" in capsys.readouterr().err


def test_flags_win_over_the_file_and_unknown_keys_are_errors(toys, tmp_path, capsys):
    file = tmp_path / "run.toml"
    file.write_text("lr = 0.5\nweight_decay = 0.25\n")
    run = tmp_path / "run"
    assert cli.main([*arguments(run, 1), "--config", str(file), "--lr", "0.125"]) == 0
    held = TrainConfig.from_mapping(json.loads((run / "config.json").read_text()))
    assert (held.lr, held.weight_decay, held.model) == (0.125, 0.25, "disc-net")
    assert cli.main([*arguments(run, 1)]) == 1
    assert "already holds a run" in capsys.readouterr().err
    assert cli.main(["train", "--resume", "--output", str(run), "--lr", "1"]) == 1
    assert "lr must not change in a run" in capsys.readouterr().err
    file.write_text("rate = 1\n")
    assert cli.main(["train", "--config", str(file)]) == 1
    assert "run.toml: unknown rate; accepted are model" in capsys.readouterr().err


def test_an_epoch_has_every_case_once_and_annotators_follow_their_weights(toys):
    class Numbered(toys.Discs):
        def __getitem__(self, index):
            case = super().__getitem__(index)
            image = torch.full_like(case.image, index)
            masks = torch.arange(4).reshape(4, 1, 1).expand(4, 8, 8)
            return type(case)(image, masks, case.name, case.patient, case.weights)

    batches = Batches(Numbered("train", known=True), 5, seed=3)
    drawn = [batches(step) for step in range(200)]
    seen = [int(image[0, 0, 0]) for images, _ in drawn for image in images]
    for epoch in range(100):
        assert sorted(seen[10 * epoch : 10 * epoch + 10]) == list(range(10))
    annotators = torch.cat([masks[:, 0, 0] for _, masks in drawn])
    shares = annotators.bincount(minlength=4) / 1000
    assert (shares - torch.tensor([0.4, 0.3, 0.2, 0.1])).abs().max() < 0.06
    assert torch.equal(batches(7)[1], drawn[7][1])


def test_images_that_do_not_fit_leave_no_run_behind(toys, tmp_path, capsys):
    options = {"model": "unet", "model_options": {"channels": [2, 2], "depth": 1}}
    run = tmp_path / "run"
    assert cli.main(arguments(run, 1, data_options={"size": 7}, **options)) == 1
    assert "each spatial axis must be a multiple of 2, the image's are (7, 7)" in (
        capsys.readouterr().err
    )
    assert not run.exists()
    assert cli.main(arguments(run, 1, data_options={"size": 8}, **options)) == 0


def write_folder(root, shape, count=5):
    nibabel = pytest.importorskip("nibabel")
    random = np.random.default_rng(0)
    for case in range(count):
        for name, high in ((f"imagesTr/c{case}_0000", 300), (f"labelsTr/c{case}", 2)):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            volume = nibabel.Nifti1Image(random.integers(0, high, shape, np.int16), np.eye(4))
            nibabel.save(volume, root / f"{name}.nii.gz")
    names = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "lesion": 1}}
    (root / "dataset.json").write_text(json.dumps({**names, "file_ending": ".nii.gz"}))


def test_what_ct_is_normalised_by_is_measured_once_and_kept(toys, tmp_path, monkeypatch):
    root, run = tmp_path / "Dataset1", tmp_path / "run"
    write_folder(root, (4, 4, 4))
    measured = CaseFolder(root, "train").fingerprint
    assert cli.main(arguments(run, 2, data=str(root), batch_size=2)) == 0
    (kept,) = json.loads((run / "config.json").read_text())["data_options"]["fingerprint"]
    assert kept == list(astuple(measured[0]))

    def again(*args):
        raise AssertionError("measured again")

    monkeypatch.setattr("revgrad.models.data.folder.case_folder.measure_fingerprint", again)
    assert cli.main(["train", "--resume", "--output", str(run), "--steps", "3"]) == 0
    assert cli.main(["evaluate", str(run), "--samples", "2"]) == 0


def test_a_run_keeps_the_axes_of_its_folder(toys, tmp_path):
    root, run = tmp_path / "Dataset1", tmp_path / "run"
    write_folder(root, (4, 4))
    assert cli.main(arguments(run, 1, data=str(root), batch_size=2)) == 0
    facts = checkpoint.load(run / "best.safetensors").facts
    assert facts["shape"] == [2, 1, 2] and facts["config"]["data_options"]["spatial_dims"] == 2
    write_folder(root, (4, 4, 4), count=1)  # which makes the folder 3D
    assert CaseFolder(root).spatial_dims == 3
    assert checkpoint.load_dataset(run, "test").spatial_dims == 2


def test_images_of_another_type_are_trained_on_in_that_of_the_run(toys, tmp_path, monkeypatch):
    get = toys.Discs.__getitem__

    def doubled(self, index):
        case = get(self, index)
        return replace(case, image=case.image.double())

    monkeypatch.setattr(toys.Discs, "__getitem__", doubled)
    assert cli.main(arguments(tmp_path, 2)) == 0
