"""`convert` on networks of any make: what it replaces, what it leaves, what that computes."""

import copy
import io
import warnings
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import revgrad
from revgrad import AdditiveCoupling, ReversibleSequence
from revgrad.memory import measure
from revgrad.nn.surgery import order_of_children

pytestmark = pytest.mark.filterwarnings("ignore:convert replaced")

CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def unit(a, b, norm=nn.InstanceNorm2d, act=nn.LeakyReLU, **options):
    return [nn.Conv2d(a, b, 3, padding=1, **options), norm(b), act()]


class Packed(nn.Module):
    """A unit of somebody's own, with names in another order than they run."""

    def __init__(self, a, b, stride=1, spatial_dims=2, dropout=0.0):
        super().__init__()
        self.act = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(dropout)
        self.norm = nn.GroupNorm(2, b)
        self.conv = CONVS[spatial_dims](a, b, 3, stride, padding=1, bias=False)

    def forward(self, x):
        y = self.norm(self.conv(x))
        return self.act(self.drop(y))


class Aliased(nn.Module):
    """As nnU-Net's units: every part is registered twice."""

    def __init__(self, a, b):
        super().__init__()
        self.conv, self.norm, self.nonlin = unit(a, b, nn.BatchNorm2d, nn.ReLU)
        self.all_modules = nn.Sequential(self.conv, self.norm, self.nonlin)

    def forward(self, x):
        return self.all_modules(x)


class ToyUNet(nn.Module):
    """Two levels; concatenation and pooling are code, and so unseen."""

    def __init__(self, dropout=0.0):
        super().__init__()
        self.down = nn.Sequential(*unit(1, 8), *unit(8, 8))
        self.pool = nn.MaxPool2d(2)
        self.deep = nn.Sequential(
            Packed(8, 16, dropout=dropout), Packed(16, 16, dropout=dropout), Packed(16, 16)
        )
        self.up = nn.ConvTranspose2d(16, 8, 2, 2)
        self.merge = nn.Sequential(Aliased(16, 8), Aliased(8, 8))
        self.head = nn.Conv2d(8, 3, 1)

    def forward(self, x):
        skip = self.down(x)
        return self.head(self.merge(torch.cat([skip, self.up(self.deep(self.pool(skip)))], 1)))


def sequences(net):
    return [m for m in net.modules() if isinstance(m, ReversibleSequence)]


def without_memory_saving(net):
    plain = copy.deepcopy(net)
    for sequence in sequences(plain):
        sequence.save_memory = False
    return plain


def gradients(net, x):
    torch.manual_seed(1)
    net.zero_grad()
    y = net(x)
    loss = y.square().mean()
    return [y, *torch.autograd.grad(loss, [x, *net.parameters()])]


# --- the function ----------------------------------------------------------------------------


def test_it_is_revphisegs_function():
    """1x1 convolution, then couplings of two units of half the channels, written by hand."""
    net, _ = revgrad.convert(nn.Sequential(*unit(3, 8), *unit(8, 8)).double())
    projection, sequence = net[0].projection, net[0].couplings
    assert projection.kernel_size == (1, 1) and len(sequence) == 2
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    a, b = projection(x).chunk(2, 1)
    for layer in sequence:
        a = a + layer.f(b)
        b = b + layer.g(a)
    torch.testing.assert_close(net(x), torch.cat([a, b], 1), rtol=1e-12, atol=1e-12)
    for half in (layer.f, layer.g):
        assert [type(m) for m in half] == [nn.Conv2d, nn.InstanceNorm2d, nn.LeakyReLU]
        assert half[0].weight.shape == (4, 4, 3, 3) and half[0].padding == (1, 1)


