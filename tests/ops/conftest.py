"""The axis `backend`: the same operators in plain PyTorch, C++, simulated CUDA and CUDA."""

import gc
import importlib.util
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from revgrad.ops import kernels

ROOT = Path(__file__).parents[2]
BACKENDS = ["reference", "cpu", "simt", pytest.param("cuda", marks=pytest.mark.cuda)]


@dataclass
class Backend:
    name: str

    @property
    def device(self):
        return "cuda" if self.name == "cuda" else "cpu"


@pytest.fixture(params=BACKENDS)
def backend(request, monkeypatch):
    """Make the public operators run on one executor, and on that one alone."""
    if request.param == "reference":
        monkeypatch.setattr(kernels, "_state", kernels.State("for this test", wanted=False))
    else:
        assert kernels.load().problem is None, "the kernels are not built: make kernels"
    if request.param == "simt":
        simulated = Simulated(request.getfixturevalue("simt"))
        monkeypatch.setattr(kernels, "raw", lambda: simulated)
    return Backend(request.param)


@pytest.fixture(autouse=True)
def loaded_and_no_traces_left(request):
    """Tracing keeps tensors without data, over which `revgrad.memory.measure` stumbles."""
    kernels.load()  # tests of raw operators may come first
    yield
    if any(word in request.node.name for word in ("compile", "opcheck")):
        torch._dynamo.reset()
        FakeTensorMode.cache_clear()
        gc.collect()


@pytest.fixture(scope="session")
def simt():
    """The module that runs CUDA kernels on the CPU; `make kernels` builds it."""
    folder = ROOT / os.environ.get("REVGRAD_SIMT", "build/simt")
    files = sorted(folder.glob("revgrad_simt*.so"))
    assert files, f"no simulator in {folder}: make kernels"
    spec = importlib.util.spec_from_file_location("revgrad_simt", files[0])
    module = importlib.util.module_from_spec(spec)
    sys.modules["revgrad_simt"] = module
    spec.loader.exec_module(module)
    return module


def array(t):
    """A tensor's memory as numpy sees it; numpy knows no bfloat16."""
    t = t.detach()
    return (t.view(torch.int16) if t.dtype in (torch.bfloat16, torch.float16) else t).numpy()


def name_of(t):
    return str(t.dtype).removeprefix("torch.")


def bits(t):
    return t.contiguous().view(torch.uint8) if t.numel() else t


