"""`estimate` against `measure`, in bytes, and by hand; and that it leaves all as it was."""

import gc
import json
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from revgrad import AdditiveCoupling, FixedPoint, ReversibleSequence
from revgrad.memory import estimate, live_bytes, measure
from revgrad.models import iUNet

FLOAT = 4  # bytes
CATEGORIES = (
    "parameters", "gradients", "optimizer_state", "kept_for_backward", "workspace", "other",
)  # fmt: skip


def unit(in_channels, out_channels):
    convolution = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels), nn.ReLU())


def cnn():
    body = [unit(3, 16), unit(16, 16), nn.MaxPool2d(2), unit(16, 32), unit(32, 32)]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


def block(channels):
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, padding=1),
        nn.InstanceNorm2d(channels, affine=True),
        nn.LeakyReLU(0.01),
    )


def sequence(**options):
    couplings = [AdditiveCoupling(block(8), block(8)) for _ in range(4)]
    return ReversibleSequence(couplings, **options)


def unet(**options):
    return iUNet(2, 1, 3, (16, 32, 64), (1, 1, 1), **options)


def transformer(dropout=0.1):
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, dropout=dropout)
    return nn.TransformerEncoder(layer, 2)


# --- against what was measured ----------------------------------------------------------------


def measured(model, x, optimizer, dtype):
    """Peak of a real step on the CPU without scratch and without what was there before."""
    made = optimizer(model.parameters())

    def step():
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            y = model(x)
            loss = y.sum()
        loss.backward()
        made.step()

    report = measure(step, model)
    for parameter in model.parameters():
        parameter.grad = None
    return report


IMAGES = [(1, 32, 32), (2, 48, 48), (2, 96, 64)]
MODELS: dict[str, tuple[Any, Any]] = {
    "cnn": (cnn, [(n, 3, h, w) for n, h, w in IMAGES]),
    "sequence": (sequence, [(n, 16, h, w) for n, h, w in IMAGES]),
    "exact sequence": (lambda: sequence(arithmetic="exact"), [(2, 16, 48, 48)]),
    "U-Net": (lambda: unet(save_memory=False), [(n, 1, h, w) for n, h, w in IMAGES]),
    "iUNet": (unet, [(n, 1, h, w) for n, h, w in IMAGES]),
    "transformer": (transformer, [(1, 32, 32), (2, 64, 32), (4, 128, 32)]),
}
# The largest size of each also in bfloat16.
CASES: list[Any] = [(name, shape, None) for name, (_, shapes) in MODELS.items() for shape in shapes]
CASES += [(name, shapes[-1], torch.bfloat16) for name, (_, shapes) in MODELS.items()]


@pytest.mark.parametrize(("name", "shape", "dtype"), CASES)
def test_within_a_few_percent_of_what_was_measured(name, shape, dtype):
    gc.collect()
    before = live_bytes()
    torch.manual_seed(0)
    model, x = MODELS[name][0](), torch.randn(shape)
    report = measured(model, x, torch.optim.AdamW, dtype)
    expected = report.peak_without_scratch - before
    found = estimate(model, x, torch.optim.AdamW, dtype, device="cpu")
    # float32: to the byte, but for the optimizer's step counters, which are no shadows.
    counters = FLOAT * len(list(model.parameters()))
    if dtype is None:
        assert expected - counters <= found.allocated <= expected
    assert found.allocated == pytest.approx(expected, rel=0.05)
    assert found.allocated == sum(getattr(found, name) for name in CATEGORIES)
    assert found.parameters == report.parameters
    assert found.reserved is None


@pytest.mark.parametrize("name", ["cnn", "sequence", "U-Net"])
def test_categories_are_those_of_measure(name):
    make, shapes = MODELS[name]
    model, x = make(), torch.randn(shapes[1])
    report = measure(lambda: model(x).sum().backward(), model)
    found = estimate(model, x, device="cpu")
    if report.peak_without_scratch == report.peak - report.scratch:  # the same moment
        assert found.gradients == report.gradients
        assert found.kept_for_backward == pytest.approx(report.kept_for_backward, rel=0.01)
        assert found.workspace == pytest.approx(report.workspace, rel=0.01)