@pytest.mark.parametrize("arithmetic", ["float", "exact"])
@pytest.mark.parametrize("training", [True, False])
def test_gradients_are_those_of_ordinary_autograd(arithmetic, training):
    """Instance, group and batch norm, dropout; the running statistics too."""
    net, _ = revgrad.convert(ToyUNet(dropout=0.3).double(), arithmetic=arithmetic)
    plain = without_memory_saving(net.train(training))
    x = torch.randn(2, 1, 8, 8, dtype=torch.float64, requires_grad=True)
    for got, want in zip(gradients(net, x), gradients(plain, x), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)
    for got, want in zip(net.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=0)


def test_gradcheck():
    net, _ = revgrad.convert(nn.Sequential(*unit(1, 4, act=nn.Tanh), *unit(4, 4, act=nn.Tanh)))
    x = torch.randn(1, 1, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(net.double(), x)


def test_it_trains():
    net, _ = revgrad.convert(ToyUNet())
    x, target = torch.randn(2, 1, 16, 16), torch.randint(3, (2, 16, 16))
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(x), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    assert all(p.grad is not None for p in net.parameters())  # no dead weights


@st.composite
def rows(draw):
    """A Sequential of units of all kinds and what may stand between them, and its input."""
    modules, width, strides = [], 2, [1, 1, 1, 2]
    for _ in range(draw(st.integers(1, 6))):
        after = draw(st.sampled_from([2, 4, 4, 4, 5]))
        conv = nn.Conv2d(
            width,
            after,
            kernel := draw(st.sampled_from([1, 3])),
            stride := draw(st.sampled_from(strides)),
            padding=kernel // 2,
            bias=draw(st.booleans()),
        )
        strides = strides if stride == 1 else [1]  # an image of one pixel has no variance
        norm = draw(st.sampled_from([nn.InstanceNorm2d, nn.BatchNorm2d, None]))
        tail = [norm(after)] if norm else []
        tail += draw(st.sampled_from([[], [nn.Dropout(0.3)], [nn.Identity()]]))
        tail += draw(st.sampled_from([[], [nn.Tanh()], [nn.SiLU()]]))
        tail = draw(st.permutations(tail))
        packed = draw(st.sampled_from(["flat", "sequential", "nested"]))
        if packed == "nested":
            tail = [nn.Sequential(*tail)]
        modules += [conv, *tail] if packed == "flat" else [nn.Sequential(conv, *tail)]
        if draw(st.integers(0, 4)) == 0:
            modules.append(nn.AvgPool2d(3, 1, 1))
        width = after
    return nn.Sequential(*modules).double()


@settings(deadline=None, max_examples=25, derandomize=True)
@given(rows(), st.integers(1, 3), st.sampled_from(["float", "exact"]))
def test_any_row(net, min_length, arithmetic):
    """The shape and what was left alone stay; all is counted; the gradients are right."""
    torch.manual_seed(0)
    old = dict(net.named_parameters())
    total = sum(isinstance(m, nn.Conv2d) for m in net.modules())
    converted, report = revgrad.convert(net, min_length=min_length, arithmetic=arithmetic)
    assert report.convolutions_replaced + len(report.left) == total
    assert all(item.units >= min_length for item in report.replaced)
    for path, _ in report.left:
        assert torch.equal(converted.get_parameter(f"{path}.weight"), old[f"{path}.weight"])
    x = torch.randn(2, 2, 8, 8, dtype=torch.float64, requires_grad=True)
    assert converted(x).shape == net(x).shape
    got, want = gradients(converted, x), gradients(without_memory_saving(converted), x)
    for a, b in zip(got, want, strict=True):  # autograd.grad fails where a weight has no gradient
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)


def test_autocast_and_two_backward_passes():
    """In bfloat16 to its precision; two losses through one output."""
    net, _ = revgrad.convert(ToyUNet(dropout=0.2))
    plain = without_memory_saving(net)
    x = torch.randn(2, 1, 16, 16)
    found = []
    for network in (net, plain):
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16):
            y = network(x)
        y[:, :1].float().square().mean().backward(retain_graph=True)
        y[:, 1:].float().abs().mean().backward()
        found.append(torch.cat([p.grad.flatten() for p in network.parameters()]))
    assert (found[0] - found[1]).norm() < 2e-2 * found[1].norm()


