"""Loading the library, doing without it, and compiling its CUDA sources."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from revgrad import info
from revgrad.ops import kernels

ROOT = Path(__file__).parents[2]

USE = """
import torch, warnings
from revgrad.ops import expm_skew, orthogonal_down, kernels
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for _ in range(2):
        orthogonal_down(torch.ones(1, 1, 2, 2), torch.eye(4), 2)
        expm_skew(torch.ones(3, 3))
for w in caught:
    print(w.category.__name__, w.message)
print("STATE", kernels.describe())
"""


def use(**env):
    done = subprocess.run(
        [sys.executable, "-c", USE],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_kernels_run_here():
    assert kernels.load().problem is None
    assert kernels.fit(torch.ones(1))
    assert info.collect()["kernels"].startswith("compiled for cpu")


def test_users_can_switch_them_off_without_a_warning():
    said = use(REVGRAD_DISABLE_KERNELS="1")
    assert "Warning" not in said
    assert "STATE none, plain PyTorch runs: switched off by REVGRAD_DISABLE_KERNELS" in said


def test_a_missing_library_is_told_once_with_the_cure(tmp_path):
    said = use(REVGRAD_LIBRARY=str(tmp_path / "_C.so"))
    assert said.count("KernelWarning") == 1
    assert "pip install --no-build-isolation" in said


def test_a_broken_library_is_told_once_with_its_error(tmp_path):
    broken = tmp_path / "_C.so"
    broken.write_text("not a library")
    said = use(REVGRAD_LIBRARY=str(broken))
    assert said.count("KernelWarning") == 1
    assert "_C.so does not load beside torch" in said


def test_other_tensors_do_not_fit():
    assert not kernels.fit(torch.ones(1, dtype=torch.int32))
    assert not kernels.fit(torch.ones(1), torch.ones(1, device="meta"))
    assert not kernels.fit(torch.ones(2, 2).to_sparse())
    assert not kernels.fit(torch.ones(2).as_subclass(type("Other", (torch.Tensor,), {})))


@pytest.mark.compiler
@pytest.mark.skipif(not shutil.which("nvcc"), reason="needs nvcc")
def test_cuda_sources_compile_without_a_warning():
    done = subprocess.run(
        [sys.executable, "csrc/build_kernels.py", "cuda"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "CUDA sources compile" in done.stdout


@pytest.mark.skipif(not shutil.which("nm"), reason="needs nm")
def test_the_library_keeps_to_the_stable_abi():
    done = subprocess.run(
        ["nm", "-D", "--undefined-only", str(kernels.library_path())],
        capture_output=True,
        text=True,
        check=True,
    )
    names = [line.split()[-1] for line in done.stdout.splitlines()]
    assert any(name.startswith("aoti_torch_") for name in names)
    assert not [n for n in names if n.startswith(("_ZN3c10", "_ZN2at", "_ZNK2at", "Py", "_Py"))]