def test_by_hand():
    """Two linear layers: the peak lies at the end, where all gradients exist."""
    net = nn.Sequential(nn.Linear(100, 200), nn.Linear(200, 100))
    weights = FLOAT * (100 * 200 + 200 + 200 * 100 + 100)
    found = estimate(net, (3, 100), loss=lambda y: y.square().sum(), device="cpu")
    assert found.parameters == found.gradients == weights
    # The output is held; the first layer's output went when its weight's gradient was there.
    assert found.kept_for_backward == FLOAT * 3 * 100 + 2 * FLOAT
    assert found.workspace == FLOAT * 3 * 200
    assert found.other == FLOAT * 3 * 100
    assert found.optimizer_state == 0


def test_the_state_of_the_optimizer_counts():
    net = nn.Linear(64, 64)
    size = sum(p.nbytes for p in net.parameters())
    x = torch.randn(2, 64)
    for optimizer, copies in {
        torch.optim.SGD: 0,
        lambda p: torch.optim.SGD(p, momentum=0.9): 1,
        torch.optim.AdamW: 2,
    }.items():
        found = estimate(net, x, optimizer)
        assert found.optimizer_state == copies * size
        assert found.allocated >= (2 + copies) * size + x.nbytes


def test_on_cuda_the_optimizer_works_on_lists():
    """AdamW's `foreach` takes the root of all second moments at a time, not of one by one."""
    net = nn.Sequential(*(nn.Linear(50, 50, bias=False) for _ in range(4)))
    one = 50 * 50 * FLOAT
    assert estimate(net, (1, 50), torch.optim.AdamW).workspace == 4 * one
    assert estimate(net, (1, 50), torch.optim.AdamW, device="cpu").workspace == 3 * one
    single = estimate(net, (1, 50), lambda p: torch.optim.AdamW(p, foreach=False))
    assert single.workspace == 3 * one


def test_frozen_parameters_get_nothing():
    net = nn.Sequential(nn.Linear(64, 64, bias=False).requires_grad_(False), nn.Linear(64, 1))
    found = estimate(net, (2, 64), torch.optim.AdamW)
    trained = sum(p.nbytes for p in net[1].parameters())
    assert found.optimizer_state == 2 * trained
    assert found.gradients in (0, trained)
    assert found.parameters == 64 * 64 * FLOAT + trained


# --- reversible networks ----------------------------------------------------------------------


@pytest.mark.parametrize("arithmetic", ["float", "exact"])
def test_a_reversible_sequence_does_not_grow_with_depth(arithmetic):
    def above(depth, save_memory):
        layers = [AdditiveCoupling(block(8), block(8)) for _ in range(depth)]
        net = ReversibleSequence(layers, arithmetic=arithmetic, save_memory=save_memory)
        found = estimate(net, (1, 16, 128, 128))
        return found.allocated - found.parameters - found.gradients

    small = 20_000  # statistics and gradients on their way
    assert above(6, True) == pytest.approx(above(2, True), abs=small)
    assert above(6, False) > 2 * above(2, False)


def test_what_layers_store_is_told():
    net = sequence(anchor_every=2)
    x = torch.randn(1, 16, 32, 32)
    found = estimate(net, x)
    report = measure(lambda: net(x).sum().backward(), net)
    assert found.stored_by.keys() == report.stored_by.keys()
    assert found.stored_by
    assert "    by " in str(found)


@pytest.mark.parametrize("device", ["meta", "cpu"])
@pytest.mark.parametrize("check", ["async", "sync"])
def test_exact_arithmetic_reads_no_numbers(device, check):
    net = sequence(arithmetic="exact", check=check).to(device)
    estimate(net, (1, 16, 8, 8))


@pytest.mark.parametrize("options", [{}, {"arithmetic": "exact"}, {"save_memory": False}])
def test_networks_run_and_train_on_the_meta_device(options):
    with torch.device("meta"):
        net = iUNet(2, 1, 3, (8, 16), (1, 1), mixing_every=1, **options)
        x = torch.empty(1, 1, 16, 16)
    y = net(x)
    assert y.is_meta and y.shape == (1, 3, 16, 16)
    y.sum().backward()
    assert all(p.grad is not None and p.grad.is_meta for p in net.parameters())
    assert estimate(net, x).parameters == sum(p.nbytes for p in net.parameters())


def test_fixed_point_tensors_on_the_meta_device():
    x = FixedPoint.from_float(torch.empty(3, 4, device="meta"))
    assert x.to_float().is_meta


# --- CUDA's ways ------------------------------------------------------------------------------


