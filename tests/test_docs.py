"""The examples of the documentation run, and what they define is right."""

import inspect
import re
from pathlib import Path

import pytest
import torch
from torch import nn

import revgrad
import revgrad.models
import revgrad.ops
from revgrad import ReversibleSequence
from revgrad.benchmarks.reliability.cases import CASES

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", *(str(p.relative_to(ROOT)) for p in sorted((ROOT / "docs").rglob("*.md")))]


def examples(page):
    """The Python blocks of a page that are whole programs (others show an ellipsis)."""
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    return [b for b in blocks if "..." not in b]


@pytest.mark.parametrize("page", PAGES)
def test_examples_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in examples(page):
        exec(block, names)


@pytest.mark.parametrize("name", ["ScaledCoupling", "HalfCoupling"])
def test_the_layers_of_the_documentation_have_right_gradients(name):
    names: dict[str, object] = {}
    for block in examples("docs/layers.md"):
        exec(block, names)
    torch.manual_seed(0)
    layer = names[name]
    subs = [nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.Dropout(0.3)) for _ in range(3)]
    net = ReversibleSequence([layer(sub) for sub in subs]).double()
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64, requires_grad=True)
    results = []
    for net.save_memory in (True, False):
        torch.manual_seed(1)
        net.zero_grad()
        x.grad = None
        net(x).pow(2).sum().backward()
        results.append([x.grad, *(p.grad for p in net.parameters())])
    for a, b in zip(*results, strict=True):
        assert (a - b).abs().max() < 1e-10


def test_the_reliability_page_has_every_case():
    text = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    for case in CASES:
        assert f"| {case.name} |" in text


@pytest.mark.parametrize("page", PAGES)
def test_links_between_pages_lead_somewhere(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!http)([^)#]+)", text):
        assert (ROOT / page).parent.joinpath(target).exists(), target


@pytest.mark.parametrize("page", PAGES)
def test_programs_and_recipes_that_a_page_names_are_there(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for name in re.findall(r"examples/[\w/.*-]+\.(?:py|toml)", text):
        assert list(ROOT.glob(name)), name


@pytest.mark.parametrize(
    "module",
    [revgrad, revgrad.nn, revgrad.memory, revgrad.ops, revgrad.models],
    ids=lambda m: m.__name__,
)
def test_the_reference_lists_all_that_is_public(module):
    pages = "".join(p.read_text(encoding="utf-8") for p in (ROOT / "docs" / "api").glob("*.md"))
    listed = set(re.findall(r"auto(?:class|function|exception):: revgrad[\w.]*\.(\w+)", pages))
    modules = {n for n in module.__all__ if inspect.ismodule(getattr(module, n))}
    assert set(module.__all__) - modules - {"__version__"} <= listed
