"""`measure` against peaks counted by hand, to the byte; and that it leaves nothing behind."""

import gc
import json
import time
import warnings
import weakref

import numpy
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint_sequential

from revgrad import FixedPoint
from revgrad.memory import MemoryReport, live_bytes, measure
from revgrad.memory.unrecorded import malloc_counter

FLOAT = 4  # bytes
SCALAR = 4  # the loss, and the gradient that starts the backward pass, are one float each
CATEGORIES = ("parameters", "gradients", "kept_for_backward", "workspace", "scratch", "other")


@pytest.fixture(autouse=True)
def _nothing_left():
    """Every test starts without garbage and leaves PyTorch as it was."""
    gc.collect()
    yield
    assert "resize_" not in vars(torch.UntypedStorage)


def other_than(report: MemoryReport, before: int) -> int:
    """What `report` counts as alive before the step, beside the `before` bytes of the session."""
    return report.other - before


def check_sum(report: MemoryReport) -> None:
    assert report.peak == sum(getattr(report, name) for name in CATEGORIES)
    assert all(getattr(report, name) >= 0 for name in CATEGORIES)


def numbers(report: MemoryReport) -> dict[str, int | str | None]:
    """The report without the one figure that is sampled."""
    return {name: value for name, value in report.as_dict().items() if name != "unrecorded"}


# --- by hand ---------------------------------------------------------------------------------


def test_chain_of_sines():
    """Six sines keep their six inputs; the peak is in the backward pass of the last one."""
    before, n = live_bytes(), 10_000 * FLOAT
    x = torch.randn(10_000)
    weight = nn.Parameter(torch.randn(10_000))

    def step():
        h = x * weight
        for _ in range(6):
            h = h.sin()
        h.sum().backward()

    report = measure(step, [weight])
    # Alive when the backward pass begins: the product, six sines (the last by the name h), the loss
    # and its gradient. The last sine's backward adds a cosine and a product, and frees nothing yet.
    assert report.kept_for_backward == 7 * n + 2 * SCALAR
    assert report.workspace == 2 * n
    assert report.parameters == n
    assert report.gradients == report.scratch == 0
    assert other_than(report, before) == n
    check_sum(report)


def test_two_linear_layers():
    """The peak lies at the end, where all gradients exist: counted tensor by tensor."""
    before = live_bytes()
    net = nn.Sequential(nn.Linear(100, 200), nn.Linear(200, 100))
    x = torch.randn(3, 100)
    report = measure(lambda: net(x).square().sum().backward(), net)

    weights = FLOAT * (100 * 200 + 200 + 200 * 100 + 100)
    # At the peak the first layer's weight and bias gradients have just been made: all four are
    # there. Kept: the first layer's output has been freed before (its weight gradient came first).
    assert report.parameters == weights
    assert report.gradients == weights
    assert report.kept_for_backward == 2 * SCALAR
    assert report.workspace == FLOAT * 3 * 200  # the gradient at the first layer's output
    assert other_than(report, before) == x.nbytes
    check_sum(report)


@pytest.mark.parametrize("size", [100, 1000])
def test_the_peak_includes_a_big_temporary_of_the_forward_pass(size):
    x = torch.randn(50, requires_grad=True)
    before = live_bytes()

    def step():
        h = x.sin()
        torch.ones(size, size)
        h.sum().backward()

    report = measure(step, [x])
    big = size * size * FLOAT
    assert report.workspace == big
    assert report.kept_for_backward == 50 * FLOAT  # the sine: used after the peak
    assert report.gradients == 0
    assert report.peak == before + big + 50 * FLOAT


def test_no_backward_pass():
    x = torch.randn(1000)
    before = live_bytes()

    @torch.inference_mode()
    def step():
        x.sin().cos().tan()

    report = measure(step)
    assert report.workspace == 2 * x.nbytes
    assert report.kept_for_backward == report.parameters == report.gradients == 0
    assert report.peak == before + 2 * x.nbytes


def test_a_step_that_does_nothing():
    x = torch.randn(1000)
    report = measure(lambda: None)
    assert report.peak == report.other == live_bytes() >= x.nbytes
    assert report.workspace == 0


