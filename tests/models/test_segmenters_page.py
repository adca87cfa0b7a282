"""The parameter counts that docs/segmenters.md lists."""

import re
from pathlib import Path

import torch

from revgrad import models
from revgrad.models import baselines

PAGE = Path(__file__).parents[2] / "docs" / "segmenters.md"


def test_the_table_says_what_the_networks_have():
    rows = re.findall(r"^\| `(.+\))` \| ([\d,]+) \|$", PAGE.read_text("utf-8"), re.MULTILINE)
    assert len(rows) == 12
    names = {**vars(models), **vars(baselines)}
    for expression, listed in rows:
        with torch.device("meta"):
            net = eval(expression, names)
        assert sum(p.numel() for p in net.parameters()) == int(listed.replace(",", "")), expression