class Simulated:
    """The raw operators' signatures over the simulator; every schedule must give the same bits."""

    def __init__(self, module):
        self.module = module

    def every_order(self, run, outputs):
        kept = None
        for order in range(self.module.orders):
            self.module.set_order(order)
            for out in outputs:
                out.fill_(torch.nan if out.is_floating_point() else -1)
            run()
            now = [bits(out).clone() for out in outputs]
            if kept is not None:
                assert all(torch.equal(a, b) for a, b in zip(kept, now, strict=True)), (
                    f"schedule {order} gives another result: a barrier is missing"
                )
            kept = now

    def orthogonal_down(self, x, q, stride, channels_last):
        return self.rotate(x, q, stride, channels_last, False)

    def orthogonal_up(self, y, q, stride, channels_last):
        return self.rotate(y, q, stride, channels_last, True)

    def rotate(self, image, q, stride, channels_last, up):
        op = torch.ops.revgrad.orthogonal_up if up else torch.ops.revgrad.orthogonal_down
        out = self.result(op, image, q, stride, channels_last)
        large, small = (out, image) if up else (image, out)
        shared, q = q.dim() == 2, q.contiguous()
        numbers = geometry(large, small, stride)
        args = (name_of(image), up, numbers, channels_last, shared)
        self.every_order(
            lambda: self.module.rotate(*args, array(image), array(q), array(out)), [out]
        )
        return out

    def orthogonal_down_exact(self, x, factors, stride, channels_last):
        return self.lift(x, factors, stride, channels_last, False)

    def orthogonal_up_exact(self, y, factors, stride, channels_last):
        return self.lift(y, factors, stride, channels_last, True)

    def lift(self, image, factors, stride, channels_last, up):
        op = getattr(torch.ops.revgrad, f"orthogonal_{'up' if up else 'down'}_exact")
        out = self.result(op, image, factors, stride, channels_last)
        numbers = geometry(*((out, image) if up else (image, out)), stride)
        args = (up, numbers, channels_last, array(image), array(factors.contiguous()), array(out))
        self.every_order(lambda: self.module.lift(*args), [out])
        return out

    def result(self, op, image, matrix, stride, channels_last):
        """An empty tensor as the operator's shape rule says."""
        shape = op(image.to("meta"), matrix.to("meta"), stride, channels_last)
        return torch.empty_strided(shape.shape, shape.stride(), dtype=shape.dtype)

    def orthogonal_weight(self, x, y, stride, shared, channels_last):
        k = x.new_empty(stride).numel()
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        grad = torch.zeros((k, k) if shared else (x.shape[1], k, k), dtype=dtype)
        if x.numel() == 0:
            return grad
        args = (name_of(x), geometry(x, y, stride), channels_last, shared)
        self.every_order(lambda: self.module.weight(*args, array(x), array(y), array(grad)), [grad])
        return grad

    def expm_skew(self, theta, save):
        batch, n, _ = theta.shape
        theta = theta.contiguous()
        result = torch.empty_like(theta)
        tape = theta.new_empty((batch if save else 0, 5, n, n))
        plan = torch.empty((batch, 2), dtype=torch.int32)
        args = (name_of(theta), batch, n, save, array(theta))
        self.every_order(
            lambda: self.module.expm_skew(*args, array(result), array(tape), array(plan)),
            [result, tape, plan],
        )
        return result, tape, plan

    def expm_skew_backward(self, grad, theta, result, tape, plan):
        batch, n, _ = theta.shape
        out = torch.empty(theta.shape, dtype=theta.dtype)
        inputs = [array(t.contiguous()) for t in (grad, theta, result, tape, plan)]
        self.every_order(
            lambda: self.module.expm_skew_backward(name_of(theta), batch, n, *inputs, array(out)),
            [out],
        )
        return out

    def norm_act(self, x, weight, bias, mean, rstd, *settings):
        y = torch.empty_like(x)
        return y, *self.norm_act_into(y, "write", x, weight, bias, mean, rstd, settings)

    def norm_act_update_(self, stream, x, weight, bias, mean, rstd, *rest):
        *settings, sign, fraction_bits = rest
        grid = (sign, fraction_bits)
        store = name_of(stream)
        return self.norm_act_into(stream, store, x, weight, bias, mean, rstd, settings, *grid)

    def norm_act_update(self, stream, x, weight, bias, mean, rstd, *rest):
        *settings, sign, fraction_bits = rest
        to, old, store = torch.empty_like(stream), stream.clone(), name_of(stream)
        args = (to, store, x, weight, bias, mean, rstd, settings, sign, fraction_bits)
        found = self.norm_act_into(*args, base=stream)
        assert torch.equal(bits(stream), bits(old)), "the stream was written to"
        return to, *found

    def norm_act_into(self, to, store, x, weight, bias, mean, rstd, settings, *grid, base=None):
        groups, over_batch, eps, activation, slope = settings
        old, given = to.clone(), (mean, rstd)
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        shape = (1 if over_batch else x.shape[0], groups)
        mean, rstd = (torch.empty(shape, dtype=wide) for _ in range(2))
        vectors = [array(x.new_empty(0) if t is None else t) for t in (weight, bias)]

        def run():
            if store != "write" and base is None:
                to.copy_(old)
            for t, source in zip((mean, rstd), given, strict=True):
                t.copy_(t if source is None else source)
            self.module.norm_act(
                name_of(x),
                numbers(x, groups, over_batch),
                array(x),
                [*vectors, array(mean), array(rstd)],
                eps,
                slope,
                activation,
                given[0] is not None,
                array(to if base is None else base),
                array(to),
                store,
                *(grid or (1, 0)),
            )

        self.every_order(run, [to, mean, rstd])
        return mean, rstd

    def norm_act_backward(self, dy, x, mean, rstd, weight, bias, *settings):
        groups, over_batch, constant, activation, slope = settings
        dy = dy if dy.dtype == x.dtype else dy.to(mean.dtype)
        dx = torch.empty_like(x)
        dweight, dbias = (torch.empty(x.shape[1], dtype=mean.dtype) for _ in range(2))
        vectors = [x.new_empty(0) if t is None else t for t in (weight, bias)]

        def run():
            self.module.norm_act_backward(
                name_of(x),
                dy.dtype != x.dtype,
                numbers(x, groups, over_batch),
                array(dy),
                array(x),
                [array(t) for t in (*vectors, mean, rstd)],
                slope,
                activation,
                constant,
                *(array(t) for t in (dx, dweight, dbias)),
            )

        self.every_order(run, [dx, dweight, dbias])
        return dx, dweight, dbias


def numbers(x, groups, over_batch):
    """What csrc/simt/norm_act.cpp takes, as csrc/norm_act_shape.h finds it."""
    pixels = x.shape[2:].numel()
    last = pixels == 1 or not (x.is_contiguous() or x.numel() == 0)
    return [*x.shape[:2], pixels, groups, over_batch, last]


def geometry(large, small, stride):
    """What csrc/simt/orthogonal.cpp takes: sizes and strides with three spatial axes."""
    missing = 3 - len(stride)
    pad = [0] * missing

    def strides(t):
        return [*t.stride()[:2], *pad, *t.stride()[2:]]

    out = [1] * missing + list(small.shape[2:])
    side = [1] * missing + list(stride)
    return [large.shape[0], large.shape[1], *out, *side, *strides(large), *strides(small)]
