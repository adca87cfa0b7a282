"""A case refuses what does not fit together, and says which case it is."""

import numpy as np
import pytest
import torch

from revgrad.models.data import Case

IMAGE, MASKS = torch.zeros(1, 6, 5), torch.zeros(3, 6, 5, dtype=torch.uint8)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64])
def test_labels_may_be_any_integers(dtype):
    case = Case(IMAGE, MASKS.to(dtype), "scan 7", "p", torch.ones(3) / 3)
    assert case.annotators.dtype == dtype
    volume = torch.zeros(2, 4, 6, 5, dtype=torch.float64)
    assert Case(volume, MASKS[:, None].expand(3, 4, 6, 5), "scan 7", "p").weights is None


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"image": np.zeros((1, 6, 5))}, TypeError, "image must be a torch.Tensor, not ndarray"),
        ({"annotators": [0, 1]}, TypeError, "annotators must be a torch.Tensor, not list"),
        ({"image": None}, TypeError, "image must be a torch.Tensor, not NoneType"),
        ({"weights": [0.5, 0.25, 0.25]}, TypeError, "weights must be a torch.Tensor"),
        ({"image": IMAGE.byte()}, TypeError, "image must be float32, .*, not torch.uint8"),
        ({"annotators": MASKS.float()}, TypeError, "integer labels, .*, not torch.float32"),
        ({"annotators": MASKS.bool()}, TypeError, "integer labels, .*, not torch.bool"),
        ({"image": IMAGE[0]}, ValueError, r"not \(6, 5\) and \(3, 6, 5\)"),
        ({"annotators": MASKS[0]}, ValueError, r"not \(1, 6, 5\) and \(6, 5\)"),
        ({"annotators": MASKS.mT}, ValueError, r"not \(1, 6, 5\) and \(3, 5, 6\)"),
        ({"annotators": MASKS.sum()}, ValueError, r"not \(1, 6, 5\) and \(\)"),
        ({"annotators": MASKS[:0]}, ValueError, "has no annotator"),
        ({"weights": torch.ones(2)}, ValueError, r"must be \(3,\), .*, not \(2,\)"),
        ({"weights": torch.ones(3, 1)}, ValueError, r"not \(3, 1\)"),
    ],
)
def test_what_does_not_fit_is_named(changes, error, message):
    with pytest.raises(error, match=f"case 'scan 7': .*{message}"):
        Case(**{"image": IMAGE, "annotators": MASKS, "name": "scan 7", "patient": "p", **changes})
