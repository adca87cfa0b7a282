"""Every executor of the fused normalisation against torch's own, and its derivatives."""

import math
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from revgrad.ops import (
    kernels,
    norm_act,
    norm_act_backward,
    norm_act_update,
    norm_act_update_,
)
from revgrad.ops.norm_act import (
    ACTIVATIONS,
    NORMS,
    Settings,
    backward_reference,
    norm_act_with_statistics,
    reference,
    update_reference_,
)

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
# Of results and of gradients, relative to the largest one.
TOLERANCE = {
    torch.float64: 1e-12,
    torch.float32: 1e-5,
    torch.bfloat16: 1e-2,
    torch.float16: 1.5e-3,
}
TORCH = {
    "none": lambda z: z,
    "relu": F.relu,
    "leaky_relu": lambda z: F.leaky_relu(z, 0.2),
    "silu": F.silu,
    "gelu": F.gelu,
}
# One-element planes, odd and prime sizes, more channels than a row of lanes, long planes.
SHAPES = [(3, 4, 5, 7), (2, 6, 1, 1), (5, 14), (1, 300, 3), (2, 2, 3, 4, 5), (2, 10, 37, 31)]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def channels_last(x):
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


def image(shape, dtype=torch.float32, last=False, device="cpu"):
    x = (torch.randn(shape, dtype=torch.float64) * 2 + 1).to(dtype).to(device)
    return channels_last(x) if last else x


def affine(x, dtype=None):
    dtype = dtype or (torch.float64 if x.dtype == torch.float64 else torch.float32)
    return [torch.randn(x.shape[1], dtype=dtype, device=x.device) for _ in range(2)]


def groups_of(x, norm):
    return max(g for g in (1, 2, 5) if x.shape[1] % g == 0) if norm == "group" else None


def settings_of(x, norm, activation="none", slope=0.2):
    groups = {"layer": 1, "group": groups_of(x, norm)}.get(norm, x.shape[1])
    return Settings(groups, norm == "batch", 1e-5, ACTIVATIONS.index(activation), slope)


def by_torch(x, weight, bias, norm, activation="none"):
    """The same from torch's own functions, whose group norm fails with a bias alone."""
    weight = x.new_ones(x.shape[1]) if weight is None else weight
    if norm == "batch":
        z = F.batch_norm(x, None, None, weight, bias, training=True)
    else:  # instance norm refuses planes of one element, group norm does not
        groups = {"instance": x.shape[1], "layer": 1}.get(norm) or groups_of(x, norm)
        z = F.group_norm(x, groups, weight, bias)
    return TORCH[activation](z)


def close(got, want, tolerance):
    scale = want.double().abs().max().clamp_min(1) if want.numel() else 1
    assert ((got.double() - want.double()).abs() <= tolerance * scale).all()


def double(*tensors):
    return [t.detach().double().requires_grad_() for t in tensors]


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("shape", SHAPES)
def test_result_and_gradients_agree_with_torch(backend, shape, norm, dtype, last):
    if backend.name == "simt" and (shape == SHAPES[-1]) != (dtype == torch.float32):
        pytest.skip("slow there: one type for the large shape, the others for the small ones")
    for activation in ACTIVATIONS:
        x = image(shape, dtype, last, backend.device).requires_grad_()
        w, b = (t.requires_grad_() for t in affine(x))
        y = norm_act(
            x, w, b, norm=norm, groups=groups_of(x, norm), activation=activation, slope=0.2
        )
        exact = double(x, w, b)
        want = by_torch(*exact, norm, activation)
        close(y, want, TOLERANCE[dtype])
        assert y.dtype == dtype
        for have, expected, length in zip(y.stride(), x.stride(), x.shape, strict=True):
            assert have == expected or length == 1  # which says nothing
        g = torch.randn_like(want).to(dtype)
        # Where all deviations are zero, rounding alone decides the gradient of x.
        several = x.numel() // (shape[0] * shape[1]) > 1 or norm in ("layer", "batch")
        got, wanted = torch.autograd.grad(y, [x, w, b], g), torch.autograd.grad(want, exact, g)
        for a, e in list(zip(got, wanted, strict=True))[0 if several else 2 :]:
            close(a, e, 20 * TOLERANCE[dtype if a.dtype == dtype else torch.float32])


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradients_wider_than_the_image(backend, dtype, norm):
    x = image((2, 6, 5, 4), dtype, device=backend.device)
    w, b = affine(x)
    chosen = settings_of(x, norm, "silu")
    _, mean, rstd = norm_act_with_statistics(x, w, b, None, None, chosen)
    dy = torch.randn(x.shape, device=backend.device)
    dx, dw, db = norm_act_backward(dy, x, mean, rstd, w, b, False, chosen)
    exact = double(x, w, b)
    wanted = torch.autograd.grad(by_torch(*exact, norm, "silu"), exact, dy.double())
    assert dx.dtype == dtype and dw.dtype == db.dtype == torch.float32
    for got, want, tolerance in zip(
        (dx, dw, db), wanted, (TOLERANCE[dtype], 1e-5, 1e-5), strict=True
    ):
        close(got, want, tolerance)


