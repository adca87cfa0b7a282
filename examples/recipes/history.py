"""How trainings went: validation GED by step, what the loss was made of, and how long it took.

python examples/recipes/history.py runs/lidc-phiseg runs/lidc-revphiseg
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from revgrad.markdown import table
from revgrad.models.figures import read_log

LAST = 100  # steps that loss terms are averaged over
Records = Sequence[Mapping[str, Any]]


def main(argv: Sequence[str] | None = None) -> int:
    """Print a table with a column for each run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path, help="folders of runs")
    args = parser.parse_args(argv)

    columns = {str(run): column(run) for run in args.runs}
    names = dict.fromkeys(name for found in columns.values() for name in found)
    rows = [[name, *(found.get(name, "") for found in columns.values())] for name in names]
    print(table(("", *columns), rows))
    return 0


def column(run: Path) -> dict[str, str]:
    """What a run's log says, by the name of the row."""
    records = read_log(run / "log.jsonl")
    batch = json.loads((run / "config.json").read_text(encoding="utf-8"))["batch_size"]
    found = {
        f"validation GED² at step {record['step']}": f"{record['validation_ged']:.4f}"
        for record in records
        if "validation_ged" in record
    }
    found[f"reconstruction, last {LAST} steps"] = means(records, "reconstruction")
    found[f"KL, last {LAST} steps"] = means(records, "kl")
    seconds = sum(batch / record["images_per_second"] for record in records)
    found["minutes of training steps"] = f"{seconds / 60:.1f}"
    return found


def means(records: Records, key: str) -> str:
    """Each level's mean over the last steps, the finest first."""
    levels = zip(*(record[key] for record in records[-LAST:]), strict=True)
    return " / ".join(f"{fmean(level):.1f}" for level in levels)


if __name__ == "__main__":
    raise SystemExit(main())
