"""Memory of a training step of recipes, by ordinary autograd and reversibly.

    python examples/recipes/step_memory.py examples/recipes/lidc-*phiseg.toml --sizes 32 128

A step is loss, backward pass and Adam, after a first one in which Adam makes its state. Peaks are
without the convolutions' scratch.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from revgrad.machine import facts
from revgrad.markdown import configuration, table
from revgrad.memory import MemoryReport, measure
from revgrad.models.training.command import prepare
from revgrad.models.training.config import TrainConfig, read_file

HEAD = ("images", "recipe", "autograd", "parameters", "kept for backward, MiB", "peak, MiB")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure each recipe at each size, both ways, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("recipes", nargs="+", type=Path, help="files of `revgrad train --config`")
    parser.add_argument("--sizes", nargs="+", type=int, default=[32], help="of the images (32)")
    parser.add_argument("--batch-size", type=int, default=12, help="images of a step (12)")
    args = parser.parse_args(argv)

    rows = [
        line(recipe, size, args.batch_size, save_memory)
        for size in args.sizes
        for recipe in args.recipes
        for save_memory in (False, True)
    ]
    print(table(HEAD, rows))
    print()
    print(configuration({"batch": args.batch_size, "optimizer": "Adam"}, facts()))
    return 0


def line(recipe: Path, size: int, batch_size: int, save_memory: bool) -> tuple[str, ...]:
    """A row of the table."""
    report, parameters = step_memory(recipe, size, batch_size, save_memory)
    kept, peak = report.kept_for_backward / 2**20, report.peak_without_scratch / 2**20
    way = "reversible where the network is" if save_memory else "ordinary"
    images = f"{batch_size} of {size} x {size}"
    return images, recipe.stem, way, str(parameters), f"{kept:.1f}", f"{peak:.1f}"


def step_memory(
    recipe: Path, size: int, batch_size: int, save_memory: bool
) -> tuple[MemoryReport, int]:
    """The memory of the second step, and the number of parameters."""
    values = read_file(recipe)
    # 0 threads leaves the process as many as it has: memory does not depend on them.
    values |= {"batch_size": batch_size, "save_memory": save_memory, "threads": 0}
    values["data_options"] = {**values["data_options"], "size": size, "keep": False}
    # Each network's own default: RevPHiSeg recomputes what lies between its rows.
    values["model_options"].pop("recompute_glue", None)
    training = prepare(TrainConfig.from_mapping(values, str(recipe)))
    network = training.network
    report = measure(training.take_step, network)
    return report, sum(parameter.numel() for parameter in network.parameters())


if __name__ == "__main__":
    raise SystemExit(main())
