"""The measurement of the recipes' training steps."""

import runpy
from pathlib import Path

from torch import get_num_threads as torch_threads

RECIPES = Path(__file__).parents[2] / "examples" / "recipes"


def test_a_reversible_network_keeps_less_and_only_reversibly(capsys):
    main = runpy.run_path(str(RECIPES / "step_memory.py"))["main"]
    before = torch_threads()
    pair = [str(RECIPES / f"lidc-{name}.toml") for name in ("phiseg", "revphiseg")]
    assert main([*pair, "--sizes", "32", "--batch-size", "6"]) == 0
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| 6 of")]
    kept = [float(line.split("|")[5]) for line in table]
    assert len(kept) == 4 and kept[0] == kept[1]
    assert kept[3] < 0.3 * kept[0] and kept[2] > kept[0]
    assert torch_threads() == before
