"""The CUDA kernels of normalisation, simulated and on a GPU, against the reference in float64.

tests/ops/test_norm_act.py tests the operators on every executor. Here stand the cases that these
kernels make for themselves: their ways through memory, pieces, alignment, and the choice of a plan.
"""

import importlib
import math

import pytest
import torch

from revgrad.ops import kernels

ops = importlib.import_module("revgrad.ops.norm_act")

EXECUTORS = ["simt", pytest.param("cuda", marks=pytest.mark.cuda)]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
TOLERANCE = {
    torch.float64: 1e-12,
    torch.float32: 4e-6,
    torch.bfloat16: 1.2e-2,
    torch.float16: 1.5e-3,
}
FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}

pytestmark = pytest.mark.parametrize("backend", EXECUTORS, indirect=True)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


class Case:
    """An image, its parameters and settings, and the raw operators over them."""

    def __init__(self, backend, shape, norm, groups=None, dtype=torch.float32, **options):
        self.device, self.dtype = backend.device, dtype
        self.given = options.pop("given", False)
        self.x = self.image(shape, options.pop("last", False)) * 2 + options.pop("mean", 1)
        activation = options.pop("activation", "silu")
        affine = options.pop("affine", True)
        groups = groups if norm == "group" else None
        self.settings = ops._settings(self.x, norm, groups, 1e-5, activation, 0.1)
        self.wide = torch.float64 if dtype == torch.float64 else torch.float32
        self.weight, self.bias = (self.vector(shape[1]) if affine else None for _ in range(2))
        self.statistics = (1 if norm == "batch" else shape[0], self.settings.groups)
        self.mean = self.vector(*self.statistics) if self.given else None
        self.rstd = self.vector(*self.statistics).abs() + 0.5 if self.given else None
        assert not options

    def image(self, shape, last=False, dtype=None):
        x = torch.randn(shape).to(dtype or self.dtype)
        return (x.contiguous(memory_format=FORMATS[x.dim()]) if last else x).to(self.device)

    def vector(self, *shape):
        return torch.randn(*shape, dtype=self.wide).to(self.device)

    @property
    def inputs(self):
        return self.x, self.weight, self.bias, self.mean, self.rstd

    def forward(self):
        return kernels.raw().norm_act(*self.inputs, *self.settings)

    def update_(self, stream, sign=1, fraction_bits=0):
        return kernels.raw().norm_act_update_(
            stream, *self.inputs, *self.settings, sign, fraction_bits
        )

    def backward(self, dy, mean, rstd):
        groups, over_batch, _, activation, slope = self.settings
        rest = (groups, over_batch, self.given, activation, slope)
        return kernels.raw().norm_act_backward(
            dy, self.x, mean, rstd, self.weight, self.bias, *rest
        )

    def exact(self):
        return ops.reference(*map(double, self.inputs), self.settings)

    def exact_backward(self, dy, mean, rstd):
        tensors = map(double, (dy, self.x, mean, rstd, self.weight, self.bias))
        return ops.backward_reference(*tensors, self.given, self.settings)

    def check(self):
        """Forward and backward against the reference in float64."""
        y, mean, rstd = self.forward()
        for got, want in zip((y, mean, rstd), self.exact(), strict=True):
            close(got, want, TOLERANCE[got.dtype])
        assert y.dtype == self.dtype and y.stride() == self.x.stride()
        assert mean.shape == rstd.shape == self.statistics and mean.dtype == self.wide
        dy = torch.randn_like(self.x)
        gradients = self.backward(dy, mean, rstd)
        terms = self.x.numel() / self.x.shape[1]
        for got, want in zip(gradients, self.exact_backward(dy, mean, rstd), strict=True):
            # A sum of terms of either sign is about the root of their number in size.
            least = terms**0.5 if got.dim() == 1 else 1.0
            close(got, want, 4 * TOLERANCE[got.dtype], least)
        assert gradients[0].dtype == self.dtype and gradients[0].stride() == self.x.stride()


def double(t):
    return None if t is None else t.double()


