import pytest
import torch
from torch import nn

from revgrad import AdditiveCoupling, ReversibleError, ReversibleSequence, is_recomputing
from revgrad.nn import NormAct, Recompute


def block(channels=4, dropout=0.0):
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, padding=1),
        nn.BatchNorm2d(channels),
        nn.Dropout(dropout),
        nn.ReLU(),
    )


class Join(nn.Module):
    """Two inputs of unequal size; the second may be a tensor or None."""

    def __init__(self):
        super().__init__()
        self.unit = block(4)
        self.up = nn.Upsample(scale_factor=2, mode="bilinear")

    def forward(self, x, skip=None, *, scale=1.0):
        y = self.up(x) * scale
        return self.unit(y if skip is None else y + skip)


def results(net, call, seed=0, inputs=()):
    """Value and gradients of parameters and inputs."""
    torch.manual_seed(seed)
    net.zero_grad()
    for x in inputs:
        x.grad = None
    value = call(net)
    value.square().sum().backward()
    return [value.detach(), *(p.grad for p in net.parameters()), *(x.grad for x in inputs)]


def expect_plain_autograd(net, call, *inputs):
    """Recomputed and stored give the same; also the buffers."""
    state = {k: v.clone() for k, v in net.state_dict().items()}
    found = []
    for save in (True, False):
        net.load_state_dict(state)
        for m in net.modules():
            if isinstance(m, Recompute):
                m.save_memory = save
        buffers = [b.clone() for b in net.buffers()]
        found.append(results(net, call, inputs=inputs) + [b.clone() for b in net.buffers()])
    assert len(buffers) == len(list(net.buffers()))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def leaf(*shape, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, requires_grad=True)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_gradients_are_those_of_ordinary_autograd(dropout):
    torch.manual_seed(0)
    x = leaf(2, 4, 6, 6)
    expect_plain_autograd(Recompute(block(4, dropout)).double(), lambda net: net(x), x)


def test_running_statistics_are_updated_once():
    net = Recompute(block()).double()
    net(leaf(2, 4, 6, 6)).sum().backward()
    assert net.module[1].num_batches_tracked == 1


def test_further_inputs_get_their_gradients():
    torch.manual_seed(0)
    x, skip, scale = leaf(2, 4, 3, 3), leaf(2, 4, 6, 6), leaf(1)
    net = Recompute(Join()).double()
    expect_plain_autograd(net, lambda net: net(x, skip, scale=scale), x, skip, scale)


def test_only_parameters_may_need_gradients():
    x = torch.randn(2, 4, 6, 6, dtype=torch.float64)
    expect_plain_autograd(Recompute(block()).double(), lambda net: net(x))


def test_no_gradient_is_computed_that_nobody_asked_for():
    seen = []

    class Asked(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, weight):
            return x * weight

        @staticmethod
        def backward(ctx, grad):
            seen.append(ctx.needs_input_grad)
            return None, grad

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2))

        def forward(self, x):
            return Asked.apply(x, self.weight)

    Recompute(Net())(torch.ones(2)).sum().backward()
    assert seen == [(False, True)]


def test_several_results_are_given_back_as_a_tuple():
    class Both(nn.Module):
        def forward(self, x):
            return x.sin(), x.cos()

    x = leaf(3)
    sine, cosine = Recompute(Both())(x)
    (sine + 2 * cosine).sum().backward()
    torch.testing.assert_close(x.grad, x.detach().cos() - 2 * x.detach().sin())


def test_it_can_stand_inside_itself_and_around_sequences_and_in_them():
    torch.manual_seed(0)

    def unit():
        return nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), NormAct(2, "batch", "relu"))

    def sequence(wrap=lambda m: m):
        return ReversibleSequence([AdditiveCoupling(wrap(unit()), unit()) for _ in range(2)])

    net = nn.Sequential(
        Recompute(nn.Sequential(block(), Recompute(block(4, 0.3)), sequence())), sequence(Recompute)
    ).double()
    x = leaf(2, 4, 6, 6)
    expect_plain_autograd(net, lambda net: net(x), x)


def test_a_module_used_twice_and_shared_parameters():
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 4, 3, padding=1)
    net = nn.ModuleList([Recompute(nn.Sequential(conv, nn.Tanh(), conv)), conv]).double()
    x = leaf(1, 4, 5, 5)
    expect_plain_autograd(net, lambda net: net[0](net[1](net[0](x))), x)