# --- what is replaced ------------------------------------------------------------------------


def test_the_report_of_a_unet():
    net = ToyUNet()
    before = sum(p.numel() for p in net.parameters())
    with pytest.warns(UserWarning, match="ANOTHER FUNCTION WITH FRESH WEIGHTS"):
        converted, report = revgrad.convert(net)
    assert [item.path for item in report.replaced] == ["down.0", "deep.0", "merge.0"]
    assert [item.units for item in report.replaced] == [2, 3, 2]
    assert [len(s) for s in sequences(converted)] == [2, 3, 2]
    assert report.left == [
        ("up", "called by code in a forward that convert can't read as a row of modules"),
        ("head", "called by code in a forward that convert can't read as a row of modules"),
    ]
    assert report.parameters_before == before == sum(p.numel() for p in net.parameters())
    assert report.parameters_after == sum(p.numel() for p in converted.parameters())
    saved = sum(item.parameters_before - item.parameters_after for item in report.replaced)
    assert saved == report.parameters_before - report.parameters_after
    text = str(report)
    assert "replaced 7 of 9 convolutions" in text and "No conversion can keep trained" in text
    assert "3 x (Conv2d 3x3, GroupNorm, Dropout, ReLU), 8 to 16 channels" in text
    assert "1x1 convolution 8 to 16, 3 couplings of 8 + 8 channels" in text
    assert f"{report.replaced[0].parameters_before:,} -> " in text
    assert "left 2 convolutions" in text


def test_parameters_of_a_coupling_are_half_of_a_unit():
    """9 C^2 numbers in a convolution, 2 x 9 (C / 2)^2 in a coupling."""
    net = nn.Sequential(*[m for _ in range(3) for m in unit(8, 8, bias=False)])
    _, half = revgrad.convert(net)
    _, whole = revgrad.convert(net, couplings_per_unit=2)
    assert half.parameters_before == whole.parameters_before == 3 * 9 * 64
    assert 2 * half.parameters_after == whole.parameters_after == 3 * 9 * 64


@pytest.mark.parametrize("spatial_dims", [1, 2, 3])
def test_all_dimensions(spatial_dims):
    conv = CONVS[spatial_dims]
    net = nn.Sequential(conv(2, 4, 3, padding=1), nn.ReLU(), conv(4, 4, 5, padding="same"))
    converted, report = revgrad.convert(net)
    assert report.convolutions_replaced == 2
    x = torch.randn(1, 2, *(6,) * spatial_dims)
    assert converted(x).shape == net(x).shape
    kernels = [layer.f[0].kernel_size[0] for layer in sequences(converted)[0]]
    assert kernels == [3, 5] and type(converted[0].projection) is conv


def test_kinds_and_settings_are_kept():
    norms = [
        nn.GroupNorm(3, 12, eps=1e-3),
        nn.BatchNorm2d(12, momentum=0.01, affine=False),
        nn.InstanceNorm2d(12, affine=True, track_running_stats=True),
        nn.SyncBatchNorm(12, eps=1e-4),
    ]
    for norm in norms:
        row = []
        for act in (nn.PReLU(12), nn.LeakyReLU(0.3, inplace=True)):
            conv = nn.Conv2d(12, 12, (3, 1), padding=(1, 0), padding_mode="reflect", bias=False)
            row += [conv, copy.deepcopy(norm), nn.Dropout2d(0.2), act]
        net, _ = revgrad.convert(nn.Sequential(*row).double().eval())
        (sequence,) = sequences(net)
        conv, made, drop, act = sequence[0].f
        assert (conv.kernel_size, conv.padding_mode, conv.bias) == ((3, 1), "reflect", None)
        assert conv.weight.dtype == torch.float64 and not made.training
        assert type(made) is type(norm) and made.eps == norm.eps and drop.p == 0.2
        assert act.num_parameters == 6 and sequence[1].g[3].negative_slope == 0.3
        if isinstance(norm, nn.GroupNorm):
            assert (made.num_groups, made.num_channels) == (3, 6)
        else:
            for key in ("momentum", "affine", "track_running_stats"):
                assert getattr(made, key) == getattr(norm, key)


