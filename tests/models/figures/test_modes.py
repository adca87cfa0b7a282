import pytest
import torch

from revgrad.models.figures import mode_shares

pytest.importorskip("matplotlib")


@pytest.fixture
def arguments():
    return {
        "models": {"PHiSeg": torch.tensor([0.1, 0.5, 0.4]), "U-Net": torch.tensor([0.0, 1.0, 0.0])},
        "truth": torch.tensor([0.2, 0.5, 0.3]),
        "switches": ["road", "car"],
        "switch_truth": torch.tensor([0.4, 0.25]),
        "switched": {"PHiSeg": torch.tensor([0.3, 0.3]), "U-Net": torch.tensor([0.0, 0.0])},
        "caption": "what it is",
    }


def heights(axes):
    return torch.tensor([bar.get_height() for bar in axes.containers[0]])


def values(axes):
    return torch.tensor([line.get_ydata().tolist() for line in axes.lines])


def test_modes_stand_in_order_of_truth_and_switches_beside_them(arguments):
    figure = mode_shares(**arguments)
    modes, switches = figure.axes
    assert figure.get_suptitle() == "what it is"
    assert [text.get_text() for text in modes.get_xticklabels()] == ["1", "2", "0"]
    assert torch.equal(heights(modes), arguments["truth"][[1, 2, 0]])
    assert torch.equal(values(modes), torch.tensor([[0.5, 0.4, 0.1], [1.0, 0.0, 0.0]]))
    assert [text.get_text() for text in switches.get_xticklabels()] == ["road", "car"]
    assert torch.equal(heights(switches), arguments["switch_truth"])
    assert torch.equal(values(switches), torch.stack([*arguments["switched"].values()]))
    assert {text.get_text() for text in figure.legends[0].get_texts()} == {
        "truth",
        "PHiSeg: total variation 0.100",
        "U-Net: total variation 0.500",
    }


def test_with_draws_bars_show_how_far_chance_goes(arguments):
    modes = mode_shares(**arguments, draws=400).axes[0]
    (bars,) = [found for found in modes.containers if hasattr(found, "errorbar")]
    ends = bars.errorbar.lines[2][0].get_paths()[0].vertices[:, 1].tolist()
    assert ends == pytest.approx([0.5 - 2 * 0.025, 0.5 + 2 * 0.025])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"models": {}, "switched": {}}, "no model"),
        ({"switched": {}}, "are not the same"),
        ({"switches": ["road"]}, r"switch_truth must have a number for each of \['road'\]"),
    ],
)
def test_says_what_is_wrong(arguments, change, message):
    with pytest.raises(ValueError, match=message):
        mode_shares(**{**arguments, **change})


def test_refuses_another_number_of_modes(arguments):
    with pytest.raises(ValueError, match="differ in the number of modes"):
        mode_shares(**{**arguments, "truth": torch.tensor([0.5, 0.5])})