@pytest.mark.parametrize("present", [(True, False), (False, True), (False, False)])
@pytest.mark.parametrize("norm", NORMS)
def test_without_weight_or_bias(backend, norm, present):
    for last in (False, True):
        x = image((2, 6, 4, 3), torch.float64, last, backend.device).requires_grad_()
        given = [t.requires_grad_() if p else None for t, p in zip(affine(x), present, strict=True)]
        used = [x, *(t for t in given if t is not None)]
        y = norm_act(x, *given, norm=norm, groups=groups_of(x, norm), activation="gelu")
        want = by_torch(x, *given, norm, "gelu")
        close(y, want, 1e-12)
        g = torch.randn_like(y)
        for a, e in zip(
            torch.autograd.grad(y, used, g), torch.autograd.grad(want, used, g), strict=True
        ):
            close(a, e, 1e-11)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("norm", NORMS)
def test_given_statistics_are_constants(backend, norm, last):
    x = image((2, 6, 4, 3), torch.float64, last, backend.device).requires_grad_()
    w, b = (t.requires_grad_() for t in affine(x))
    chosen = settings_of(x, norm, "silu")
    shape = (1 if norm == "batch" else 2, chosen.groups)
    mean, rstd = (torch.rand(shape, dtype=x.dtype, device=x.device) for _ in range(2))
    y, *same = norm_act_with_statistics(x, w, b, mean, rstd, chosen)
    want = reference(x, w, b, mean, rstd, chosen)[0]
    close(y, want, 1e-12)
    assert torch.equal(same[0], mean) and torch.equal(same[1], rstd)
    g = torch.randn_like(y)
    for a, e in zip(
        torch.autograd.grad(y, [x, w, b], g),
        torch.autograd.grad(want, [x, w, b], g),
        strict=True,
    ):
        close(a, e, 1e-11)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_update_has_the_bits_of_two_steps(backend, dtype, last):
    x = image((2, 6, 5, 7), dtype, last, backend.device)
    w, b = affine(x)
    floats = [t for t in (torch.float32, torch.float64) if torch.promote_types(t, dtype) == t]
    streams = [(dtype, None), *((t, None) for t in floats), (torch.int32, 20), (torch.int32, 0)]
    for norm, activation in (("instance", "leaky_relu"), ("group", "gelu"), ("batch", "silu")):
        chosen = settings_of(x, norm, activation)
        y, mean, rstd = norm_act_with_statistics(x, w, b, None, None, chosen)
        for sign in (1, -1):
            for kind, bits in streams:
                start = torch.randn(x.shape, device=x.device) * (2.0 ** (bits or 0))
                stream = torch.empty_like(x, dtype=kind).copy_(start)
                before, want = stream.clone(), update_reference_(stream.clone(), y, sign, bits)
                args = (stream, x, w, b, None, None, chosen)
                apart, *same = norm_act_update(*args, sign=sign, fraction_bits=bits)
                assert torch.equal(apart, want) and torch.equal(stream, before)
                assert apart.stride() == stream.stride()
                found = norm_act_update_(*args, sign=sign, fraction_bits=bits)
                assert torch.equal(stream, want)
                for statistics in (same, found):
                    assert torch.equal(statistics[0], mean) and torch.equal(statistics[1], rstd)


