"""`NormAct` against the modules of torch's that it stands for."""

import copy

import pytest
import torch
from torch import nn

from revgrad.fixed_point import Grid
from revgrad.nn import NormAct
from revgrad.ops import kernels

ACTIVATIONS = [None, nn.ReLU(), nn.LeakyReLU(0.2), nn.SiLU(), nn.GELU()]
MODULES = {
    "instance": lambda: nn.InstanceNorm2d(6),
    "affine instance": lambda: nn.InstanceNorm2d(6, affine=True),
    "tracking instance": lambda: nn.InstanceNorm2d(6, track_running_stats=True, momentum=0.3),
    "group": lambda: nn.GroupNorm(3, 6),
    "plain group": lambda: nn.GroupNorm(3, 6, affine=False),
    "batch": lambda: nn.BatchNorm2d(6),
    "batch without statistics": lambda: nn.BatchNorm2d(6, track_running_stats=False),
    "plain batch": lambda: nn.BatchNorm2d(6, affine=False, eps=1e-3),
    "batch with the mean of all": lambda: nn.BatchNorm2d(6, momentum=None),
    "layer": lambda: nn.LayerNorm(5),
    "layer over two axes": lambda: nn.LayerNorm((4, 5)),
    "layer without bias": lambda: nn.LayerNorm(5, bias=False),
}


@pytest.fixture(autouse=True, params=["kernels", "reference"])
def executor(request, monkeypatch):
    if request.param == "reference":
        monkeypatch.setattr(kernels, "_state", kernels.State("for this test", wanted=False))
    torch.manual_seed(0)


def made(name, dtype=torch.float64):
    module = MODULES[name]().to(dtype)
    for p in module.parameters():
        nn.init.normal_(p)
    return module


@pytest.mark.parametrize("name", MODULES)
def test_training_and_evaluation_agree_with_torch(name):
    """Result, gradients and running statistics over several steps."""
    for activation in ACTIVATIONS:
        norm = made(name)
        plain = nn.Sequential(norm, activation or nn.Identity())
        fused = NormAct.like(copy.deepcopy(norm), activation)
        for _ in range(3):
            x = torch.randn(3, 6, 4, 5, dtype=torch.float64) * 2 + 3
            pair = [x.clone().requires_grad_() for _ in range(2)]
            ys = [module(t) for module, t in zip((plain, fused), pair, strict=True)]
            torch.testing.assert_close(*ys, rtol=1e-9, atol=1e-9)
            for y in ys:
                (y * y.detach().cos()).sum().backward()
            torch.testing.assert_close(pair[0].grad, pair[1].grad, rtol=1e-8, atol=1e-8)
        for a, b in zip(norm.parameters(), fused.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(dict(norm.state_dict()), dict(fused.state_dict()))
        plain.eval(), fused.eval()
        torch.testing.assert_close(plain(x), fused(x))


@pytest.mark.parametrize("name", MODULES)
def test_parameters_and_buffers_are_the_modules_own(name):
    module = made(name)
    fused = NormAct.like(module, nn.SiLU())
    assert list(fused.state_dict()) == list(module.state_dict())
    for kind in ("named_parameters", "named_buffers"):
        for (a, t), (b, u) in zip(getattr(module, kind)(), getattr(fused, kind)(), strict=True):
            assert a == b and t is u
    fresh = NormAct.like(MODULES[name](), nn.SiLU())
    fresh.load_state_dict(module.state_dict())
    MODULES[name]().load_state_dict(fused.state_dict())


def test_what_is_made_directly_has_torchs_defaults():
    for norm, module in (
        ("instance", nn.InstanceNorm3d(8)),
        ("batch", nn.BatchNorm1d(8)),
        ("layer", nn.LayerNorm(8)),
    ):
        fused = NormAct(8, norm)
        assert list(fused.state_dict()) == list(module.state_dict())
        for a, b in zip(fused.state_dict().values(), module.state_dict().values(), strict=True):
            assert torch.equal(a, b)
    fused = NormAct(8, "group", "gelu", groups=4, dtype=torch.float64)
    x = torch.randn(2, 8, 3, dtype=torch.float64)
    torch.testing.assert_close(
        fused(x), nn.functional.gelu(nn.functional.group_norm(x, 4)), rtol=1e-9, atol=1e-9
    )


def test_an_instance_norm_takes_one_sample_without_batch():
    module, x = nn.InstanceNorm1d(4, affine=True), torch.randn(4, 9)
    torch.testing.assert_close(NormAct.like(module)(x), module(x))


@pytest.mark.parametrize("last", [False, True])
def test_half_precision_images_with_float32_parameters(last):
    x = torch.randn(2, 6, 9, 9).bfloat16()
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    fused = NormAct(6, "instance", "leaky_relu", affine=True)
    y = fused(x)
    want = nn.functional.leaky_relu(nn.functional.instance_norm(x.double()))
    assert y.dtype == torch.bfloat16 and y.stride() == x.stride()
    assert ((y - want).abs() <= 2**-8 * want.abs().clamp_min(0.5)).all()


@pytest.mark.parametrize("bits", [None, 16])
@pytest.mark.parametrize("name", MODULES)
def test_the_update_has_the_bits_of_the_result(name, bits):
    fused = NormAct.like(made(name, torch.float32), nn.SiLU())
    twin = copy.deepcopy(fused)
    x = torch.randn(3, 6, 4, 5)
    start = torch.randint(-9, 9, x.shape, dtype=torch.int32 if bits else torch.int64)
    stream = start.clone() if bits else start.float()
    with torch.no_grad():
        y = twin(x)
    step = Grid(bits).round(y) if bits else y
    want = stream - step
    fused.update_(stream, x, sign=-1, fraction_bits=bits)
    assert torch.equal(stream, want)
    for a, b in zip(fused.buffers(), twin.buffers(), strict=True):
        assert torch.equal(a, b)


def test_an_empty_batch_leaves_the_running_statistics():
    fused = NormAct(4, "batch")
    fused(torch.randn(0, 4, 3))
    assert torch.equal(fused.running_mean, torch.zeros(4))
    assert torch.equal(fused.running_var, torch.ones(4))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((4, "weight"), "norm must be one of instance, group, layer, batch"),
        ((4, "batch", "tanh"), "activation must be one of none, relu"),
        ((4, "group"), "groups go with norm='group'"),
        (((4, 4), "batch"), "must be a number"),
    ],
)
def test_bad_arguments_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        NormAct(*arguments)