def test_a_mask_of_dropout_takes_a_byte_on_cuda():
    net, x = nn.Sequential(nn.Dropout(0.5)), torch.randn(1000, requires_grad=True)
    kept = {d: estimate(net, x, device=d).kept_for_backward for d in ("cpu", "cuda")}
    assert kept["cpu"] - kept["cuda"] == (FLOAT - 1) * 1000


def test_attention_keeps_no_weights_on_cuda():
    """With dropout the CPU keeps (batch, heads, tokens, tokens), and CUDA's kernels do not."""
    net = transformer(dropout=0.1)
    cpu, cuda = (estimate(net, (1, 256, 32), device=d).allocated for d in ("cpu", "cuda"))
    weights = 4 * 256 * 256 * FLOAT
    assert cpu - cuda > 2 * 2 * weights  # two layers, each with weights and mask
    assert F.dropout.__module__ == "torch.nn.functional"


def test_normalisation_is_float32_under_autocast_on_cuda():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.norm = nn.Linear(64, 64), nn.LayerNorm(64)

        def forward(self, x):
            y = self.norm(self.linear(x))
            seen.append(y.dtype)
            return y

    seen = []
    for device in ("cpu", "cuda"):
        estimate(Net(), (8, 64), dtype=torch.bfloat16, device=device)
    assert set(seen[:2]) == {torch.bfloat16} and set(seen[2:]) == {torch.float32}


def test_autocast_halves_what_is_kept():
    """A chain of linear layers keeps an input each; the weights' casts are gone by the peak."""
    net = nn.Sequential(*(nn.Linear(8, 8, bias=False) for _ in range(10)))
    kept = {
        dtype: estimate(net, (4096, 8), dtype=dtype).kept_for_backward
        for dtype in (None, torch.bfloat16, torch.float16)
    }
    assert kept[torch.bfloat16] == kept[torch.float16]
    assert 0.45 < kept[torch.bfloat16] / kept[None] < 0.65


def test_reserved_is_in_segments_and_at_least_what_is_allocated():
    for make, shape in ((cnn, (4, 3, 64, 64)), (sequence, (2, 16, 64, 64))):
        found = estimate(make(), shape, torch.optim.AdamW)
        assert found.reserved % (2 * 2**20) == 0
        assert found.allocated <= found.reserved < 1.5 * found.allocated + 22 * 2**20


class Holds(nn.Linear):
    """Holds 30 MiB, then 40, for which the freed 30 are no use."""

    def __init__(self):
        super().__init__(8, 8)

    def forward(self, x):
        for size in (30, 40):
            torch.empty(size * 2**20, dtype=torch.uint8)
        return super().forward(x)


def test_what_fits():
    found = estimate(cnn(), (4, 3, 64, 64), torch.optim.AdamW)
    assert found.fits(found.reserved) and found.fits(2**40)
    assert not found.fits(found.allocated - 1)
    found = estimate(Holds(), (1, 8))
    assert found.allocated < 41 * 2**20
    assert found.reserved == (2 + 30 + 40) * 2**20
    assert found.fits(42 * 2**20) and not found.fits(41 * 2**20)
    with pytest.raises(ValueError, match="device 'cuda'"):
        estimate(cnn(), (4, 3, 64, 64), device="cpu").fits(2**30)


# --- arguments ----------------------------------------------------------------------------------


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, a, b, *, scale=1):
        return {"y": self.linear(a) + b * scale, "n": torch.zeros(3, dtype=torch.long)}


def test_inputs_of_all_kinds_are_the_same():
    net = nn.Linear(8, 8)
    x = torch.randn(16, 8)
    assert (
        estimate(net, (16, 8))
        == estimate(net, x)
        == estimate(net, (x,))
        == estimate(net, {"input": x})
    )
    assert estimate(net, torch.Size([16, 8])) == estimate(net, x.to("meta"))
    two = estimate(Named(), (x, x))
    assert two == estimate(Named(), {"a": x, "b": x, "scale": 2})
    assert two.other == x.nbytes  # one tensor in two places
    assert estimate(Named(), (x, x.clone())).other == 2 * x.nbytes
    assert estimate(net.double(), (16, 8)).other == 2 * x.nbytes


def test_input_that_requires_a_gradient():
    net, x = nn.Linear(8, 8), torch.randn(1000, 8)
    plain, wanted = estimate(net, x), estimate(net, x.requires_grad_())
    assert wanted.allocated - plain.allocated == x.nbytes


