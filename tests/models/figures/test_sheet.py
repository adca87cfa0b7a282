"""What stands on a sheet, by its artists: not by its pixels."""

import math
from dataclasses import replace

import pytest
import torch

from revgrad.models import uncertainty_maps
from revgrad.models.data import Case
from revgrad.models.figures import sheet

pytest.importorskip("matplotlib")
TWO = ("background", "nodule")


def panels(figure):
    """Panels by title, of the first row; scales have none."""
    return {axes.get_title(): axes for axes in figure.axes if axes.get_title()}


def outlines(axes):
    return [edge for edge in axes.collections if edge.get_paths()]


def shown(axes, index=-1):
    return torch.as_tensor(axes.images[index].get_array().filled())


def draw(case, drawn, **options):
    return sheet([case], [drawn], **{"classes": TWO, "caption": "what it is", **options})


def test_a_row_has_image_annotators_samples_mean_and_maps(case, drawn):
    figure = draw(case, drawn, maps=("predictive_entropy", "cross_entropy"))
    found = panels(figure)
    assert list(found) == [
        "image",
        *(f"annotator {i}" for i in (1, 2, 3)),
        *(f"sample {i}" for i in (1, 2, 3, 4)),
        "P(nodule)",
        "entropy of mean",
        "cross-entropy",
    ]
    assert figure.get_suptitle() == "what it is"
    assert found["image"].get_ylabel() == "scan 7"
    expected = uncertainty_maps(drawn[None])
    assert torch.equal(shown(found["P(nodule)"]), expected.mean[0, 1])
    assert found["P(nodule)"].images[0].get_clim() == (0, 1)
    assert torch.equal(shown(found["cross-entropy"]), expected.cross_entropy[0])


@pytest.mark.parametrize(
    ("title", "radius"), [("annotator 1", 3), ("annotator 3", 5), ("sample 1", 2)]
)
def test_an_outline_goes_around_its_mask(case, drawn, title, radius):
    (edge,) = outlines(panels(draw(case, drawn))[title])
    points = torch.as_tensor(edge.get_paths()[0].vertices)
    distance = (points - torch.tensor([20.0, 12.0])).norm(dim=1)
    assert distance.min() > radius - 1 and distance.max() == radius + 0.5
    assert panels(draw(case, drawn))[title].images[0].get_cmap().name == "gray"


def test_an_empty_sample_and_a_full_one_have_no_outline(case, drawn):
    full = drawn.roll(1, 0)  # the empty one comes first
    full[1] = torch.tensor([0.0, 1.0]).view(2, 1, 1)
    found = panels(draw(case, full))
    assert [len(outlines(found[f"sample {i}"])) for i in (1, 2, 3)] == [0, 0, 1]


def test_with_a_margin_panels_show_what_is_marked_and_the_first_one_where(case, drawn):
    found = panels(draw(case, drawn, margin=3))
    (frame,) = found["image"].patches
    assert shown(found["image"]).shape == (32, 32)
    x, y = frame.get_xy()
    width, height = frame.get_width(), frame.get_height()
    assert width == height == 11 + 2 * 3
    assert (x, y) == (20 - 5 - 3 - 0.5, 12 - 5 - 3 - 0.5)
    for title in ("annotator 1", "sample 1", "P(nodule)", "mutual information"):
        assert shown(found[title]).shape == (height, width)
    region = (slice(int(y + 0.5), int(y + 0.5 + height)), slice(int(x + 0.5), int(x + 0.5 + width)))
    assert torch.equal(shown(found["P(nodule)"]), drawn.mean(0)[1][region])


def test_a_long_name_is_wrapped(case, drawn):
    long = replace(case, name="scan 85 annotation 738 slice 220")
    label = panels(draw(long, drawn))["image"].get_ylabel()
    assert label == "scan 85 annotation 738\nslice 220"


def test_the_part_stays_square_at_the_edge_and_no_larger_than_the_image(case, drawn):
    def moved(shift, margin):
        annotators = case.annotators.roll(shift, (1, 2))
        probabilities = drawn.roll(shift, (2, 3))
        found = panels(draw(replace(case, annotators=annotators), probabilities, margin=margin))
        (edge,) = outlines(found["annotator 3"])
        assert len(edge.get_paths()) == 1  # all of it is inside
        return shown(found["annotator 3"]).shape

    assert moved((-7, 6), 4) == moved((13, -14), 4) == (19, 19)
    assert moved((0, 0), 10) == (31, 31)
    assert moved((0, 0), 11) == (32, 32)