def test_a_gradient_handed_to_the_parameters_later_is_no_double_count():
    """Two rounds of forward and backward: the second adds into the first one's gradient."""
    weight = nn.Parameter(torch.randn(1000))
    before = live_bytes()

    def step():
        for _ in range(2):
            weight.sin().sum().backward()

    report = measure(step, [weight])
    # At the second round's peak: gradient of round one; loss and its gradient (the sine itself has
    # no other owner than the sum, which does not keep it); a cosine and the new gradient.
    assert report.gradients == weight.nbytes
    assert report.kept_for_backward == 2 * SCALAR
    assert report.workspace == 2 * weight.nbytes
    assert report.peak == before + 3 * weight.nbytes + 2 * SCALAR


# --- what a plain network and a checkpoint keep -----------------------------------------------


def conv_stack(depth: int) -> nn.Sequential:
    layers = [(nn.Conv2d(8, 8, 3, padding=1), nn.Sigmoid()) for _ in range(depth)]
    return nn.Sequential(*[layer for pair in layers for layer in pair])


def test_a_plain_stack_keeps_a_known_amount_per_layer():
    x = torch.randn(1, 8, 32, 32)
    outputs = []
    for depth in (2, 3, 5):
        net = conv_stack(depth)
        h_bytes = x.nbytes

        def step(net=net):
            net(x).sum().backward()

        outputs.append(measure(step, net).kept_for_backward)
    # Each sigmoid keeps its output, which is also the next convolution's input.
    assert outputs[1] - outputs[0] == h_bytes
    assert outputs[2] - outputs[1] == 2 * h_bytes


def test_a_checkpoint_keeps_less_and_recomputes_in_the_workspace():
    net, x = conv_stack(8), torch.randn(1, 8, 32, 32, requires_grad=True)
    plain = measure(lambda: net(x).sum().backward(), net)
    few = measure(
        lambda: checkpoint_sequential(net, 4, x, use_reentrant=False).sum().backward(), net
    )
    reentrant = measure(
        lambda: checkpoint_sequential(net, 4, x, use_reentrant=True).sum().backward(), net
    )
    for report in (few, reentrant):
        check_sum(report)
        assert report.peak < plain.peak
        # Four segments of two layers: three boundaries, and the last segment as in plain autograd.
        assert report.kept_for_backward < plain.kept_for_backward
        assert report.kept_for_backward <= 6 * x.nbytes
        # Nested forward passes run inside the backward pass: theirs is not "kept".
        assert report.workspace + report.gradients > 0


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="needs oneDNN")
def test_the_scratch_of_a_convolution_is_apart():
    """oneDNN reorders contiguous tensors into copies; the rest of the peak is the same."""

    def run(memory_format):
        conv = nn.Conv2d(32, 32, 3, padding=1)
        conv.weight.data = conv.weight.data.to(memory_format=memory_format)
        x = torch.randn(1, 32, 64, 64).to(memory_format=memory_format).requires_grad_()
        gradient = torch.ones_like(x)

        def step():
            y = conv(x)
            y.backward(gradient)
            x.grad = None

        report = measure(step, conv)
        check_sum(report)
        assert report.kept_for_backward == x.nbytes  # y, by its name
        assert report.workspace == pytest.approx(x.nbytes, rel=0.1)  # the gradient of x
        assert report.peak - report.scratch <= report.peak_without_scratch <= report.peak
        return report, x.nbytes

    wide, size = run(torch.contiguous_format)
    lean, size = run(torch.channels_last)
    assert 1.9 * size < wide.scratch < 4 * size
    assert lean.scratch < 0.3 * size
    assert wide.peak_without_scratch == pytest.approx(lean.peak_without_scratch, rel=0.02)


# --- parameters and gradients -----------------------------------------------------------------


def test_gradients_equal_parameters_when_the_optimizer_makes_the_peak():
    net, x = nn.Linear(50, 60), torch.randn(1, 50)
    size = sum(p.nbytes for p in net.parameters())
    optimizer = torch.optim.AdamW(net.parameters(), foreach=False)

    def step():
        net(x).sum().backward()
        optimizer.step()
        torch.ones(10_000)

    before = live_bytes()
    report = measure(step, net)
    assert report.parameters == report.gradients == size
    # The warm-up made the optimizer's two moments, and a step counter for each of two parameters.
    assert other_than(report, before - size) == 2 * size + 2 * FLOAT
    assert report.workspace == 10_000 * FLOAT
    assert optimizer.state[net.weight]["step"] == 2
    # Without a module the warm-up tells which parameters there are.
    assert numbers(measure(step)) == numbers(report)


