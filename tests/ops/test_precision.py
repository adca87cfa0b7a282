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
            assert [b.fp32_precision for b in backends] == ["ieee", "ieee"]
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