def test_nothing_marked_shows_everything(case, drawn):
    nothing = replace(case, annotators=torch.zeros_like(case.annotators))
    found = panels(draw(nothing, drawn[4:], margin=3))
    assert shown(found["sample 1"]).shape == (32, 32)
    assert not found["image"].patches


def test_annotators_may_be_ragged_and_scales_are_shared(case, drawn):
    fewer = replace(case, annotators=case.annotators[:1], name="scan 8")
    unsure = drawn * 0 + 0.5
    figure = sheet([fewer, case], [drawn, unsure], classes=TWO, caption="")
    rows = [axes for axes in figure.axes if axes.images]
    assert [axes.get_ylabel() for axes in rows if axes.get_ylabel()] == ["scan 8", "scan 7"]
    assert len([axes for axes in rows if outlines(axes)]) == 1 + 3 + 4  # all of `unsure` is class 0
    entropy = [axes for axes in rows if axes.images[0].get_clim() == (0, math.log(2))]
    assert len(entropy) == 2


def test_a_volume_is_shown_by_its_fullest_slice(case, drawn):
    volume = torch.zeros(3, 6, 32, 32, dtype=torch.uint8)
    volume[:, 2], volume[0, 4] = case.annotators, case.annotators[0]
    probabilities = drawn[:, :, None].repeat(1, 1, 6, 1, 1)
    image = torch.rand(1, 6, 32, 32)
    tall = Case(image, volume, name="volume", patient="p")
    found = panels(draw(tall, probabilities))
    assert found["image"].get_ylabel() == "volume\nslice 2"
    span = image[0, 2].max() - image[0, 2].min()
    torch.testing.assert_close(shown(found["image"]), (image[0, 2] - image[0, 2].min()) / span)
    last = Case(image.movedim(1, -1), volume.movedim(1, -1), name="volume", patient="p")
    found = panels(draw(last, probabilities.movedim(2, -1), slice_axis=2))
    assert found["image"].get_ylabel() == "volume\nslice 2"
    assert len(outlines(found["annotator 3"])) == 1


def test_classes_have_colours_and_probable_annotators_come_first(case):
    labels = torch.zeros(3, 8, 10, dtype=torch.long)
    labels[0, :4], labels[1, 4:], labels[2, :, :5] = 1, 2, 3
    labels[:, 7, 9] = 255  # ignored: not drawn
    weights = torch.tensor([0.2, 0.5, 0.3])
    street = Case(torch.rand(3, 8, 10), labels, name="street", patient="p", weights=weights)
    drawn = torch.eye(4)[labels.clamp_max(3)].movedim(-1, 1)
    figure = draw(street, drawn, classes=("void", "road", "car", "sky"))
    found = panels(figure)
    assert shown(found["image"]).shape == (8, 10, 3)
    under = torch.as_tensor(found["annotator 1"].images[0].get_array().filled())
    torch.testing.assert_close(under, shown(found["image"]).mean(-1))  # grey under the colours
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["road", "car", "sky"]
    painted = {i: torch.as_tensor(found[f"annotator {i}"].images[1].get_array()) for i in (1, 2, 3)}
    assert (painted[1][..., 3] > 0).sum() == (labels[1] == 2).sum()
    assert (painted[3][..., 3] > 0).sum() == (labels[0] == 1).sum()
    colors = [torch.tensor(patch.get_facecolor()) for patch in figure.legends[0].get_patches()]
    assert torch.allclose(painted[1][5, 0, :3].float(), colors[1][:3].float(), atol=0.01)
    mixture = sum(color[:3] for color in (colors[0], colors[2])) / 3 + 0.15 / 3
    assert torch.allclose(torch.as_tensor(found["mean"].images[0].get_array())[0, 0].float(),
                          mixture.float(), atol=0.01)  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cases": []}, "nothing to draw: no case"),
        ({"probabilities": []}, "1 cases and probabilities of 0"),
        ({"shown": 0}, "shown must be at least 1"),
        ({"maps": ("mean",)}, r"maps must be among \['predictive_entropy'"),
        (
            {"classes": ("a", "b", "c")},
            r"scan 7: probabilities must be \(n, 3, 32, 32\), .*got \(5, 2, 32",
        ),
    ],
)
def test_says_what_is_wrong(case, drawn, change, message):
    options = {"cases": [case], "probabilities": [drawn], "classes": TWO, "caption": "", **change}
    with pytest.raises(ValueError, match=message):
        sheet(options.pop("cases"), options.pop("probabilities"), **options)