def close(got, want, tolerance, least=1.0):
    scale = want.abs().max().clamp_min(least) if want.numel() else 1
    assert got.shape == want.shape
    assert ((got.double() - want).abs() <= tolerance * scale).all()


def same_bits(a, b):
    return a.dtype == b.dtype and torch.equal(a.nan_to_num(), b.nan_to_num())


# Odd sizes; whole and broken vectors of 16 bytes; fewer and more channels than a warp has lanes.
SHAPES = {
    "odd": ((2, 6, 5, 7), 3),
    "vectors": ((2, 16, 4, 8), 2),
    "many channels": ((2, 72, 2, 3), 9),
    "one pixel": ((3, 12, 1, 1), 3),
    "prime": ((1, 5, 1, 1), 5),
    "volume": ((2, 4, 3, 2, 5), 2),
}


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("norm", ops.NORMS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_norm_layout_and_type(backend, shape, dtype, norm, last):
    shape, groups = SHAPES[shape]
    Case(backend, shape, norm, groups, dtype, last=last).check()
    options = {"given": True, "affine": False, "activation": "leaky_relu"}
    Case(backend, shape, norm, groups, dtype, last=last, **options).check()


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("activation", ops.ACTIVATIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_activation(backend, dtype, activation, last):
    for norm, groups in (("instance", None), ("group", 4)):
        case = Case(backend, (2, 8, 4, 6), norm, groups, dtype, activation=activation, last=last)
        case.x[0, 0] = 0  # where the derivative of a ReLU is a matter of convention
        case.bias[0] = 0
        case.check()


def test_features_without_pixels(backend):
    for norm, groups in (("layer", None), ("group", 3), ("batch", None)):
        for dtype in (torch.float32, torch.bfloat16):
            Case(backend, (9, 24), norm, groups, dtype).check()
            Case(backend, (9, 15), norm, groups, dtype, given=True).check()


# name: shape, norm, groups, dtype, channels-last. Each is too large for one block's registers, or
# for one block's part of the image.
LARGE = {
    "plane": ((1, 1, 33000), "instance", None, torch.float32, False),
    "odd plane": ((1, 1, 16387), "instance", None, torch.float32, False),
    "half plane": ((1, 1, 33280), "instance", None, torch.bfloat16, False),
    "batch": ((3, 1, 11000), "batch", None, torch.float32, False),
    "group": ((1, 4, 16500), "group", 2, torch.float32, False),
    "many small planes": ((1, 260, 67), "layer", None, torch.float32, False),
    "planes of pieces": ((2, 2, 16404), "instance", None, torch.float32, False),
    "one block": ((1, 1, 8196), "instance", None, torch.float32, False),
    "columns": ((1, 8, 40, 40), "instance", None, torch.float32, True),
    "odd columns": ((2, 5, 27, 23), "batch", None, torch.float16, True),
    "tiles of columns": ((1, 96, 13, 23), "group", 2, torch.float32, True),
    "rows": ((1030, 8), "layer", None, torch.float32, False),
    "a wide row": ((1, 33000), "layer", None, torch.float32, False),
}


@pytest.mark.parametrize("name", LARGE)
def test_several_blocks_a_statistic(backend, name):
    shape, norm, groups, dtype, last = LARGE[name]
    Case(backend, shape, norm, groups, dtype, last=last, activation="leaky_relu").check()


@pytest.mark.parametrize("name", ["plane", "one block", "columns"])
def test_a_large_mean_costs_no_more_than_its_rounding(backend, name):
    shape, norm, groups, dtype, last = LARGE[name]
    mean = 4096
    case = Case(backend, shape, norm, groups, dtype, last=last, mean=mean, activation="none")
    y, _, rstd = case.forward()
    want, _, exact = case.exact()
    # x stands for the double; the mean in float32 is off by half a unit in its last place.
    close(y, want, 2 * 2**-24 * mean)
    assert ((rstd / exact - 1).abs() < 1e-5).all()


def shifted(t):
    """The same numbers, one element off any alignment."""
    flat = torch.empty(t.numel() + 1, dtype=t.dtype, device=t.device)[1:]
    return flat.as_strided(t.shape, t.stride(), 1).copy_(t)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("norm", ["instance", "group", "batch"])
def test_alignment_changes_no_bit(backend, norm, last, dtype):
    case = Case(backend, (2, 16, 4, 8), norm, 2, dtype, last=last)
    stream, dy = torch.randn_like(case.x), torch.randn_like(case.x)
    kept = stream.clone()
    y, mean, rstd = case.forward()
    case.update_(stream)
    gradients = case.backward(dy, mean, rstd)
    for x_off, other_off in ((True, False), (False, True), (True, True)):
        moved = Case(backend, (2, 16, 4, 8), norm, 2, dtype, last=last)
        moved.weight, moved.bias = case.weight, case.bias
        moved.x = shifted(case.x) if x_off else case.x
        assert not x_off or moved.x.data_ptr() % 16
        assert all(map(same_bits, moved.forward(), (y, mean, rstd)))
        target = shifted(kept) if other_off else kept.clone()
        moved.update_(target)
        assert same_bits(target, stream)
        off = moved.backward(shifted(dy) if other_off else dy, mean, rstd)
        assert all(map(same_bits, off, gradients))


UPDATES = {
    "own type": lambda x: x.dtype,
    "float32": lambda x: torch.promote_types(x.dtype, torch.float32),
    "float64": lambda x: torch.float64,
    "int32": lambda x: torch.int32,
}


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("stream", UPDATES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_an_update_has_the_bits_of_its_two_steps(backend, dtype, stream, sign):
    for shape, norm, last in (
        ((2, 16, 4, 4), "instance", False),
        ((2, 16, 3, 3), "group", True),
        ((2, 6, 5, 3), "batch", False),
    ):
        for given in (False, True):
            case = Case(backend, shape, norm, 2, dtype, last=last, given=given)
            target = torch.randn_like(case.x).to(UPDATES[stream](case.x))
            bits = None
            if stream == "int32":
                bits = 20
                target = torch.randint_like(target, -(2**30), 2**30)
            y, *statistics = case.forward()
            want = ops.update_reference_(target.clone(), y, sign, bits)
            assert all(map(same_bits, case.update_(target, sign, bits or 0), statistics))
            assert target.stride() == case.x.stride()
            assert same_bits(target, want)


def test_rounding_to_the_grid_takes_ties_to_even(backend):
    # With constant statistics and no activation, the result is x itself.
    x = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 3.0, -7.25]).reshape(1, 2, 2, 2)
    case = Case(backend, tuple(x.shape), "instance", given=True, affine=False, activation="none")
    case.x = x.to(backend.device)
    case.mean, case.rstd = (t.fill_(v) for t, v in ((case.mean, 0), (case.rstd, 1)))
    stream = torch.zeros_like(case.x, dtype=torch.int32)
    case.update_(stream, 1, 0)
    assert stream.flatten().tolist() == [0, 2, 2, 0, -2, -2, 3, -7]
    case.update_(stream, -1, 0)
    assert not stream.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("last", [False, True])
def test_gradients_of_a_wider_type(backend, last, dtype):
    for norm, shape in (("instance", (2, 16, 4, 4)), ("group", (2, 6, 5, 3)), ("layer", (5, 8))):
        last = last and len(shape) == 4
        case = Case(backend, shape, norm, 2, dtype, last=last)
        _, mean, rstd = case.forward()
        dy = torch.randn_like(case.x, dtype=torch.promote_types(dtype, torch.float32))
        got, want = case.backward(dy, mean, rstd), case.exact_backward(dy, mean, rstd)
        for a, b in zip(got, want, strict=True):
            close(a, b, 4 * TOLERANCE[a.dtype])


@pytest.mark.parametrize("norm", ops.NORMS)
@pytest.mark.parametrize("shape", [(0, 4, 3, 3), (2, 4, 0, 3), (0, 4), (1, 4, 1, 1)])
def test_empty_images_and_single_numbers(backend, shape, norm):
    case = Case(backend, shape, norm, 2)
    case.check()
    _, mean, rstd = case.forward()
    if not case.x.numel():
        dx, dweight, dbias = case.backward(case.x.clone(), mean, rstd)
        assert dx.shape == shape and not dweight.any() and not dbias.any()


def test_an_infinite_number_stays_within_its_statistic(backend):
    for last in (False, True):
        case = Case(backend, (2, 8, 4, 4), "instance", last=last)
        clean = case.forward()
        case.x[1, 3, 2, 2] = math.inf
        y, mean, rstd = case.forward()
        assert not mean[1, 3].isfinite()
        y[1, 3], mean[1, 3], rstd[1, 3] = (t[1, 3] for t in clean)
        assert all(map(same_bits, (y, mean, rstd), clean))


class TestPlan:
    """What the launchers choose, by the function that they and the simulator share."""

    SIZES = (1, 3, 31, 64, 257, 1024, 4097, 160**2, 128**3, 160**3)

    @staticmethod
    def geometry(n, c, pixels, norm, groups, last):
        groups = {"instance": c, "batch": c, "layer": 1, "group": groups}[norm]
        return [n, c, pixels, groups, norm == "batch", last or pixels == 1]

    @pytest.fixture
    def plans(self, backend, simt):
        if backend.name != "simt":
            pytest.skip("computed on the host")

        def every(dtype):
            for pixels in self.SIZES:
                for n, c, groups in ((1, 1, 1), (2, 32, 8), (16, 48, 3), (1, 1023, 11)):
                    for norm in ops.NORMS:
                        for last in (False, True):
                            yield self.geometry(n, c, pixels, norm, groups, last)

        return simt, every

    @pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
    def test_grids_that_every_gpu_takes(self, plans, dtype):
        simt, every = plans
        for g in every(dtype):
            for given in (False, True):
                p = simt.norm_act_plan(dtype, g, given)
                b = simt.norm_act_backward_plan(dtype, g, given)
                for threads in (p["threads"], b["threads"]):
                    assert threads <= 1024 and threads % 32 == 0
                for blocks in (p["blocks"], p["moment_blocks"], b["channel_blocks"]):
                    assert 0 <= blocks < 2**31
                assert p["held"] or given or p["moment_blocks"] > 0
                assert p["unit"] in (1, 16 // getattr(torch, dtype).itemsize)

    def test_pieces_cover_their_length_and_are_none_too_many(self, plans):
        simt, every = plans
        for g in every("float32"):
            p = simt.norm_act_plan("float32", g, False)
            n, c, pixels, groups, over_batch, last = g
            if p["held"]:
                assert p["pieces"] == 0
                continue
            rows = (n if over_batch else 1) * pixels
            length = rows if last else rows * (c // groups) // p["unit"]
            assert p["piece"] * (p["pieces"] - 1) < length <= p["piece"] * p["pieces"]
            statistics = groups if over_batch else n * groups
            assert p["moment_blocks"] <= 2048 + max(statistics, n * c)

    def test_one_large_plane_fills_a_large_gpu(self, plans):
        simt, _ = plans
        for dtype in ("float32", "bfloat16"):
            for last in (False, True):
                g = self.geometry(1, 1 if not last else 8, 160**3, "instance", 1, last)
                p = simt.norm_act_plan(dtype, g, False)
                assert p["moment_blocks"] >= 3 * 132  # three for each multiprocessor

    @pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
    def test_what_a_block_can_hold_is_read_once(self, plans, dtype):
        simt, _ = plans
        for pixels in (1, 16, 64**2, 128**2, 32**3):
            for norm in ("instance", "batch"):
                if pixels == 1 and norm == "batch":
                    continue  # channels-last, whose columns are summed up first
                g = self.geometry(1, 64, pixels, norm, 1, False)
                assert simt.norm_act_plan(dtype, g, False)["held"]
        for pixels in (16, 64**2, 128**2):
            g = self.geometry(1, 64, pixels, "instance", 1, False)
            assert simt.norm_act_backward_plan(dtype, g, False)["held"]
        g = self.geometry(4096, 768, 1, "layer", 1, False)  # torch.nn.LayerNorm
        assert simt.norm_act_plan(dtype, g, False)["held"]
        assert simt.norm_act_backward_plan(dtype, g, False)["by_row"]