def test_bad_groups_statistics_and_images_are_refused():
    with pytest.raises(ValueError, match="divide the 4 channels"):
        NormAct(4, "group", groups=3)
    with pytest.raises(ValueError, match="running statistics go with instance and batch"):
        NormAct(4, "layer", track_running_stats=True)
    with pytest.raises(ValueError, match=r"made for \(N, 4, ...\)"):
        NormAct(4, affine=True)(torch.randn(2, 3, 5))
    with pytest.raises(ValueError, match="trailing axes"):
        NormAct((4, 5), "layer")(torch.randn(2, 5, 4))
    for norm, shape in (("batch", (1, 4)), ("instance", (3, 4, 1))):
        with pytest.raises(ValueError, match="has no variance"):
            NormAct(4, norm)(torch.randn(shape))


@pytest.mark.parametrize("other", [nn.SyncBatchNorm(4), nn.RMSNorm(4), nn.Linear(4, 4)])
def test_it_stands_for_nothing_else(other):
    with pytest.raises(TypeError, match=type(other).__name__):
        NormAct.like(other)
    for activation in (nn.Tanh(), nn.GELU(approximate="tanh")):
        with pytest.raises(TypeError, match=type(activation).__name__):
            NormAct.like(nn.BatchNorm2d(4), activation)


def test_what_torch_accepts():
    """Norms without parameters take any number of channels, and a counter may be missing."""
    x = torch.randn(2, 4, 5, 5)
    with pytest.warns(UserWarning, match="num_features"):
        expected = nn.InstanceNorm2d(3)(x)
    assert torch.allclose(NormAct.like(nn.InstanceNorm2d(3))(x), expected, atol=1e-6)
    norms = [nn.BatchNorm2d(4, momentum=momentum) for momentum in (0.1, None)]
    for norm in norms:
        norm.num_batches_tracked = None
        twin = copy.deepcopy(norm)
        fused = NormAct.like(twin)
        assert torch.allclose(fused(x), norm(x), atol=1e-6)
        assert torch.allclose(fused.running_mean, norm.running_mean)