@pytest.mark.parametrize("when", ["in the backward pass", "at the end"])
def test_gradients_that_are_gone_when_the_step_ends(when):
    net = nn.Sequential(nn.Linear(64, 64, bias=False), nn.Linear(64, 64, bias=False))
    x = torch.randn(1, 64)
    weight = 64 * 64 * FLOAT

    def forget(parameter):
        parameter.grad = None

    if when == "in the backward pass":
        for parameter in net.parameters():
            parameter.register_post_accumulate_grad_hook(forget)

    def step():
        net(x).sum().backward()
        net.zero_grad()

    report = measure(step, net)
    assert report.gradients == (weight if when == "in the backward pass" else 2 * weight)
    assert report.parameters == 2 * weight
    hooks = [len(p._post_accumulate_grad_hooks or ()) for p in net.parameters()]
    assert hooks == ([1, 1] if when == "in the backward pass" else [0, 0])


def test_gradients_of_an_earlier_step_are_dropped_before():
    net, x = nn.Linear(64, 64), torch.randn(2, 64)

    def step():
        net(x).sum().backward()

    step()
    assert net.weight.grad is not None
    first = numbers(measure(step, net))
    assert first == numbers(measure(step, net)) == numbers(measure(step, net, warmup=3))


def test_a_lazy_module_elsewhere_is_no_hindrance():
    lazy, net, x = nn.LazyLinear(4), nn.Linear(4, 4), torch.randn(2, 4)
    assert measure(lambda: net(x).sum().backward()).parameters == 20 * FLOAT
    assert lazy.has_uninitialized_params()


def test_a_shared_weight_counts_once_and_a_frozen_one_counts():
    first, second = nn.Linear(32, 32, bias=False), nn.Linear(32, 32, bias=False)
    weight = second.weight = first.weight
    net = nn.Sequential(first, second)
    frozen = nn.Linear(32, 32, bias=False).requires_grad_(False)
    net.append(frozen)
    x = torch.randn(1, 32)
    report = measure(lambda: net(x).sum().backward(), net)
    assert report.parameters == 2 * 32 * 32 * FLOAT
    report = measure(lambda: net(x).sum().backward(), iter([weight, weight]))
    assert report.parameters == 32 * 32 * FLOAT


def test_lazy_modules():
    net, x = nn.LazyLinear(8, bias=False), torch.randn(2, 16)
    assert measure(lambda: net(x).sum().backward(), net).parameters == 8 * 16 * FLOAT


# --- memory from before the step --------------------------------------------------------------


def test_two_views_of_one_storage_count_once():
    before = live_bytes()
    x = torch.randn(1000)
    views = [x[:10], x.view(10, 100).t(), x.detach()]
    assert live_bytes() - before == x.nbytes
    assert other_than(measure(lambda: None), before) == x.nbytes
    del views


def test_two_storages_on_one_address_count_once():
    """NumPy's arrays are no storages: each tensor over one has a storage of its own."""
    before, array = live_bytes(), numpy.zeros(1000, dtype=numpy.uint8)
    whole, part = torch.from_numpy(array), torch.from_numpy(array[:10])
    assert live_bytes() - before == 1000
    part, whole = whole, part  # whichever is found first
    assert live_bytes() - before == 1000


def test_live_bytes_finds_gradients_and_forgets_what_is_deleted():
    before = live_bytes()
    x = torch.randn(1000, requires_grad=True)
    x.sin().sum().backward()
    assert live_bytes() - before == 2 * 1000 * FLOAT
    del x
    assert live_bytes() == before


def test_a_tensor_from_before_that_dies_in_the_step_leaves_the_curve():
    """100 freed before 60 are allocated: the peak is the start; the other way round it is 160."""
    for freed_first, expected in ((True, 100_000), (False, 160_000)):
        before, box = live_bytes(), [torch.empty(100_000, dtype=torch.uint8)]

        def step(box=box, freed_first=freed_first):
            if freed_first:
                box.clear()
            new = torch.empty(60_000, dtype=torch.uint8)
            box.clear()
            del new

        with warnings.catch_warnings():
            warnings.simplefilter("error")
            report = measure(step, [], warmup=0)
        assert report.peak - before == expected
        check_sum(report)


