"""The demo's part on disagreement, with a network that draws the size of a disc."""

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from revgrad.models import LossTerms, Segmenter
from revgrad.models.data import LIDC, Case
from revgrad.models.demo import ambiguous
from revgrad.models.demo.ambiguous import QUICK, AmbiguousSettings
from revgrad.models.metrics import generalized_energy_distance
from revgrad.models.training.references import AT_CENTRE, MAJORITY, RESAMPLED, THRESHOLDING

LEARN_NOTHING = (THRESHOLDING, AT_CENTRE, MAJORITY, RESAMPLED)
SETTINGS = AmbiguousSettings(steps=60, batch=4, learning_rate=0.02, samples=8, cases=3, shown=2)


class Discs:
    """Bright discs with two annotators, who draw them smaller and larger."""

    title = "generated discs, nothing real"
    spatial_dims = 2
    in_channels = 1
    classes = ("background", "disc")

    def __init__(self, first, count):
        self.first = first
        self.patients = tuple(f"p{first + i}" for i in range(count))

    def __len__(self):
        return len(self.patients)

    def __getitem__(self, index):
        row, column = torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")
        distance = ((row - 7) ** 2 + (column - 5 - (self.first + index) % 5) ** 2).sqrt()
        return Case(
            image=(-distance / 8)[None],
            annotators=torch.stack([distance < 2.5, distance < 4.5]).to(torch.uint8),
            name=f"disc {self.first + index}",
            patient=self.patients[index],
        )


class TwoCuts(Segmenter):
    """Cuts the image at one of two learned heights, each with a share of one half."""

    def __init__(self):
        super().__init__(2, 1, 2)
        self.cut = torch.nn.Parameter(torch.tensor([-0.9, -0.1]))

    def _logits(self, image, cut):
        inside = 20 * (image[:, 0] - cut.view(-1, 1, 1))
        return torch.stack([torch.zeros_like(inside), inside], 1)

    def loss(self, image, masks):
        self.check_masks(image, masks)
        each = [
            F.cross_entropy(self._logits(image, cut), masks, reduction="none") for cut in self.cut
        ]
        loss = torch.stack([e.flatten(1).sum(1) for e in each]).amin(0).mean()
        return LossTerms(loss, loss.detach()[None], loss.new_zeros(0))

    def sample(self, image, n):
        assert not self.training
        which = torch.randint(2, (len(image), n))
        return torch.stack([self._logits(image, self.cut[which[:, i]]) for i in range(n)], 1)


@pytest.fixture(scope="module")
def outcome():
    return ambiguous.run(TwoCuts(), Discs(0, 10), Discs(10, 7), SETTINGS)


def test_training_makes_samples_better_than_no_learning(outcome):
    assert list(outcome.ged) == ["before training", "after training", *LEARN_NOTHING]
    assert outcome.ged["after training"] < 0.15 < outcome.ged[MAJORITY]
    assert outcome.ged["after training"] < outcome.ged["before training"]
    assert len(outcome.losses) == 60 and outcome.losses[-1] < outcome.losses[0] / 2
    assert outcome.network == "TwoCuts" and outcome.parameters == 2


def test_the_score_is_that_of_the_shown_samples(outcome):
    assert [case.name for case in outcome.shown] == ["disc 10", "disc 12"]
    assert [tuple(drawn.shape) for drawn in outcome.probabilities] == [(8, 2, 16, 16)] * 2
    one = AmbiguousSettings(**{**vars(SETTINGS), "cases": 1, "shown": 1})
    again = ambiguous.run(TwoCuts(), Discs(0, 10), Discs(10, 1), one)
    (drawn,) = again.probabilities
    expected = generalized_energy_distance(
        drawn.argmax(1), again.shown[0].annotators, num_classes=2
    )
    assert again.ged["after training"] == expected.item()
    assert torch.equal(drawn, outcome.probabilities[0])  # same seed, same training, same case
    assert again.losses == outcome.losses


def test_global_random_numbers_are_left_alone():
    state = torch.get_rng_state()
    ambiguous.run(TwoCuts(), Discs(0, 3), Discs(3, 1), SETTINGS)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_report_says_what_the_data_are(outcome, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    ambiguous.write(outcome, tmp_path)
    printed = capsys.readouterr().out
    assert "generated discs, nothing real: TwoCuts, 2 parameters, 60 steps of 4" in printed
    for name, distance in outcome.ged.items():
        assert f"| {name} " in printed and f"| {distance:.3f} " in printed
    facts = json.loads((tmp_path / "samples.json").read_text())
    assert facts["ged"] == outcome.ged and facts["data"] == Discs.title
    assert facts["configuration"]["steps"] == 60 and facts["machine"]["cpu"]
    assert (tmp_path / "samples.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_there_are_scores_and_a_hint(outcome, tmp_path, capsys, no_matplotlib):
    ambiguous.write(outcome, tmp_path)
    assert "pip install 'revgrad[train]'" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["samples.json"]


def test_the_demos_network_learns_from_the_radiologists():
    settings = replace(QUICK, steps=25, batch=4, channels=(8, 16), learning_rate=1e-2)
    network = ambiguous.small_network(LIDC("val", size=32), settings)
    twin = ambiguous.small_network(LIDC("val", size=32), settings)
    for one, other in zip(network.parameters(), twin.parameters(), strict=True):
        assert torch.equal(one, other)
    cases = [LIDC("val", size=32)[index] for index in range(4)]
    found = ambiguous._train(network, cases, settings)
    assert sum(found[-5:]) < sum(found[:5]) / 2


@pytest.mark.parametrize(
    ("training", "held_out", "message"),
    [
        ((0, 3), (2, 3), r"in training and held out: \['p2'\]"),
        ((0, 0), (2, 3), "there must be cases"),
        ((0, 3), (2, 0), "there must be cases"),
    ],
)
def test_says_what_is_wrong(training, held_out, message):
    with pytest.raises(ValueError, match=message):
        ambiguous.run(TwoCuts(), Discs(*training), Discs(*held_out), SETTINGS)
