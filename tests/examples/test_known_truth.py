"""The recipes of the known truth and the example that reports on what they trained."""

import importlib.util
import json
from pathlib import Path

import pytest

from revgrad import cli

EXAMPLES = Path(__file__).parents[2] / "examples"
RECIPES = sorted((EXAMPLES / "recipes").glob("scenes-*.toml"))


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("known_truth", EXAMPLES / "known_truth.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def train(recipe, output):
    flags = ["--steps", "1", "--validation-cases", "1", "--validation-samples", "1"]
    flags += ["--batch-size", "2", "--data-options", '{"count": 2}', "--output", str(output)]
    return cli.main(["train", "--config", str(recipe), *flags])


def test_every_recipe_trains_and_is_reported_on(example, tmp_path, capsys):
    assert len(RECIPES) == 3
    runs = [tmp_path / recipe.stem for recipe in RECIPES]
    for recipe, run in zip(RECIPES, runs, strict=True):
        assert train(recipe, run) == 0
    output = tmp_path / "known-truth"
    assert example.main([*map(str, runs), "--samples", "2", "--output", str(output)]) == 0
    page = output.with_suffix(".md").read_text()
    assert page in capsys.readouterr().out
    record = json.loads(output.with_suffix(".json").read_text())
    assert list(record["runs"]) == [run.name for run in runs]
    for name, found in record["runs"].items():
        assert name in page and found["training"].startswith("1 steps, ")
        assert sum(found["frequencies"]) == pytest.approx(1)
        assert len(found["whole"]) == 5


def test_a_folder_without_a_run_is_refused(example, tmp_path, capsys):
    with pytest.raises(SystemExit):
        example.main([str(tmp_path)])
    assert str(tmp_path) in capsys.readouterr().err