def test_rounding_halves_goes_to_even(backend):
    x = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 3.25, 1e9], device=backend.device)
    x = x.reshape(1, 1, 8)
    zero, one = (torch.full((1, 1), v, device=backend.device) for v in (0.0, 1.0))
    stream = torch.zeros(1, 1, 8, dtype=torch.int32, device=backend.device)
    chosen = settings_of(x, "instance")
    norm_act_update_(stream, x, None, None, zero, one, chosen, sign=1, fraction_bits=0)
    assert stream.flatten().tolist() == [0, 2, 2, 0, -2, -2, 3, 10**9]


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("norm", NORMS)
def test_evaluating_again_gives_the_same_bits(backend, norm, last):
    x = image((2, 6, 5, 7), torch.float32, last, backend.device)
    w, b = affine(x)
    chosen = settings_of(x, norm, "gelu")
    y, mean, rstd = norm_act_with_statistics(x, w, b, None, None, chosen)
    for known in ((None, None), (mean, rstd)):
        assert torch.equal(norm_act_with_statistics(x, w, b, *known, chosen)[0], y)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("norm", NORMS)
def test_large_planes_far_from_zero(norm, last):
    x = torch.randn(1, 4, 512, 512) + 1e4
    x = channels_last(x) if last else x
    y, mean, rstd = norm_act_with_statistics(x, None, None, None, None, settings_of(x, norm))
    want, exact_mean, exact_rstd = reference(
        x.double(), None, None, None, None, settings_of(x, norm)
    )
    close(mean, exact_mean, 2**-24)  # half a unit in the last place
    assert ((rstd / exact_rstd - 1).abs() < 1e-6).all()
    assert (y - want).abs().max() < 1e-3  # the mean's own rounding: half of 2^-10


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_images_larger_than_the_cache(dtype, last):
    """They are read in another order, in sizes that fill no block evenly."""
    x = image((1, 17, 1009, 1013) if dtype == torch.bfloat16 else (1, 17, 509, 521), dtype, last)
    assert x.numel() * x.element_size() > 2**24
    w, b = affine(x)
    chosen = settings_of(x, "instance", "leaky_relu")
    y, mean, rstd = norm_act_with_statistics(x, w, b, None, None, chosen)
    with torch.no_grad():
        want = reference(*double(x, w, b), None, None, chosen)[0]
    close(y, want, TOLERANCE[dtype])
    dy = torch.randn_like(x)
    got = norm_act_backward(dy, x, mean, rstd, w, b, False, chosen)
    wide = [t.double() for t in (dy, x, mean, rstd, w, b)]
    for a, e in zip(got, backward_reference(*wide, False, chosen), strict=True):
        close(a, e, 20 * TOLERANCE[dtype if a.dtype == dtype else torch.float32])
    stream = torch.randn_like(x)
    assert torch.equal(norm_act_update(stream, x, w, b, None, None, chosen)[0], stream + y)
    want = stream - y
    norm_act_update_(stream, x, w, b, None, None, chosen, sign=-1)
    assert torch.equal(stream, want)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("norm", NORMS)
def test_values_of_very_different_size(norm, last):
    """The first numbers of a plane, which sums are formed about, say nothing of the others."""
    x = torch.randn(2, 4, 64, 80)
    x[:, :, :2] += 1e5
    x = channels_last(x) if last else x
    _, mean, rstd = norm_act_with_statistics(x, None, None, None, None, settings_of(x, norm))
    _, exact_mean, exact_rstd = reference(x.double(), None, None, None, None, settings_of(x, norm))
    assert ((mean / exact_mean - 1).abs() < 1e-5).all()
    assert ((rstd / exact_rstd - 1).abs() < 1e-5).all()


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("norm", NORMS)
def test_first_and_second_derivatives(backend, norm, last):
    if backend.name == "simt" and last:
        pytest.skip("slow there; the gradients are compared above")
    x = image((2, 4, 3), torch.float64, last, backend.device).requires_grad_()
    w, b = (t.requires_grad_() for t in affine(x))
    for activation in ("silu", "gelu"):

        def function(x, w, b, activation=activation):
            groups = groups_of(x, norm)
            return norm_act(x, w, b, norm=norm, groups=groups, activation=activation)

        assert torch.autograd.gradcheck(function, (x, w, b))
        if backend.name != "simt":
            assert torch.autograd.gradgradcheck(function, (x, w, b))


