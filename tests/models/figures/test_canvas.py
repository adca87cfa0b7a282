import pytest

from revgrad.models.figures import save
from revgrad.models.figures.canvas import class_colors, empty_figure

pytest.importorskip("matplotlib")


@pytest.mark.parametrize(
    ("suffix", "start"), [(".png", b"\x89PNG"), (".pdf", b"%PDF"), (".svg", b"<?xml")]
)
def test_the_suffix_says_the_format(tmp_path, suffix, start):
    path = save(empty_figure(1, 1), tmp_path / f"figure{suffix}")
    assert path.read_bytes().startswith(start)
    assert [*tmp_path.iterdir()] == [path]


def test_a_figure_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    figure = empty_figure(1, 1)
    path = tmp_path / "figure.png"
    path.write_bytes(b"before")

    def fail(name, **options):
        with open(name, "wb") as file:
            file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(figure, "savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        save(figure, path)
    assert [*tmp_path.iterdir()] == [path] and path.read_bytes() == b"before"


def test_an_unknown_format_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"must end in one of .*'png'.*, not figure.gif2"):
        save(empty_figure(1, 1), tmp_path / "figure.gif2")
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("count", [1, 7, 8, 24])
def test_every_class_has_its_own_colour(count):
    assert len(set(class_colors(count))) == count