def test_a_retained_graph_can_be_gone_through_again():
    net, x = Recompute(block(4, 0.5)).double(), leaf(2, 4, 6, 6)
    loss = net(x).square().sum()
    first = torch.autograd.grad(loss, [x, *net.parameters()], retain_graph=True)
    second = torch.autograd.grad(loss, [x, *net.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_double_backward():
    net = Recompute(nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.Tanh())).double()
    x = leaf(1, 2, 4, 4)
    found = []
    for net.save_memory in (True, False):
        net.zero_grad()
        (grad,) = torch.autograd.grad(net(x).square().sum(), x, create_graph=True)
        grad.square().sum().backward()
        found.append([p.grad for p in net.parameters()])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_autocast_is_that_of_the_forward_pass():
    torch.manual_seed(0)
    net = Recompute(nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.GroupNorm(1, 2)))
    x = leaf(1, 2, 6, 6, dtype=torch.float32)

    def call(net):
        with torch.autocast("cpu", torch.bfloat16):
            return net(x).float()

    found = []
    for net.save_memory in (True, False):
        found.append(results(net, call, inputs=(x,)))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_nothing_but_the_input_is_stored():
    net, x = Recompute(nn.Sequential(block(), block(), block())), leaf(2, 4, 6, 6).float()
    stored = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: stored.append(t) or t, lambda t: t):
        net(x).sum()
    own = {p.data_ptr() for p in net.parameters()}
    kept = [t for t in stored if t.data_ptr() not in own]
    assert [t.data_ptr() for t in kept] == [x.data_ptr()]


def test_the_repetition_knows_that_it_is_one():
    seen = []

    class Asking(nn.Module):
        def forward(self, x):
            seen.append(is_recomputing())
            return x.sin()

    Recompute(Asking())(leaf(2)).sum().backward()
    assert seen == [False, True]


def test_without_gradients_it_is_the_module_itself():
    net, x = Recompute(block()).double(), leaf(2, 4, 6, 6)
    with torch.no_grad():
        assert net(x).grad_fn is None
    transformed = torch.func.grad(lambda x: Recompute(nn.Tanh())(x).sum())(x.detach())
    torch.testing.assert_close(transformed, 1 - x.detach().tanh().square())


@pytest.mark.parametrize("what", ["parameter", "input"])
def test_what_was_changed_in_place_since_is_refused(what):
    net, x = Recompute(nn.Linear(2, 2)), torch.randn(1, 2)
    loss = net(x).square().sum()
    with torch.no_grad():
        (x if what == "input" else net.module.weight).add_(1)
    with pytest.raises(ReversibleError, match=r"Recompute\(Linear\).*changed in place"):
        loss.backward()


@pytest.mark.parametrize("which", [0, 1])
def test_a_module_that_changes_an_input_in_place_is_refused(which):
    class Changes(nn.Module):
        def forward(self, *inputs):
            inputs[which].mul_(2)
            return inputs[0] * inputs[1]

    # The second needs no gradient: nothing but the values would be wrong.
    net, x, side = Recompute(Changes()), leaf(2), torch.ones(2, dtype=torch.float64)
    with pytest.raises(ReversibleError, match=r"Recompute\(Changes\).*changed an input in place"):
        net(x, side)


def test_a_gradient_that_would_be_lost_is_refused():
    outside = leaf(2)

    class Captures(nn.Module):
        def forward(self, x):
            return x * outside

    loss = Recompute(Captures())(leaf(2)).sum()
    with pytest.raises(ReversibleError, match="requires a gradient but is no parameter"):
        loss.backward()


@pytest.mark.parametrize(
    ("gives", "named"),
    [
        (lambda x: [x, x], "not list"),
        (lambda x: x.max(0), "not max"),  # its fields would lose their names
        (lambda x: (x, None), r"not a tuple of \(Tensor, NoneType\)"),
        (lambda x: (), r"not a tuple of \(\)"),
    ],
)
def test_results_that_would_come_back_as_something_else_are_refused(gives, named):
    class Gives(nn.Module):
        def forward(self, x):
            return gives(x)

    net = Recompute(Gives())
    with pytest.raises(ReversibleError, match=f"Gives must give a tensor or .* {named}"):
        net(leaf(2))


def test_wrong_arguments_are_refused():
    with pytest.raises(TypeError, match=r"must be a torch\.nn\.Module, not function"):
        Recompute(lambda x: x)
    with pytest.raises(ReversibleError, match="first argument must be a tensor, not list"):
        Recompute(nn.Linear(2, 2))([1.0])


def test_under_the_compiler_the_graph_is_broken_and_the_result_right():
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Tanh(), Recompute(nn.Linear(3, 3))).double(), leaf(2, 3)
    expected = results(net, lambda net: net(x), inputs=(x,))
    compiled = torch.compile(net, backend="eager")
    found = results(net, lambda _: compiled(x), inputs=(x,))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)