def test_statistics_of_norms_without_weights_keep_device_and_type():
    net = nn.Sequential(
        *(m for _ in "ab" for m in unit(4, 4, partial(nn.BatchNorm2d, affine=False)))
    )
    made, _ = revgrad.convert(copy.deepcopy(net).double())
    made(torch.randn(2, 4, 5, 5).double()).sum().backward()
    for place in ({"dtype": torch.float64}, {"device": "meta"}):
        made, _ = revgrad.convert(copy.deepcopy(net).to(**place))
        found = {(b.dtype, b.device.type) for k, b in made.named_buffers() if "running" in k}
        assert found == {(place.get("dtype", torch.float32), place.get("device", "cpu"))}


def test_norms_without_bias_and_process_groups_are_kept():
    for kind in (lambda c: nn.GroupNorm(2, c), nn.BatchNorm2d, nn.SyncBatchNorm):
        net = nn.Sequential(*unit(4, 4, kind), *unit(4, 4, kind))
        for norm in (net[1], net[4]):
            norm.bias, norm.process_group = None, "some"
        made, _ = revgrad.convert(net)
        norm = sequences(made)[0][0].f[1]
        assert norm.weight is not None and norm.bias is None
        assert getattr(norm, "process_group", None) == (
            "some" if kind is nn.SyncBatchNorm else None
        )


def test_groups_that_do_not_divide_the_half_become_fewer():
    net, _ = revgrad.convert(nn.Sequential(*unit(8, 8, lambda c: nn.GroupNorm(8, c)), *unit(8, 8)))
    assert sequences(net)[0][0].f[1].num_groups == 4


def test_widths_cut_runs():
    net = nn.Sequential(*unit(1, 4), *unit(4, 8), *unit(8, 8), *unit(8, 6))
    _, report = revgrad.convert(net)
    assert [(item.path, item.units) for item in report.replaced] == [("3", 2)]
    assert report.left == [(p, "in a run of 1, shorter than min_length=2") for p in ("0", "9")]
    _, report = revgrad.convert(net, min_length=1)
    assert [item.units for item in report.replaced] == [1, 2, 1]
    _, report = revgrad.convert(net, min_length=3)
    assert report.replaced == []


def test_what_follows_keeps_its_names_and_weights():
    net = nn.Sequential(*unit(4, 4), *unit(4, 4), nn.MaxPool2d(2), nn.Conv2d(4, 2, 1))
    converted, _ = revgrad.convert(net)
    assert len(converted) == len(net)
    assert [type(m) for m in converted[1:6]] == [nn.Identity] * 5
    assert torch.equal(converted[7].weight, net[7].weight)
    assert {"7.weight", "7.bias"} <= set(converted.state_dict())


def test_copy_or_in_place():
    net = ToyUNet()
    state = copy.deepcopy(net.state_dict())
    converted, _ = revgrad.convert(net)
    assert converted is not net and not sequences(net)
    for key, value in net.state_dict().items():
        assert torch.equal(value, state[key])
    same, _ = revgrad.convert(net, inplace=True)
    assert same is net and len(sequences(net)) == 3


def test_torchs_seed_decides():
    net, made = ToyUNet(), []
    for number in (3, 3, 4):
        torch.manual_seed(number)
        made.append(revgrad.convert(net)[0].state_dict())
    assert all(torch.equal(a, b) for a, b in zip(made[0].values(), made[1].values(), strict=True))
    assert not all(
        torch.equal(a, b) for a, b in zip(made[0].values(), made[2].values(), strict=True)
    )


def test_a_second_time_changes_nothing():
    net, _ = revgrad.convert(ToyUNet())
    again, report = revgrad.convert(net, min_length=1)
    assert report.replaced == [] and list(again.state_dict()) == list(net.state_dict())
    assert [reason for _, reason in report.left].count("in a reversible layer already") == 14
    assert "none of 19 convolutions" in str(report)  # with three projections, up and head