def test_nothing_of_the_users_is_touched():
    net = nn.Sequential(unit(3, 4), nn.Dropout(0.5), sequence_of(4))
    x = torch.randn(2, 3, 8, 8)
    net(x).sum().backward()
    state = [value.clone() for value in net.state_dict().values()]
    gradients = [p.grad for p in net.parameters()]
    versions = [p._version for p in net.parameters()]
    random = torch.get_rng_state()
    gc.collect()
    before = live_bytes()
    estimate(net, x, torch.optim.AdamW, torch.bfloat16)
    gc.collect()
    assert live_bytes() == before
    assert torch.equal(torch.get_rng_state(), random)
    assert all(map(torch.equal, state, net.state_dict().values()))
    assert all(p.grad is g for p, g in zip(net.parameters(), gradients, strict=True))
    assert versions == [p._version for p in net.parameters()]
    assert not torch.is_autocast_enabled("cpu")


def sequence_of(channels):
    return ReversibleSequence([AdditiveCoupling(block(channels // 2), block(channels // 2))])


def test_large_models_cost_nothing():
    with torch.device("meta"):
        net = nn.Sequential(*(nn.Linear(20_000, 20_000) for _ in range(4)))
    found = estimate(net, (1, 20_000), torch.optim.AdamW)
    size = 4 * FLOAT * (20_000 * 20_000 + 20_000)
    assert found.parameters == size
    # In the optimizer's step: gradients, two moments and a root of all of them.
    assert found.allocated == pytest.approx(5 * size, rel=0.001)


def test_shared_weights_count_once():
    net = nn.Sequential(nn.Linear(32, 32, bias=False), nn.Linear(32, 32, bias=False))
    net[1].weight = net[0].weight
    found = estimate(net, (1, 32), torch.optim.AdamW)
    assert found.parameters == found.gradients == 32 * 32 * FLOAT
    assert found.optimizer_state == 2 * 32 * 32 * FLOAT


def test_report():
    found = estimate(nn.Linear(512, 512), (1, 512))
    assert "reserved" in str(found) and "peak on cuda, estimated" in str(found)
    assert "reserved" not in str(estimate(nn.Linear(4, 4), (1, 4), device="cpu"))
    assert json.loads(json.dumps(found.as_dict()))["parameters"] == FLOAT * 512 * 513


def linear():
    return nn.Linear(4, 4)


class Reads(nn.Linear):
    def forward(self, x):
        return super().forward(x) * x.abs().max().item()


@pytest.mark.parametrize(
    ("error", "message", "arguments", "options"),
    [
        (TypeError, "model must be an nn.Module, not function", (lambda: lambda x: x, (1, 4)), {}),
        (TypeError, "input must be a tensor, .* not int", (linear, 4), {}),
        (
            TypeError,
            "input must be a tensor, .* not \\(1.5, 4\\)",
            (linear, (1.5, 4)),
            {},
        ),
        (TypeError, "input must be a tensor", (linear, ()), {}),
        (ValueError, "no negative sizes", (linear, (-1, 4)), {}),
        (
            ValueError,
            "dtype must be None, torch.bfloat16",
            (linear, (1, 4)),
            {"dtype": 3},
        ),
        (
            ValueError,
            "must be 'cuda' or 'cpu'",
            (linear, (1, 4)),
            {"device": "tpu"},
        ),
        (TypeError, "optimizer must be", (linear, (1, 4)), {"optimizer": "adam"}),
        (
            TypeError,
            "must give a torch.optim",
            (linear, (1, 4)),
            {"optimizer": list},
        ),
        (TypeError, "loss must be", (linear, (1, 4)), {"loss": 1}),
        (ValueError, "has no shape yet", (lambda: nn.LazyLinear(4), (1, 4)), {}),
        (ValueError, "no floating-point tensor", (lambda: nn.Flatten(), (1, 4)), {}),
        (RuntimeError, "reads numbers from a tensor", (lambda: Reads(4, 4), (1, 4)), {}),
    ],
)
def test_wrong_arguments(error, message, arguments, options):
    with pytest.raises(error, match=message):
        estimate(arguments[0](), *arguments[1:], **options)


def test_an_optimizer_instead_of_its_class():
    net = nn.Linear(4, 4)
    with pytest.raises(TypeError, match="give its class"):
        estimate(net, (1, 4), torch.optim.SGD(net.parameters()))


def test_a_compiled_model_is_refused():
    with pytest.raises(ValueError, match=r"before torch\.compile"):
        estimate(torch.compile(nn.Linear(4, 4)), (1, 4))