def test_forward_mode_and_nested_functions(backend):
    x = image((2, 4, 5), torch.float64, device=backend.device)
    dx = torch.randn_like(x)

    def function(x):
        return norm_act(x, activation="silu")

    y, dy = torch.func.jvp(function, (x,), (dx,))
    close(y, function(x), 1e-12)
    (vjp,) = torch.func.vjp(function, x)[1](dx)
    assert torch.allclose((dy * dx).sum(), (vjp * dx).sum())


@pytest.mark.parametrize("batched", ["x", "weight", "both"])
def test_vmap(batched):
    dims = (0 if batched != "weight" else None, 0 if batched != "x" else None)
    x, w = torch.randn(3, 2, 4, 5), torch.randn(3, 4)
    x, w = (x if dims[0] == 0 else x[0]), (w if dims[1] == 0 else w[0])

    def loss(x, w):
        return norm_act(x, w, activation="gelu").sin().sum()

    got = torch.func.vmap(torch.func.grad(loss, argnums=(0, 1)), in_dims=dims)(x, w)
    for i in range(3):
        sample = (x if dims[0] is None else x[i], w if dims[1] is None else w[i])
        for a, e in zip(got, torch.func.grad(loss, argnums=(0, 1))(*sample), strict=True):
            close(a[i], e, 1e-5)


VIEWS = {
    "chunk": lambda t: t.repeat(1, 2, 1, 1).chunk(2, 1)[1],
    "transposed": lambda t: t.transpose(-1, -2).contiguous().transpose(-1, -2),
    "every second": lambda t: t.repeat_interleave(2, -1)[..., ::2],
    "expanded": lambda t: t[:1].expand_as(t),
    "one number on": lambda t: torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape),
}


@pytest.mark.parametrize("view", VIEWS)
def test_views_give_the_same_as_dense_images(backend, view):
    dense = image((2, 6, 5, 7), device=backend.device)
    x = VIEWS[view](dense).requires_grad_()
    w, b = affine(x)
    want = norm_act(x.contiguous(), w, b, activation="gelu")
    y = norm_act(x, w, b, activation="gelu")
    close(y, want, 1e-6)
    g = VIEWS[view](torch.randn_like(dense))
    (got,) = torch.autograd.grad(y, x, g)
    (wanted,) = torch.autograd.grad(want, x, g.contiguous())
    close(got, wanted, 1e-5)
    stream, again = (VIEWS[view](torch.zeros_like(dense)).clone() for _ in range(2))
    chosen = settings_of(x, "instance", "gelu")
    apart = norm_act_update(stream, x, w, b, None, None, chosen)[0]
    norm_act_update_(stream, x, w, b, None, None, chosen)
    close(stream, again + y, 1e-6)
    assert torch.equal(apart, stream)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("shape", [(0, 4, 3, 3), (2, 4, 0), (1, 1), (1, 1, 1)])
def test_empty_and_one_element_images(backend, shape, norm):
    x = torch.randn(shape, device=backend.device, requires_grad=True)
    w = torch.ones(shape[1], device=backend.device, requires_grad=True)
    b = torch.ones(shape[1], device=backend.device, requires_grad=True)
    y = norm_act(x, w, b, norm=norm, groups=groups_of(x, norm), activation="relu")
    assert torch.equal(y, torch.ones_like(x))
    y.sum().backward()
    assert torch.equal(x.grad, torch.zeros_like(x)) and torch.equal(w.grad, torch.zeros_like(w))
    assert torch.equal(b.grad, torch.full_like(b, x.numel() / shape[1]))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_shape_on_the_cpu(data):
    n, c = data.draw(st.integers(1, 3)), data.draw(st.sampled_from([1, 2, 7, 64, 130, 520]))
    size = data.draw(st.lists(st.sampled_from([1, 2, 3, 17, 40]), max_size=2))
    norm = data.draw(st.sampled_from(NORMS))
    activation = data.draw(st.sampled_from(ACTIVATIONS))
    last = data.draw(st.booleans())
    x = image((n, c, *size), torch.float64, last)
    w, b = affine(x)
    chosen = settings_of(x, norm, activation)
    y, mean, rstd = norm_act_with_statistics(x, w, b, None, None, chosen)
    want, *statistics = reference(x, w, b, None, None, chosen)
    close(y, want, 1e-9)
    close(mean, statistics[0], 1e-12)
    close(rstd, statistics[1], 1e-9)
    dy = torch.randn_like(x)
    got = norm_act_backward(dy, x, mean, rstd, w, b, False, chosen)
    leaves = [t.requires_grad_() for t in (x, w, b)]
    wanted = torch.autograd.grad(reference(*leaves, None, None, chosen)[0], leaves, dy)
    for a, e in zip(got, wanted, strict=True):
        close(a, e, 1e-9)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("shape", [(1, 40, 61, 67), (8, 40, 9, 5), (700, 40)])