def test_meta_device_copy_and_save():
    with torch.device("meta"):
        net = ToyUNet()
    converted, _ = revgrad.convert(net)
    assert {p.device.type for p in converted.parameters()} == {"meta"}
    converted, _ = revgrad.convert(ToyUNet().eval())
    file = io.BytesIO()
    torch.save(copy.deepcopy(converted), file)
    file.seek(0)
    x = torch.randn(1, 1, 8, 8)
    loaded = torch.load(file, weights_only=False)
    torch.testing.assert_close(loaded(x), converted(x))


# --- which modules ---------------------------------------------------------------------------


def test_only():
    for only in ("deep", ["deep"], lambda path, module: path == "deep"):
        _, report = revgrad.convert(ToyUNet(), only=only)
        assert [item.path for item in report.replaced] == ["deep.0"]
        assert ("down.0", "not among the modules asked for") in report.left
    _, report = revgrad.convert(ToyUNet(), only="")
    assert len(report.replaced) == 3
    with pytest.raises(ValueError, match=r"only names \['dep'\].*it has: down, pool, deep"):
        revgrad.convert(ToyUNet(), only="dep")


def test_wrong_arguments():
    with pytest.raises(TypeError, match="module must be"):
        revgrad.convert(lambda x: x)
    with pytest.raises(ValueError, match="min_length must be at least 1, not 0"):
        revgrad.convert(ToyUNet(), min_length=0)
    with pytest.raises(ValueError, match="couplings_per_unit"):
        revgrad.convert(ToyUNet(), couplings_per_unit=0)
    wrapped = nn.parallel.DistributedDataParallel.__new__(nn.parallel.DistributedDataParallel)
    nn.Module.__init__(wrapped)
    with pytest.raises(TypeError, match="before wrapping"):
        revgrad.convert(nn.Sequential(wrapped))
    net = ToyUNet()
    with pytest.raises(ValueError, match="arithmetic"):
        revgrad.convert(net, arithmetic="integer", inplace=True)
    assert not sequences(net)


# --- what is left alone ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reason", "conv"),
    [
        ("strided", nn.Conv2d(4, 4, 3, 2, 1)),
        ("dilated", nn.Conv2d(4, 4, 3, padding=2, dilation=2)),
        ("grouped", nn.Conv2d(4, 4, 3, padding=1, groups=2)),
        ("transposed", nn.ConvTranspose2d(4, 4, 3, padding=1)),
        ("changes the size of the image", nn.Conv2d(4, 4, 3)),
        ("changes the size of the image", nn.Conv2d(4, 4, 2, padding=1)),
        ("changes the size of the image", nn.Conv2d(4, 4, 3, padding="valid")),
        ("its weight is a Own", nn.Conv2d(4, 4, 3, padding=1)),
        ("an odd number of channels (5) has no halves", nn.Conv2d(4, 5, 3, padding=1)),
        ("frozen: fresh weights", nn.Conv2d(4, 4, 3, padding=1).requires_grad_(False)),
        ("a LazyConv2d, which is none", nn.LazyConv2d(4, 3, padding=1)),
    ],
)
def test_units_with_an_obstacle(reason, conv):
    width = conv.out_channels
    if reason == "its weight is a Own":  # as DTensor and others are
        conv.weight = type("Own", (nn.Parameter,), {})(conv.weight.detach())
    net = nn.Sequential(conv, nn.ReLU(), *unit(width, 6), *unit(6, 6))
    converted, report = revgrad.convert(net)
    ((path, found),) = report.left
    assert path == "0" and found.startswith(reason)
    assert type(converted[0]) is type(conv) and [i.path for i in report.replaced] == ["2"]


def test_padding_by_name():
    row = [m for p in ("same", "valid") for m in (nn.Conv2d(4, 4, 1, padding=p), nn.ReLU())]
    _, report = revgrad.convert(nn.Sequential(*row))
    assert report.convolutions_replaced == 2


