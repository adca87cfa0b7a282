"""The table of how trainings went."""

import json
import runpy
from pathlib import Path

FILE = Path(__file__).parents[2] / "examples" / "recipes" / "history.py"


def run(folder, records):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"batch_size": 12}))
    (folder / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(folder)


def record(step, **more):
    terms = {"reconstruction": [10.0 * step, 1.0], "kl": [], "images_per_second": 0.1}
    return {"step": step, "loss": 1.0, "peak_bytes": 1, **terms, **more}


def test_a_column_for_each_run(tmp_path, capsys):
    first = run(tmp_path / "a", [record(1), record(2, validation_ged=0.25)])
    second = run(tmp_path / "b", [record(3, validation_ged=0.5)])
    assert runpy.run_path(str(FILE))["main"]([first, second]) == 0
    lines = capsys.readouterr().out.splitlines()
    cells = {row[0]: row[1:] for row in ([c.strip() for c in s.split("|")[1:-1]] for s in lines)}
    assert cells[""] == [first, second]
    assert cells["validation GED² at step 2"] == ["0.2500", ""]
    assert cells["validation GED² at step 3"] == ["", "0.5000"]
    assert cells["reconstruction, last 100 steps"] == ["15.0 / 1.0", "30.0 / 1.0"]
    assert cells["KL, last 100 steps"] == ["", ""]
    assert cells["minutes of training steps"] == ["4.0", "2.0"]