def test_a_tensor_from_before_that_only_the_graph_still_holds():
    """Its storage dies inside the backward pass, without a line of Python there."""
    before = live_bytes()
    x, y = torch.randn(10_000), torch.randn(10_000, requires_grad=True)
    product = (x * y).sum()
    del x

    def step():
        product.backward()
        torch.empty(2 * 10_000)

    report = measure(step, [y], warmup=0)
    # x was saved, and is gone when the last allocation (2 n) comes: y, its gradient, 2 n.
    assert report.peak - before == 4 * 10_000 * FLOAT + 2 * SCALAR - SCALAR


def test_a_tensor_made_in_one_measurement_that_dies_in_the_next():
    """The CPU allocator remembers it, and reports its release: it must not count twice."""
    before, box = live_bytes(), []

    def fill():
        box.append(torch.empty(100_000, dtype=torch.uint8))

    def empty():
        box.clear()
        torch.empty(110_000, dtype=torch.uint8)

    assert measure(fill, [], warmup=0).peak - before == 100_000
    report = measure(empty, [], warmup=0)
    assert report.peak - before == 110_000
    assert report.other == before


def test_a_tensor_from_before_that_is_resized_in_the_step():
    """As memcnn does with inputs and FSDP with parameters: gone in between, back at the end."""
    before, x = live_bytes(), torch.empty(100_000, dtype=torch.uint8)

    def step():
        x.untyped_storage().resize_(0)
        torch.empty(60_000, dtype=torch.uint8)
        x.untyped_storage().resize_(100_000)
        torch.empty(30_000, dtype=torch.uint8)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = measure(step, [], warmup=0)
    assert report.peak - before == 130_000


def test_memory_that_went_unseen_is_reported():
    """ATen's own resize of a storage leaves no trace in time: upper bound, and a warning."""
    before, x = live_bytes(), torch.empty(1000, dtype=torch.uint8)
    with pytest.warns(RuntimeWarning, match=r"1 tensors from before.*\(1000 bytes\).*upper bound"):
        report = measure(lambda: x.resize_(5000), [], warmup=0)
    assert report.peak - before == 6000


# --- repeatability, cleaning up, errors -------------------------------------------------------


def test_two_calls_agree_and_leave_nothing():
    net, x = conv_stack(3), torch.randn(1, 8, 16, 16)

    def step():
        net(x).sum().backward()

    first = measure(step, net)
    alive = live_bytes()
    second = measure(step, net)
    assert numbers(first) == numbers(second)
    assert live_bytes() == alive


def test_a_step_that_fails():
    net, x = nn.Linear(4, 4), torch.randn(1, 4)
    calls = []

    def step():
        net(x).sum().backward()
        calls.append(1)
        if len(calls) == 2:
            raise ZeroDivisionError("inside the step")

    with pytest.raises(ZeroDivisionError, match="inside the step"):
        measure(step, net)
    assert not net.weight._post_accumulate_grad_hooks
    assert not torch.autograd.profiler._is_profiler_enabled
    # The next measurement works.
    check_sum(measure(step, net))


def test_inside_another_profiler():
    """Starting a second one would end the first without a word."""
    with torch.profiler.profile() as outer:
        with pytest.raises(RuntimeError, match="already recording"):
            measure(lambda: None)
        torch.ones(3)
    assert any(event.key == "aten::ones" for event in outer.key_averages())


def test_a_step_that_uses_the_profiler():
    def step():
        with torch.profiler.profile():
            torch.ones(3)

    with pytest.raises(RuntimeError, match="the step may not use it"):
        measure(step)


def test_parameters_on_two_devices():
    two = [nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2, device="meta"))]
    with pytest.raises(ValueError, match=r"several devices \(cpu, meta\): say which"):
        measure(lambda: None, two)
    assert measure(lambda: None, two, device="cpu").parameters == 2 * FLOAT