def test_an_obstacle_cuts_the_run():
    net = nn.Sequential(*unit(4, 4), *unit(4, 4), *unit(4, 4, stride=2), *unit(4, 4), *unit(4, 4))
    _, report = revgrad.convert(net)
    assert [i.path for i in report.replaced] == ["0", "9"]


def test_hooks_parametrisations_and_forwards_of_their_own():
    hooked = nn.Conv2d(4, 4, 3, padding=1)
    hooked.register_forward_hook(lambda *_: None)
    weighted = nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 3, padding=1))
    patched = nn.Conv2d(4, 4, 3, padding=1)
    patched.forward = lambda x: x
    for conv in (hooked, weighted, patched):
        _, report = revgrad.convert(nn.Sequential(conv, nn.ReLU(), conv_act(), conv_act()))
        assert [item.units for item in report.replaced] == [2] and len(report.left) == 1
    packed = Packed(4, 4)
    packed.register_forward_hook(lambda *_: None)
    _, report = revgrad.convert(nn.Sequential(packed, Packed(4, 4)))
    assert report.replaced == []


def conv_act():
    return nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU())


def test_shared_weights_stay_shared():
    shared = conv_act()
    for net in (
        nn.Sequential(shared, shared, conv_act()),
        nn.Sequential(nn.Sequential(shared, conv_act()), nn.MaxPool2d(2), shared),
    ):
        converted, report = revgrad.convert(net)
        assert report.replaced == [] and len(list(converted.parameters())) == 4
    tied = nn.Sequential(conv_act(), conv_act(), nn.MaxPool2d(2), conv_act())
    tied[3][0].weight = tied[0][0].weight
    _, report = revgrad.convert(tied)
    assert report.replaced == []
    assert ("0.0", "its weights stand in another place too") in report.left


class Twice(nn.Module):
    """As MONAI's UnetBasicBlock: one activation behind two convolutions; perhaps once more."""

    def __init__(self, more):
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(2))
        self.norm1, self.norm2, self.act = nn.BatchNorm2d(4), nn.BatchNorm2d(4), nn.ReLU()
        self.pool, self.more = nn.AvgPool2d(2), more

    def forward(self, x):
        x = self.act(self.norm1(self.conv1(x)))
        x = self.pool(self.act(self.norm2(self.conv2(x))))
        return self.act(x) if self.more else x


def test_an_activation_called_twice():
    converted, report = revgrad.convert(Twice(more=False))
    assert [i.units for i in report.replaced] == [2] and isinstance(converted.act, nn.Identity)
    _, report = revgrad.convert(Twice(more=True))
    assert report.replaced == []
    assert report.left[0] == ("conv1", "shares act with what is outside of the run")


def test_an_activation_used_elsewhere_stays_there():
    act = nn.ReLU()
    row = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), act, nn.Conv2d(4, 4, 3, padding=1), act)
    converted, report = revgrad.convert(nn.Sequential(row, nn.MaxPool2d(2), act))
    assert report.convolutions_replaced == 2 and isinstance(converted[2], nn.ReLU)


def test_convolutions_without_anything_behind():
    """Two linear maps in a row: a head, perhaps; a coupling of such would save nothing."""
    net = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1))
    _, report = revgrad.convert(net)
    assert {reason for _, reason in report.left} == {
        "no norm or activation behind it, so there is nothing to save"
    }


def test_unknown_modules_cut_runs():
    net = nn.Sequential(*unit(4, 4), nn.Softmax2d(), *unit(4, 4), nn.Flatten(2))
    _, report = revgrad.convert(net)
    assert report.replaced == [] and len(report.left) == 2


# --- what is seen ----------------------------------------------------------------------------


class Shell(nn.Module):
    """Runs `code` on its children and an input."""

    def __init__(self, code, **children):
        super().__init__()
        self.code = code
        for name, child in children.items():
            self.add_module(name, child)

    def forward(self, x):
        return self.code(self, x)


