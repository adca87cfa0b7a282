"""A tensor of fixed-point numbers, and its doors to floats."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map

from revgrad.dataless import has_data
from revgrad.errors import ReversibleError
from revgrad.fixed_point.grid import Grid
from revgrad.fixed_point.range_watch import current_watch

aten = torch.ops.aten

# What moves numbers without changing them.
_MOVES = {
    aten.alias, aten.as_strided, aten.cat, aten.clone, aten.detach, aten.expand, aten.flip,
    aten.permute, aten.pixel_shuffle, aten.pixel_unshuffle, aten.roll, aten.select, aten.slice,
    aten.split, aten.split_with_sizes, aten.squeeze, aten.stack, aten.t, aten.transpose,
    aten.unbind, aten.unfold, aten.unsqueeze, aten.view, aten._unsafe_view, aten._reshape_alias,
}  # fmt: skip
# The same, with further tensors that say what to move.
_INDEXED_MOVES = {aten.gather, aten.index, aten.index_select}
_SUMS = {aten.add, aten.sub}
_OTHER_TYPES = {aten.view.dtype}  # read the bits as numbers of another type


class FixedPoint(Tensor):
    """A tensor of numbers n * 2**-fraction_bits, held as 32-bit integers n.

    To autograd and to everything that looks at it, it is a float tensor: it may require a
    gradient, and gradients are floats. Sums, differences, negation and whatever only moves numbers
    (views, permutations, concatenation) are exact and give fixed-point numbers again. Any other
    operation sees floats and gives floats. It can't be written into.

    Make one with `FixedPoint.from_float` and read it with `to_float`. A `ReversibleSequence` with
    exact arithmetic takes one, and then gives one back: nothing is rounded at its doors. Only
    inside of a sequence is it noticed when a sum leaves the range.

    Attributes:
        integers: n, int32; not to be written into.
        grid: The distance of the numbers, and the float type that stands for them.
        bound: No number is larger in size, in steps of the grid; a scalar on the tensor's device,
            or None where nobody asks.
    """

    integers: Tensor
    grid: Grid
    bound: Tensor | None

    # Functions of the Python layer need no treatment: all happens in __torch_dispatch__.
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, integers: Tensor, grid: Grid, bound: Tensor | None = None) -> FixedPoint:
        made: FixedPoint = torch.Tensor._make_wrapper_subclass(
            cls,
            integers.size(),
            strides=integers.stride(),
            storage_offset=integers.storage_offset(),
            dtype=grid.gradient_dtype,
            device=integers.device,
        )
        return made

    def __init__(self, integers: Tensor, grid: Grid, bound: Tensor | None = None) -> None:
        self.integers = integers
        self.grid = grid
        self.bound = bound

    @classmethod
    def from_float(cls, x: Tensor, fraction_bits: int = 20) -> Tensor:
        """Round a float tensor of any shape to the grid; the derivative is that of the identity.

        Args:
            x: Floats less than 2**(31 - fraction_bits) in size.
            fraction_bits: Binary digits behind the point, 0 to 30.

        Raises:
            ReversibleError: If a number is too large or not finite.
        """
        grid = Grid(fraction_bits, x.dtype)
        fixed = to_fixed(x, grid)
        steps = x.detach().double().div(grid.step).round_().abs()
        largest = steps.amax().item() * grid.step if x.numel() and has_data(x) else 0.0
        if not largest < grid.limit:
            raise ReversibleError(
                f"a number of size {largest:.4g} does not fit: with fraction_bits={fraction_bits} "
                f"they must be finite and less than {grid.limit:g} in size"
            )
        return fixed

    def to_float(self) -> Tensor:
        """The numbers as floats of the type they came from."""
        return to_float(self)

    def tolist(self) -> Any:
        """The numbers as Python floats."""
        return to_float(self.detach()).tolist()

    def numpy(self, *, force: bool = False) -> Any:
        """The numbers as an array of floats."""
        return self.to_float().numpy(force=force)

    def __repr__(self, *, tensor_contents: Any = None) -> Any:  # type: ignore[override]
        floats = repr(to_float(self.detach())).removeprefix("tensor(").removesuffix(")")
        return f"FixedPoint({floats}, fraction_bits={self.grid.fraction_bits})"

    def same(self) -> FixedPoint:
        """Another tensor of the same integers, unknown to autograd."""
        return FixedPoint(self.integers, self.grid, self.bound)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        writes = func._schema.is_mutable
        if writes and _writes_into_fixed(func, args, kwargs):
            raise ReversibleError(
                f"{func.overloadpacket} would write into a fixed-point stream; make a new tensor"
            )
        if not writes:
            tensors = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, Tensor)]
            exact = _exactly(func, args, kwargs, tensors)
            if exact is not None:
                return exact
        return func(*tree_map(_floats, args), **tree_map(_floats, kwargs))

    def __dlpack__(self, **options: Any) -> Any:
        """The numbers as floats, for other libraries."""
        return to_float(self.detach()).__dlpack__(**options)


def _exactly(
    func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], tensors: list[Tensor]
) -> Any:
    """The result in fixed-point numbers, or None if there is none."""
    packet = func.overloadpacket
    fixed = [t for t in tensors if isinstance(t, FixedPoint)]
    all_fixed = len(fixed) == len(tensors)
    if packet in _SUMS and all_fixed and len(fixed) == 2:
        alpha = args[2] if len(args) > 2 else kwargs.get("alpha", 1)
        return _sum(func, fixed, int(alpha)) if alpha in (1, -1) else None
    moves = packet in _MOVES and all_fixed and func not in _OTHER_TYPES
    if moves or (packet in _INDEXED_MOVES and len(fixed) == 1 and fixed[0] is args[0]):
        return _wrap(func(*tree_map(_integers, args), **tree_map(_integers, kwargs)), fixed)
    if packet is aten._to_copy and kwargs.get("dtype", fixed[0].dtype) == fixed[0].dtype:
        moved = {name: value for name, value in kwargs.items() if name != "dtype"}
        return _wrap(func(fixed[0].integers, **moved), fixed)
    if packet is aten.neg:
        return _wrap(func(fixed[0].integers), fixed)
    return None


def _integers(x: Any) -> Any:
    return x.integers if isinstance(x, FixedPoint) else x


def _floats(x: Any) -> Any:
    return x.grid.floats(x.integers, x.dtype) if isinstance(x, FixedPoint) else x


def _common_grid(fixed: list[FixedPoint]) -> Grid:
    bits = {t.grid.fraction_bits for t in fixed}
    if len(bits) > 1:
        raise ReversibleError(
            "fixed-point numbers only go together where they have the same fraction_bits; here "
            f"{' and '.join(map(str, sorted(bits)))}"
        )
    dtypes = [t.grid.dtype for t in fixed]
    return Grid(bits.pop(), functools.reduce(torch.promote_types, dtypes))


def _writes_into_fixed(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    for i, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            written = args[i] if i < len(args) else kwargs.get(argument.name)
            if any(isinstance(t, FixedPoint) for t in tree_flatten(written)[0]):
                return True
    return False


def _wrap(result: Any, fixed: list[FixedPoint]) -> Any:
    """Integers as fixed-point numbers again, none larger than what they come from."""
    grid, watch = _common_grid(fixed), current_watch()
    bound = None
    if watch is not None:
        bounds = [watch.bound_of(t) for t in fixed]
        bound = bounds[0] if len(bounds) == 1 else torch.stack(bounds).amax()
    return tree_map(lambda t: FixedPoint(t, grid, bound), result)


def _sum(func: Any, fixed: list[FixedPoint], alpha: int) -> FixedPoint:
    grid, watch = _common_grid(fixed), current_watch()
    integers = func(fixed[0].integers, fixed[1].integers, alpha=alpha)
    bound = None if watch is None else watch.of_stream(fixed, integers)
    return FixedPoint(integers, grid, bound)


# --- doors --------------------------------------------------------------------------------------


def to_fixed(value: Tensor, grid: Grid, what: str = "a value") -> Tensor:
    """Round floats to the grid. The derivative is that of the identity (straight-through).

    Args:
        value: Real floats of any shape.
        grid: Where to.
        what: What the value is, for the message if it does not fit.
    """
    if not value.is_floating_point():
        raise ReversibleError(f"{what} is {value.dtype}; exact arithmetic takes real floats")
    if torch.promote_types(value.dtype, grid.gradient_dtype) != grid.gradient_dtype:
        raise ReversibleError(
            f"{what} is {value.dtype}, which does not fit into a stream of {grid.dtype}; convert "
            "it, or the input of the sequence"
        )
    if torch.is_grad_enabled() and value.requires_grad:
        rounded: Tensor = _ToFixed.apply(value, grid, what)
        return rounded
    return _rounded(value, grid, what)


def to_float(x: Tensor) -> Tensor:
    """Fixed-point numbers as floats, in new memory; floats as they are."""
    if not isinstance(x, FixedPoint):
        return x
    if torch.is_grad_enabled() and x.requires_grad:
        floats: Tensor = _ToFloat.apply(x)
        return floats
    return x.grid.floats(x.integers)


def linear(
    x: Tensor,
    exact: Callable[[Tensor], Tensor],
    transpose: Callable[[Tensor], Tensor],
    growth: float,
) -> Tensor:
    """A linear map of fixed-point numbers that is computed on their integers.

    Args:
        x: A `FixedPoint`.
        exact: The map of the integers.
        transpose: The transposed linear map of float gradients: the derivative.
        growth: Nothing in the map becomes larger than this times the largest number.
    """
    mapped: Tensor = _Linear.apply(x, exact, transpose, growth)
    return mapped


def on_integers(x: FixedPoint, exact: Callable[[Tensor], Tensor], growth: float) -> FixedPoint:
    """Apply a map to the integers, without derivative; see `linear` for the arguments."""
    integers, watch = exact(x.integers), current_watch()
    bound = None if watch is None else watch.of_stream([x], integers, growth)
    return FixedPoint(integers, x.grid, bound)


def _rounded(value: Tensor, grid: Grid, what: str) -> FixedPoint:
    watch = current_watch()
    bound = None if watch is None else watch.of_value(value, grid, what)
    return FixedPoint(grid.round(value.detach()), grid, bound)


class _ToFixed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, grid: Grid, what: str) -> Tensor:
        ctx.dtype = value.dtype
        return _rounded(value, grid, what)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return grad.to(ctx.dtype), None, None


class _ToFloat(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: FixedPoint) -> Tensor:
        ctx.dtype = x.dtype
        return x.grid.floats(x.integers)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad.to(ctx.dtype)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: FixedPoint,
        exact: Callable[[Tensor], Tensor],
        transpose: Callable[[Tensor], Tensor],
        growth: float,
    ) -> Tensor:
        ctx.transpose = transpose
        return on_integers(x, exact, growth)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.transpose(grad), None, None, None
