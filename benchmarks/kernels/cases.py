"""What is measured: operators, their rivals in eager PyTorch, and the goals."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from revgrad.fixed_point.rotation import Lifting
from revgrad.ops import (
    expm_skew,
    norm_act,
    norm_act_update,
    norm_act_update_,
    orthogonal_down,
    orthogonal_down_exact,
    orthogonal_up,
    orthogonal_up_exact,
)
from revgrad.ops.norm_act import ACTIVATIONS, Settings
from revgrad.ops.orthogonal import merge_blocks, to_blocks

Run = Callable[[], object]


@dataclass(frozen=True)
class Plan:
    """A whole run.

    Attributes:
        sizes: Of the images, (N, C, ...).
        matrices: Sizes n of the antisymmetric matrices, n x n.
        repeats: Rounds in which the contestants take turns; their shortest times count.
        threads: PyTorch's.
        device: "cpu" or "cuda".
    """

    sizes: tuple[tuple[int, ...], ...]
    matrices: tuple[int, ...]
    repeats: int
    threads: int
    device: str = "cpu"


@dataclass(frozen=True)
class Case:
    """One line of a table.

    Attributes:
        operator: What is computed.
        what: Shape, type and memory format.
        unit: What times are multiples of: "clone" of the input, or what else `base` computes.
        base: The unit.
        ours: The kernel.
        rivals: The same in eager PyTorch, by name.
        goal: The most that `ours` shall take, in units, or None.
    """

    operator: str
    what: str
    unit: str
    base: Run
    ours: Run
    rivals: Mapping[str, Run] = field(default_factory=dict)
    goal: float | None = None


SLOPE = 0.01


def cases(plan: Plan) -> Iterator[Case]:
    """All cases, each with tensors of its own that go when it goes."""
    for dtype in (torch.float32, torch.bfloat16):
        for last in (False, True):
            for size in plan.sizes:
                yield from _norms(size, dtype, last, plan.device)
    for dtype in (torch.float32, torch.bfloat16):
        for last in (False, True):
            for size in plan.sizes:
                yield from _resampling(size, dtype, last, plan.device)
    for last in (False, True):
        for size in plan.sizes:
            yield from _exact_resampling(size, last, plan.device)
    for n in plan.matrices:
        yield from _exponentials(n, plan.device)


def _norms(size: tuple[int, ...], dtype: torch.dtype, last: bool, device: str) -> Iterator[Case]:
    x = _image(size, dtype, last, device)
    what = _named(size, dtype, last)
    channels = size[1]
    w, b = (torch.rand(channels, device=device).requires_grad_() for _ in range(2))
    # Eager wants one type.
    v, c = (t.detach().to(dtype).requires_grad_() for t in (w, b))

    def ours(x: Tensor) -> Tensor:
        return norm_act(x, w, b, activation="leaky_relu", slope=SLOPE)

    def instance(x: Tensor) -> Tensor:
        return F.leaky_relu(F.instance_norm(x, weight=v, bias=c), SLOPE)

    def group(x: Tensor) -> Tensor:
        return F.leaky_relu(F.group_norm(x, channels, v, c), SLOPE)

    goal = {(torch.float32, False): 1.6, (torch.bfloat16, True): 2.0}.get((dtype, last))
    rivals = {"instance norm": instance, "GroupNorm(C, C)": group}
    yield Case(
        "norm + leaky ReLU, forward",
        what,
        "clone",
        x.clone,
        _without_grad(ours, x),
        {name: _without_grad(f, x) for name, f in rivals.items()},
        goal,
    )
    leaf, dy = x.clone().requires_grad_(), _image(size, dtype, last, device)
    yield Case(
        "norm + leaky ReLU, forward + backward",
        what,
        "clone",
        x.clone,
        _with_backward(ours, dy, leaf, w, b),
        {name: _with_backward(f, dy, leaf, v, c) for name, f in rivals.items()},
        5.0 if dtype == torch.float32 else None,
    )
    yield from _updates(x, w.detach(), b.detach(), what, group)


def _updates(
    x: Tensor, w: Tensor, b: Tensor, what: str, group: Callable[[Tensor], Tensor]
) -> Iterator[Case]:
    chosen = Settings(x.shape[1], False, 1e-5, ACTIVATIONS.index("leaky_relu"), SLOPE)
    for kind, bits in ((x.dtype, None), (torch.int32, 20)):
        stream = torch.zeros_like(x, dtype=kind)

        def ours(stream: Tensor = stream, bits: int | None = bits) -> object:
            return norm_act_update_(stream, x, w, b, None, None, chosen, fraction_bits=bits)

        def eager(stream: Tensor = stream) -> object:
            with torch.no_grad():
                return stream.add_(group(x))

        name = "a stream" if bits is None else "an int32 stream"
        rivals = {"GroupNorm(C, C)": eager} if bits is None else {}
        yield Case(f"norm + leaky ReLU, added to {name}", what, "clone", x.clone, ours, rivals)

        def apart(stream: Tensor = stream, bits: int | None = bits) -> object:
            return norm_act_update(stream, x, w, b, None, None, chosen, fraction_bits=bits)

        def copied(stream: Tensor = stream, bits: int | None = bits) -> object:
            result = stream.clone()
            return norm_act_update_(result, x, w, b, None, None, chosen, fraction_bits=bits)

        rivals = {"clone, then added": copied}
        name = f"norm + leaky ReLU, added to {name} in new memory"
        yield Case(name, what, "clone", x.clone, apart, rivals)


def _resampling(
    size: tuple[int, ...], dtype: torch.dtype, last: bool, device: str
) -> Iterator[Case]:
    axes = len(size) - 2
    if len(size) < 4 or any(s % 2 for s in size[2:]):
        return
    x, channels, k = _image(size, dtype, last, device), size[1], 2**axes
    q = torch.linalg.qr(torch.randn(channels, k, k))[0].to(device)
    # Of a grouped convolution: (C * K, 1, 2, ...).
    weight = q.reshape(channels * k, 1, *[2] * axes).to(dtype)
    down = {2: F.conv2d, 3: F.conv3d}[axes]
    up = {2: F.conv_transpose2d, 3: F.conv_transpose3d}[axes]
    y = orthogonal_down(x, q, 2)
    what = _named(size, dtype, last)
    for name, image, ours, conv in (
        ("orthogonal_down", x, orthogonal_down, down),
        ("orthogonal_up", y, orthogonal_up, up),
    ):
        rival = partial(conv, image, weight, stride=2, groups=channels)
        yield Case(
            name,
            what,
            "clone",
            image.clone,
            partial(ours, image, q, 2),
            {"grouped convolution": rival},
            1.5,
        )


def _exact_resampling(size: tuple[int, ...], last: bool, device: str) -> Iterator[Case]:
    """In fixed point; the rival is what the same arithmetic takes in plain PyTorch."""
    stride = (2,) * (len(size) - 2)
    if len(size) < 4 or any(s % 2 for s in size[2:]):
        return
    k = 2 ** len(stride)
    x = (_image(size, torch.float32, last, device) * 2**20).int()
    q = torch.linalg.qr(torch.randn(size[1], k, k))[0].to(device)
    y = orthogonal_down_exact(x, q, stride)

    def down() -> object:
        return Lifting.of(q).apply(to_blocks(x, stride)).flatten(1, 2)

    def up() -> object:
        return merge_blocks(Lifting.of(q).undo(y.unflatten(1, (-1, k))), stride)

    what = _named(size, torch.int32, last)
    for name, image, ours, plain in (
        ("orthogonal_down_exact", x, orthogonal_down_exact, down),
        ("orthogonal_up_exact", y, orthogonal_up_exact, up),
    ):
        run = partial(ours, image, q, stride)
        yield Case(name, what, "clone", image.clone, run, {"plain PyTorch": plain})


def _exponentials(n: int, device: str) -> Iterator[Case]:
    batch = max(1, min(256, 2**18 // n**2))
    theta = (torch.randn(batch, n, n, device=device) / n**0.5).requires_grad_()
    dy = torch.randn(batch, n, n, device=device)

    def eager(theta: Tensor) -> Tensor:
        return torch.linalg.matrix_exp(theta - theta.mT)

    forward = _without_grad(expm_skew, theta)
    what = f"{batch} of {n} x {n}, float32"
    yield Case(
        "expm_skew, forward", what, "matrix_exp", _without_grad(eager, theta), forward, goal=1.0
    )
    yield Case(
        "expm_skew, forward + backward",
        what,
        "our forward",
        forward,
        _with_backward(expm_skew, dy, theta),
        {"matrix_exp": _with_backward(eager, dy, theta)},
        3.5 if n >= 64 else None,
    )


def _without_grad(function: Callable[[Tensor], Tensor], x: Tensor) -> Run:
    def run() -> object:
        with torch.no_grad():
            return function(x)

    return run


def _with_backward(
    function: Callable[[Tensor], Tensor], dy: Tensor, x: Tensor, *more: Tensor
) -> Run:
    return lambda: torch.autograd.grad(function(x), (x, *more), dy)


def _image(size: tuple[int, ...], dtype: torch.dtype, last: bool, device: str) -> Tensor:
    x = torch.randn(size, device=device).to(dtype)
    return x.movedim(1, -1).contiguous().movedim(-1, 1) if last else x


def _named(size: tuple[int, ...], dtype: torch.dtype, last: bool) -> str:
    layout = "channels-last" if last else "contiguous"
    return f"{'x'.join(map(str, size))}, {str(dtype).removeprefix('torch.')}, {layout}"