def test_the_number_of_threads_does_not_change_a_bit(shape, norm, last):
    x = image(shape, last=last)
    (w, b), dy = affine(x), torch.randn_like(x)
    chosen = settings_of(x, norm, "gelu")
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        y, mean, rstd = norm_act_with_statistics(x, w, b, None, None, chosen)
        back = norm_act_backward(dy, x, mean, rstd, w, b, False, chosen)
        results.append((y, mean, rstd, *back))
    torch.set_num_threads(1)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_two_numbers_a_group_are_saved_beside_the_input():
    saved = []
    x = torch.randn(2, 4, 8, 8, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        norm_act(x, activation="silu")
    others = [t for t in saved if t.data_ptr() != x.data_ptr()]
    assert sum(t.numel() for t in others) == 2 * 2 * 4


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("norm", NORMS)
def test_opcheck(norm, last):
    x = image((2, 4, 3, 5), last=last)
    w, b = affine(x)
    chosen = settings_of(x, norm, "leaky_relu")
    raw = kernels.raw()
    _, mean, rstd = raw.norm_act(x, w, b, None, None, *chosen)
    groups, over_batch, _, activation, slope = chosen
    torch.library.opcheck(raw.norm_act, (x, w, b, None, None, *chosen))
    torch.library.opcheck(raw.norm_act, (x, w, None, mean, rstd, *chosen))
    stream = torch.zeros_like(x, dtype=torch.int32)
    for update in (raw.norm_act_update_, raw.norm_act_update):
        torch.library.opcheck(update, (stream, x, w, b, None, None, *chosen, -1, 12))
    torch.library.opcheck(
        raw.norm_act_backward,
        (x, x, mean, rstd, w, b, groups, over_batch, False, activation, slope),
    )


@pytest.mark.compiler
@pytest.mark.parametrize("last", [False, True])
def test_compiles_in_one_graph(last):
    x = image((2, 4, 5, 3), last=last).requires_grad_()
    w, b = (t.requires_grad_() for t in affine(x))

    def loss(x, w, b):
        return norm_act(x.sin(), w, b, norm="batch", activation="gelu").square().sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    inputs = (x, w, b)
    for a, e in zip(
        torch.autograd.grad(compiled(*inputs), inputs),
        torch.autograd.grad(loss(*inputs), inputs),
        strict=True,
    ):
        close(a, e, 1e-5)


def test_meta_tensors_have_the_results_shape():
    x = channels_last(torch.empty(2, 4, 3, 5, device="meta"))
    y = norm_act(x)
    assert y.shape == x.shape and y.stride() == x.stride() and y.is_meta


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"norm": "weight"}, "norm must be one of instance, group"),
        ({"activation": "tanh"}, "activation must be one of none, relu"),
        ({"norm": "group"}, "groups go with norm='group'"),
        ({"groups": 2}, "groups go with norm='group'"),
        ({"norm": "group", "groups": 3}, "divide the 4 channels"),
        ({"weight": torch.ones(3)}, r"weight must be floating, \(4,\)"),
        ({"bias": torch.ones(4, dtype=torch.int32)}, "bias must be floating"),
        ({"bias": torch.ones(4, device="meta")}, "share a device"),
        ({"mean": torch.ones(2, 4)}, "both or neither"),
        ({"x": torch.ones(3)}, r"x must be \(N, C, ...\)"),
        ({"x": torch.ones(2, 4, dtype=torch.int32)}, "x must be floating"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_is_accepted(arguments, words):
    arguments = {"x": torch.randn(2, 4, 3), **arguments}
    with pytest.raises(ValueError, match=words):
        norm_act(**arguments)


@pytest.mark.parametrize(
    ("stream", "options", "words"),
    [
        (torch.zeros(2, 4, 2), {}, "shape and device of x"),
        (torch.zeros(2, 4, 3), {"sign": 2}, "1 or -1"),
        (torch.zeros(2, 4, 3), {"fraction_bits": 3}, "int32 stream"),
        (torch.zeros(2, 4, 3, dtype=torch.int32), {}, "int32 stream"),
        (torch.zeros(2, 4, 3, dtype=torch.bfloat16), {}, "as wide as x"),
    ],
)
def test_streams_that_do_not_fit_are_refused(stream, options, words):
    x = torch.randn(2, 4, 3)
    with pytest.raises(ValueError, match=words):
        norm_act_update_(stream, x, None, None, None, None, settings_of(x, "instance"), **options)
    with pytest.raises(ValueError, match=words):
        norm_act_update(stream, x, None, None, None, None, settings_of(x, "instance"), **options)


VARIANT = """
import torch
from revgrad.ops import norm_act_backward, norm_act_with_statistics, norm_act_update_
from revgrad.ops.norm_act import Settings, reference
torch.manual_seed(0)
for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 1e-2), (torch.float16, 2e-3)):
    for shape, last in (((2, 19, 70, 67), False), ((2, 19, 70, 67), True), ((33, 190), False)):
        for activation in range(5):
            x = (torch.randn(shape) + 2).to(dtype)
            x = x.movedim(1, -1).contiguous().movedim(-1, 1) if last else x
            w, b = torch.randn(2, shape[1])
            s = Settings(1 if x.dim() == 2 else shape[1], False, 1e-5, activation, 0.1)
            y, mean, rstd = norm_act_with_statistics(x, w, b, None, None, s)
            exact = [t.double().requires_grad_() for t in (x, w, b)]
            want = reference(*exact, None, None, s)[0]
            assert (y - want).abs().max() <= tolerance * want.abs().max()
            g = torch.randn_like(x)
            wanted = torch.autograd.grad(want, exact, g.double())
            found = norm_act_backward(g, x, mean, rstd, w, b, False, s)
            for a, e in zip(found, wanted):
                assert (a - e).abs().max() <= 10 * tolerance * e.abs().max().clamp_min(1)
            stream = torch.zeros_like(x)
            norm_act_update_(stream, x, w, b, None, None, s)
            assert torch.equal(stream, y)
# Every half there is, at even and odd places, comes back as it was; what is not a number, too.
for dtype in (torch.bfloat16, torch.float16):
    halves = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    x = torch.cat([halves, halves[:2]]).reshape(1, 3, -1)
    for image in (x, x.movedim(1, -1).contiguous().movedim(-1, 1)):
        s = Settings(3, False, 1e-5, 0, 0.1)
        y = norm_act_with_statistics(image, None, None, torch.zeros(1, 3), torch.ones(1, 3), s)[0]
        finite = image.isfinite()
        assert torch.equal(y[finite], image[finite])
        assert torch.equal(y.isnan(), image.isnan()) and torch.equal(y.isinf(), image.isinf())
"""


@pytest.mark.parametrize("variant", ["generic", "v3", "v4"])
def test_every_instruction_set_this_processor_has(variant):
    env = {**os.environ, "REVGRAD_CPU_VARIANT": variant}
    subprocess.run([sys.executable, "-c", VARIANT], env=env, check=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_activations_are_exact_over_their_whole_range(dtype):
    z = torch.linspace(-30, 30, 6001, dtype=dtype).reshape(1, 1, -1)
    zero, one = torch.zeros(1, 1, dtype=dtype), torch.ones(1, 1, dtype=dtype)
    for activation in ACTIVATIONS:
        chosen = settings_of(z, "instance", activation)
        y = norm_act_with_statistics(z, None, None, zero, one, chosen)[0]
        exact = z.double().requires_grad_()
        want = TORCH[activation](exact)
        tolerance = 4e-7 if dtype == torch.float32 else 1e-15
        assert ((y - want).abs() <= tolerance * want.abs().clamp_min(1)).all()
        (slope,) = torch.autograd.grad(want.sum(), exact)
        got = norm_act_backward(torch.ones_like(z), z, zero, one, None, None, True, chosen)[0]
        assert ((got - slope).abs() <= 4 * tolerance).all()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_not_hidden(backend, value):
    for activation in ACTIVATIONS:
        x = torch.randn(1, 2, 40, device=backend.device)
        x[0, 0, 7] = value
        y = norm_act(x, activation=activation)
        assert y[0, 0].isnan().any() and y[0, 1].isfinite().all()
