import json

import pytest
import torch

from revgrad.models.figures import Estimate, ged_against_n, read_log, training_curves

pytest.importorskip("matplotlib")


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def line(axes, label):
    (found,) = [line for line in axes.lines if line.get_label() == label]
    return found


@pytest.fixture
def models():
    return {
        "PHiSeg": {4: (0.3, 0.25, 0.4), 1: (0.5, 0.45, 0.6), 16: Estimate(0.2, 0.1, 0.3)},
        "RevPHiSeg": {1: (0.52, 0.5, 0.55), 16: (0.21, 0.2, 0.22)},
    }


def test_ged_has_a_line_with_intervals_for_each_model(models):
    figure = ged_against_n(models, caption="what it is")
    (axes,) = figure.axes
    assert figure.get_suptitle() == "what it is"
    assert set(legend(figure)) == {"PHiSeg", "RevPHiSeg"}
    first, second = axes.containers
    assert first.lines[0].get_xydata().tolist() == [[1, 0.5], [4, 0.3], [16, 0.2]]
    spans = [path.vertices[:, 1].tolist() for path in first.lines[2][0].get_paths()]
    assert torch.allclose(torch.tensor(spans), torch.tensor([[0.45, 0.6], [0.25, 0.4], [0.1, 0.3]]))
    # Beside the first, so that neither hides the other, and not as far as the next number.
    places = torch.tensor(list(second.lines[0].get_xdata()))
    assert (places > torch.tensor([1, 16])).all() and (places < torch.tensor([1.1, 17.6])).all()
    assert [text.get_text() for text in axes.get_xticklabels()] == ["1", "4", "16"]
    assert axes.get_ylim()[0] == 0
    assert first.lines[0].get_color() != second.lines[0].get_color()


def test_ged_has_the_perfect_model_and_baselines(models):
    baselines = {"majority mask": 0.4, "thresholding": 0.6}
    figure = ged_against_n(models, perfect={16: 0.1, 1: 0.3}, baselines=baselines, caption="")
    (axes,) = figure.axes
    assert line(axes, "perfect model").get_xydata().tolist() == [[1, 0.3], [16, 0.1]]
    for name, height in baselines.items():
        assert set(line(axes, name).get_ydata()) == {height}
    styles = [line(axes, name).get_linestyle() for name in (*baselines, "perfect model")]
    assert len(set(styles)) == 3
    assert set(legend(figure)) == {*models, *baselines, "perfect model"}


@pytest.mark.parametrize(
    ("found", "message"),
    [({}, "no model"), ({"a": {4: (0.5, 0.6, 0.7)}}, "a at 4 samples: 0.5 is not in its interval")],
)
def test_ged_says_what_is_wrong(found, message):
    with pytest.raises(ValueError, match=message):
        ged_against_n(found, caption="")


def records(steps=200, levels=2):
    generator = torch.Generator().manual_seed(0)
    for step in range(1, 1 + steps):
        noise = torch.rand(1 + 2 * levels, generator=generator).tolist()
        record = {
            "step": step,
            "loss": 5 + noise[0],
            "reconstruction": noise[1 : 1 + levels],
            "kl": noise[1 + levels :],
        }
        if step % 50 == 0:
            record["validation_ged"] = 1 / step if step < 200 else 0.5
        yield record


def test_training_curves_show_every_level_and_the_best_ged(tmp_path):
    log = tmp_path / "log.jsonl"
    log.write_text("".join(json.dumps(record) + "\n" for record in records()))
    found = read_log(log)
    assert found == list(records())
    figure = training_curves(found, caption="what it is")
    loss, reconstruction, kl, ged = figure.axes
    assert figure.get_suptitle() == "what it is"
    assert legend(figure) == ["level 0", "level 1"]
    assert loss.lines[0].get_xydata().tolist() == [[r["step"], r["loss"]] for r in found]
    for axes, key in ((reconstruction, "reconstruction"), (kl, "kl")):
        raw = [axes.lines[i].get_ydata().tolist() for i in (0, 2)]
        assert torch.equal(torch.tensor(raw).T, torch.tensor([r[key] for r in found]))
        smooth = torch.tensor(axes.lines[1].get_ydata())
        exact = torch.tensor(raw[0])
        assert smooth[100].item() == pytest.approx(exact[96:105].mean().item())  # 2 % each way
        assert smooth[0].item() == pytest.approx(exact[:5].mean().item())
    assert ged.lines[0].get_xydata().tolist() == [
        [50, 1 / 50],
        [100, 0.01],
        [150, 1 / 150],
        [200, 0.5],
    ]
    assert ged.get_xlabel() == "step (best: 0.007 at 150)"


def test_what_no_record_has_is_left_out():
    figure = training_curves(
        [{"step": 1, "loss": -1.0, "kl": []}, {"step": 2, "loss": 2}], caption=""
    )
    (loss,) = figure.axes
    assert loss.get_title() == "Loss"
    assert loss.get_yscale() == "linear"  # a logarithm would hide what is below 0
    assert legend(figure) == []
    with pytest.raises(ValueError, match="no record with loss, reconstruction, kl or"):
        training_curves([{"step": 1, "kl": []}], caption="")
    with pytest.raises(ValueError, match=r"number of levels of kl: \[1, 2\]"):
        training_curves([{"step": 1, "kl": [1]}, {"step": 2, "kl": [1, 2]}], caption="")


def test_a_log_that_ends_in_the_middle_of_a_line_is_read_up_to_there(tmp_path):
    log = tmp_path / "log.jsonl"
    log.write_text('{"step": 1, "loss": 2}\n{"step": 2, "lo')
    assert read_log(log) == [{"step": 1, "loss": 2}]


@pytest.mark.parametrize("text", ['{"step": 1', '{"loss": 1}', "3"])
def test_a_line_that_is_no_record_is_named(tmp_path, text):
    log = tmp_path / "log.jsonl"
    log.write_text('{"step": 1}\n' + text + '\n{"step": 3}\n')
    with pytest.raises(ValueError, match=r"log.jsonl, line 2: no JSON"):
        read_log(log)