def modal(self, x):
    x = self.a(x)
    return self.b(x) if self.training else x


def keeping(self, x):
    self.kept = self.a(x)
    return self.b(self.kept)


def dead(self, x):
    self.b(x)
    return self.a(x)


@pytest.mark.parametrize(
    ("order", "code"),
    [
        (("a", "b"), lambda self, x: self.b(self.a(x))),
        (("b", "a", "b"), lambda self, x: self.b(self.a(self.b(x)))),
        (("a",), lambda self, x: self.a(x)),
        ((), lambda self, x: x),
        (None, lambda self, x: self.a(x) + x),
        (None, lambda self, x: self.b(torch.relu(self.a(x)))),
        (None, lambda self, x: (self.a(x), self.b(x))),
        (None, lambda self, x: self.b(self.a(x)) if x.sum() > 0 else x),
        (None, modal),
        (None, keeping),
        (None, dead),
    ],
)
def test_order_of_children(order, code):
    module = Shell(code, a=nn.ReLU(), b=nn.Tanh())
    state = dict(vars(module))
    assert order_of_children(module) == order
    assert vars(module) == state  # nothing of the tracing is left


@pytest.mark.parametrize("container", [[], {}, set()])
def test_results_kept_in_containers_are_seen(container):
    """And what tracing put there is not left behind, nor counted in a buffer."""

    def collecting(self, x):
        x = self.a(x)
        self.calls += 1
        if isinstance(self.kept, dict):
            self.kept["a"] = x
        else:
            getattr(self.kept, "append" if isinstance(self.kept, list) else "add")(x)
        return self.b(x)

    module = Shell(collecting, a=nn.ReLU(), b=nn.Tanh())
    module.kept = container
    module.register_buffer("calls", torch.zeros(()))
    assert order_of_children(module) is None
    assert len(container) == 0 and module.calls == 0


def test_counting_calls_hides_nothing():
    def counting(self, x):
        self.calls += 1
        return self.b(self.a(x))

    module = Shell(counting, a=nn.ReLU(), b=nn.Tanh())
    module.register_buffer("calls", torch.zeros(()))
    assert order_of_children(module) == ("a", "b") and module.calls == 0


def test_what_runs_instead_of_forward_is_not_seen():
    class Calling(nn.Sequential):
        def __call__(self, x):
            return super().__call__(x) + x

    patched = Shell(lambda self, x: self.a(x), a=nn.ReLU())
    patched.forward = lambda x: x
    for module in (patched, Calling(nn.ReLU())):
        assert order_of_children(module) is None


def test_a_hooked_identity_cuts_the_run():
    tap = nn.Identity()
    tap.register_forward_hook(lambda *_: None)
    _, report = revgrad.convert(nn.Sequential(*unit(4, 4), tap, *unit(4, 4)))
    assert report.replaced == []
    _, report = revgrad.convert(nn.Sequential(*unit(4, 4), nn.Identity(), *unit(4, 4)))
    assert report.convolutions_replaced == 2


def test_residual_code_is_not_seen_but_what_it_calls_is():
    def residual(self, x):
        return x + self.row(x)

    net = Shell(residual, row=nn.Sequential(*unit(4, 4), *unit(4, 4)))
    converted, report = revgrad.convert(net)
    assert [i.path for i in report.replaced] == ["row.0"]
    x = torch.randn(2, 4, 6, 6)
    torch.testing.assert_close(converted(x), x + converted.row(x))


def test_code_that_changes_the_output_in_place():
    def residual(self, x):
        y = self.row(x)
        y += x
        return y

    net = Shell(residual, row=nn.Sequential(*unit(4, 4), *unit(4, 4))).double()
    x = torch.randn(2, 4, 6, 6, dtype=torch.float64, requires_grad=True)
    with pytest.raises(revgrad.ReversibleError, match="changed in place"):
        gradients(revgrad.convert(net)[0], x)
    copying, _ = revgrad.convert(net, copy_output=True)
    for got, want in zip(
        gradients(copying, x), gradients(without_memory_saving(copying), x), strict=True
    ):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)


