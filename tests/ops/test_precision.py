"""Matrix products in full precision, whatever the program allows elsewhere."""

import pytest
import torch

from revgrad.ops.precision import full_precision


@pytest.mark.parametrize("setting", ["highest", "high", "medium"])
def test_full_inside_and_as_before_outside(setting):
    torch.set_float32_matmul_precision(setting)
    backends = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul
    try:
        before = [b.fp32_precision for b in backends]
        a = torch.randn(32, 32)
        with torch.autocast("cpu", torch.bfloat16), full_precision(a.device):
            assert all(b.fp32_precision in ("none", "ieee") for b in backends)
            assert (a @ a).dtype == torch.float32
        assert [b.fp32_precision for b in backends] == before
        assert torch.get_float32_matmul_precision() == setting
    finally:
        torch.set_float32_matmul_precision("highest")


def test_restored_after_an_error():
    before = torch.backends.cuda.matmul.fp32_precision
    with pytest.raises(RuntimeError), full_precision(torch.device("meta")):
        raise RuntimeError
    assert torch.backends.cuda.matmul.fp32_precision == before


def test_settings_that_were_inherited_still_are():
    matmul = torch.backends.cuda.matmul
    matmul.fp32_precision = "none"
    torch.backends.fp32_precision = "tf32"
    try:
        with full_precision(torch.device("cpu")):
            assert matmul.fp32_precision == "ieee"
        assert matmul.fp32_precision == "tf32"
        torch.backends.fp32_precision = "ieee"
        assert matmul.fp32_precision == "ieee"
    finally:
        torch.backends.fp32_precision = "none"
        torch.set_float32_matmul_precision("highest")


def test_threads_that_overlap():
    torch.set_float32_matmul_precision("high")
    matmul, cpu = torch.backends.cuda.matmul, torch.device("cpu")
    try:
        first, second = full_precision(cpu), full_precision(cpu)
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        assert matmul.fp32_precision == "ieee"
        second.__exit__(None, None, None)
        assert matmul.fp32_precision == "tf32"
    finally:
        torch.set_float32_matmul_precision("highest")
