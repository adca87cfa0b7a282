"""Small folders in nnU-Net's layout, written for tests."""

import json

import nibabel
import numpy as np
import pytest

AFFINE = ((-0.7, 0, 0, 12), (0, -0.8, 0, -7), (0, 0, 2.5, 100), (0, 0, 0, 1.0))
SHAPE = (8, 7, 5)  # as stored: columns, rows, slices


class Writer:
    """Writes cases of random content under `root`, one like another to the bit."""

    def __init__(self, root):
        self.root = root

    def nifti(self, name, array, affine=AFFINE):
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(array, np.array(affine)), path)

    def description(self, **changes):
        content = {
            "channel_names": {"0": "MR"},
            "labels": {"background": 0, "lesion": 1},
            "file_ending": ".nii.gz",
            "annotators": ["r1", "r2"],
            **changes,
        }
        kept = {key: value for key, value in content.items() if value is not None}
        (self.root / "dataset.json").write_text(json.dumps(kept), encoding="utf-8")

    def image(self, case, channel=0):
        rng = np.random.default_rng((case, channel))
        return rng.integers(-100, 200, SHAPE).astype(np.int16)

    def mask(self, case, annotator):
        rng = np.random.default_rng((7, case, annotator))
        return (rng.random(SHAPE) > 0.8).astype(np.uint8)

    def cases(self, count, part="Tr", suffixes=("_r1", "_r2"), channels=1, ending=".nii.gz"):
        for case in range(count):
            name = f"{part}{case}"
            for channel in range(channels):
                file = f"images{part}/{name}_{channel:04d}{ending}"
                self.nifti(file, self.image(case, channel))
            for number, suffix in enumerate(suffixes):
                self.nifti(f"labels{part}/{name}{suffix}{ending}", self.mask(case, number))


@pytest.fixture
def folder(tmp_path):
    """A folder of two cases and two annotators."""
    writer = Writer(tmp_path)
    writer.cases(2)
    writer.description()
    return writer