def test_couplings_of_the_user_are_not_entered():
    net = ReversibleSequence([AdditiveCoupling(nn.Sequential(*unit(2, 2), *unit(2, 2)))])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="replaced none of 2"):
            revgrad.convert(net)


# --- memory ----------------------------------------------------------------------------------


def test_memory_is_saved():
    """Of a run of n units, plain autograd keeps each convolution's and norm's result (2 n
    activations); the reversible sequence keeps its output."""
    others = measure(lambda: None).peak  # what tests before this one left behind
    width, n = 8, 6
    net = nn.Sequential(*[m for _ in range(n) for m in unit(width, width)])
    converted, _ = revgrad.convert(net)
    x = torch.randn(1, width, 48, 48)
    one = x.numel() * x.element_size()
    plain, reversible = (
        measure(lambda net=net: net(x).mean().backward(), net) for net in (net, converted)
    )
    assert plain.kept_for_backward > 2 * n * one - one
    assert reversible.kept_for_backward < 1.2 * one
    peaks = (reversible.peak_without_scratch - others, plain.peak_without_scratch - others)
    assert peaks[0] < 0.6 * peaks[1]


# --- networks of other libraries ---------------------------------------------------------------


def right_and_smaller(net, x, runs, **options):
    converted, report = revgrad.convert(net, **options)
    assert len(report.replaced) == runs
    step = {}
    for name, network in (("plain", net), ("reversible", converted)):
        step[name] = measure(lambda n=network: first(n(x)).square().mean().backward(), network)
    assert step["reversible"].kept_for_backward < step["plain"].kept_for_backward
    with_memory, without = converted.double(), without_memory_saving(converted).double()
    x = x.double().requires_grad_()
    a, b = (
        torch.autograd.grad(first(n(x)).square().mean(), [x, *used(n)])
        for n in (with_memory, without)
    )
    for got, want in zip(a, b, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-10)
    return report


def used(net):
    """The parameters of reversible sequences."""
    return [p for s in sequences(net) for p in s.parameters()]


def first(y):
    return y[0] if isinstance(y, list | tuple) else y


@pytest.fixture
def monai_nets():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("monai.networks.nets")


def test_monai_basic_unet(monai_nets):
    net = monai_nets.BasicUNet(2, 1, 2, (8, 8, 16, 16, 16, 8), dropout=0.0)
    report = right_and_smaller(net, torch.randn(1, 1, 32, 32), runs=9)
    assert report.convolutions_replaced == 18


def test_monai_unet(monai_nets):
    net = monai_nets.UNet(2, 1, 2, (8, 16), (2,), num_res_units=3)
    right_and_smaller(net, torch.randn(1, 1, 32, 32), runs=2)


def test_monai_dynunet(monai_nets):
    net = monai_nets.DynUNet(2, 1, 2, (3, 3, 3), (1, 2, 2), (2, 2), filters=(8, 8, 8))
    right_and_smaller(net, torch.randn(1, 1, 32, 32), runs=3)


def test_monai_segresnet_is_left_as_it_is(monai_nets):
    """Its blocks are norm, activation, convolution and a sum, in code."""
    net = monai_nets.SegResNet(2, 8, 1, 2, blocks_down=(1, 1), blocks_up=(1,))
    _, report = revgrad.convert(net, min_length=1)
    assert report.replaced == []


def test_nnunets_plain_conv_unet():
    unet = pytest.importorskip("dynamic_network_architectures.architectures.unet")
    options = {"norm_op": nn.InstanceNorm2d, "nonlin": nn.LeakyReLU}
    net = unet.PlainConvUNet(1, 2, (8, 16), nn.Conv2d, 3, (1, 2), 3, 2, 2, **options)
    right_and_smaller(net, torch.randn(1, 1, 32, 32), runs=3)