def test_a_failed_measurement_holds_on_to_nothing():
    def fail():
        x = torch.randn(1000)

        def step():
            x.sin()
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            measure(step, [], warmup=0)
        return weakref.ref(x.untyped_storage())

    gone = fail()
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"step": 3}, TypeError, "step must be callable"),
        ({"warmup": -1}, ValueError, "warmup must be 0 or more"),
        ({"warmup": 1.5}, TypeError, "warmup must be an int"),
        ({"warmup": True}, TypeError, "warmup must be an int"),
        ({"warmup": 0}, ValueError, "without warm-up runs, module must say"),
        ({"module": 3}, TypeError, "an iterable of parameters or None, not int"),
        ({"module": nn.Parameter(torch.ones(3))}, TypeError, "not Parameter"),
        ({"module": ["weight"]}, TypeError, "item 0 is of type str"),
        ({"device": "meta"}, ValueError, "'cpu', 'cuda' or 'cuda:N', not 'meta'"),
        ({"device": "nonsense"}, ValueError, "'nonsense'"),
        ({"device": 3.5}, ValueError, "3.5"),
        ({"module": nn.Linear(2, 2, device="meta")}, ValueError, "not 'meta'"),
    ],
)
def test_wrong_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        measure(**{"step": lambda: None, **arguments})


def test_what_is_computed_is_no_parameter():
    with pytest.raises(TypeError, match="item 0 is the result of an operation"):
        measure(lambda: None, [torch.ones(2, requires_grad=True) * 2])


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_where_there_is_none():
    with pytest.raises(ValueError, match="finds no CUDA device"):
        measure(lambda: None, device="cuda")


# --- how it reads -----------------------------------------------------------------------------


def test_table_and_json():
    report = MemoryReport(
        peak=7 * 2**20,
        parameters=2**20,
        gradients=2**20,
        kept_for_backward=2**20,
        workspace=2**20,
        scratch=2**20,
        other=2**21,
        peak_without_scratch=6 * 2**20,
        unrecorded=None,
        device="cuda:0",
    )
    lines = str(report).splitlines()
    assert lines[0].split() == ["peak", "on", "cuda:0", "7.00", "MiB"]
    assert lines[-1].split() == ["unrecorded", "(sampled)", "not", "measured"]
    assert len({line.index("MiB") for line in lines if "MiB" in line}) == 1
    assert json.loads(json.dumps(report.as_dict()))["kept_for_backward"] == 2**20
    check_sum(report)


# --- what the profiler does not see -----------------------------------------------------------


@pytest.mark.skipif(malloc_counter() is None, reason="this C library cannot count")
def test_memory_beside_the_allocator_is_noticed():
    """NumPy's memory is not PyTorch's: 32 MiB held for 20 ms show, and are not in the peak."""
    size = 32 * 2**20

    def step():
        torch.ones(1000)
        buffer = numpy.empty(size, dtype=numpy.uint8)
        time.sleep(0.02)
        del buffer
        time.sleep(0.005)

    before = live_bytes()
    report = measure(step)
    assert report.peak == before + 4000
    assert report.unrecorded == pytest.approx(size, rel=0.05)


@pytest.mark.skipif(malloc_counter() is None, reason="this C library cannot count")
def test_pytorch_s_own_memory_is_not_taken_for_unrecorded():
    """Large blocks come and go while a thread samples: none of them may show."""
    x = torch.randn(1 << 20)

    def step():
        for _ in range(10):
            x.sin().cos()

    report = measure(step)
    assert report.workspace == 2 * x.nbytes
    assert report.unrecorded is not None and report.unrecorded < x.nbytes // 4


# --- on a GPU ---------------------------------------------------------------------------------


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_agrees_with_the_allocators_counter():
    net = conv_stack(4).cuda()
    x = torch.randn(4, 8, 128, 128, device="cuda")

    def step():
        net(x).sum().backward()

    report = measure(step, net)
    check_sum(report)
    assert report.device == "cuda:0"
    assert report.unrecorded is None
    assert report.kept_for_backward >= 3 * x.nbytes
    net.zero_grad()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    assert report.peak == pytest.approx(torch.cuda.max_memory_allocated(), rel=0.02)


@pytest.mark.parametrize("kind", ["fixed-point", "functional", "fake"])
def test_storages_without_memory_are_passed_over(kind):
    """Their tensors may be alive, and hold on to the storages."""
    before = live_bytes()
    if kind == "fixed-point":
        tensor = FixedPoint.from_float(torch.ones(1000))
    elif kind == "functional":
        tensor = torch._to_functional_tensor(torch.ones(1000))
    else:
        with FakeTensorMode():
            tensor = torch.ones(1000)
    storage = tensor.untyped_storage()
    assert live_bytes() - before == (0 if kind == "fake" else 4000)
    assert storage is not None
