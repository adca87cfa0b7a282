"""A sequence inside of `torch.compile`: one node that is traced, or a break of the graph.

Imported when a sequence is traced, because it needs the compiler's own modules.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from revgrad.autograd.inventory import has_hooks, may_misread_gradients
from revgrad.autograd.outside import outside_of_compiler
from revgrad.autograd.protocol import State
from revgrad.autograd.scrutiny import refuse
from revgrad.autograd.whole import run_whole
from revgrad.errors import ReversibleError
from revgrad.nn.layer import ReversibleLayer
from revgrad.nn.orthogonal import OrthogonalMatrices
from revgrad.nn.schedule import INVERT
from revgrad.nn.sequence import ReversibleSequence, where_is
from revgrad.nn.streams import dense_streams
from revgrad.nn.tap import Tap
from revgrad.ops.kernels import constant_when_traced, in_transform
from revgrad.ops.precision import coarse_products

# Before, the compiler takes no module for a constant, and so can't ask what stands in its way.
_OLDEST = (2, 13)
_TRACES = tuple(int(part) for part in torch.__version__.split(".")[:2]) >= _OLDEST
_Layers = list[tuple[str, ReversibleLayer, int]]


@outside_of_compiler
def run_traced(
    sequence: ReversibleSequence,
    x: Tensor | State,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    logdet: bool,
) -> Any:
    """`sequence(x, *args, **kwargs)` in traced code.

    Where that can't be, the graph is broken: then this function is called as such.
    """
    if not torch.compiler.is_dynamo_compiling():
        return sequence._run(x, args, kwargs, logdet)
    if not _TRACES:
        refuse("a sequence is traced by PyTorch 2.13 and newer")
    saving = sequence.save_memory and _needs_grad(sequence, (x, args, kwargs))
    reason = obstacle(sequence, saving, logdet)
    if reason is not None:
        refuse(reason)
    layers = _layers(sequence, "")
    state = dense_streams(x, sequence.split_dim, None)
    joined = isinstance(x, Tensor)
    if saving:
        sizes = None
        if joined and sequence.split_dim % state[0].dim() == 1:
            sizes = list(sequence._out_channels((state[0].shape[1], state[1].shape[1])))
        contiguous = reads_contiguously(sequence)
        found = run_whole(layers, sizes, contiguous, state, args, kwargs)
        joined = joined and sizes is None
    else:
        found = _run_plainly(layers, state, args, kwargs)
    names = [layer.name for _, layer, _ in layers if isinstance(layer, Tap)]
    cut = len(found) - len(names)
    outputs, taps = found[:cut], found[cut:]
    if joined:
        _expect_two(outputs)
        outputs = (torch.cat(outputs, sequence.split_dim),)
    output = outputs[0] if isinstance(x, Tensor) else outputs
    return (output, dict(zip(names, taps, strict=True))) if names else output


@outside_of_compiler
def run_traced_inverse(
    sequence: ReversibleSequence,
    y: Tensor | State,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    logdet: bool,
) -> Any:
    """`sequence.inverse(y, *args, **kwargs)` in traced code."""
    if not torch.compiler.is_dynamo_compiling():
        return sequence._invert(y, args, kwargs, logdet)
    if not _TRACES:
        refuse("a sequence is traced by PyTorch 2.13 and newer")
    reason = obstacle(sequence, False, logdet)
    if reason is not None:
        refuse(reason)
    state = dense_streams(y, sequence.split_dim, sequence._out_channels)
    for _, layer, _ in reversed(_layers(sequence, "")):
        taken = layer.num_outputs
        state = (*layer.inverse(*state[:taken], *args, **kwargs), *state[taken:])
    return torch.cat(state, sequence.split_dim) if isinstance(y, Tensor) else state


@constant_when_traced
def obstacle(sequence: ReversibleSequence, saving: bool, logdet: bool) -> str | None:
    """Why a sequence can't be traced whatever its sub-networks do, or None.

    Args:
        sequence: The sequence.
        saving: Whether it has to save memory.
        logdet: Whether the log-determinant is asked for.
    """
    if logdet:
        return "log-determinants are not traced"
    sequences = [m for m in sequence.modules() if isinstance(m, ReversibleSequence)]
    if sequence.arithmetic == "exact":
        return 'a sequence with arithmetic="exact" is not traced'
    if coarse_products() and any(isinstance(m, OrthogonalMatrices) for m in sequence.modules()):
        return (
            "matrix products are rounded (torch.set_float32_matmul_precision), with which "
            "orthogonal layers are not traced: what they compute back would drift"
        )
    if not saving:
        return None
    if sequence.schedule != INVERT:
        return "a sequence with a schedule is not traced"
    if any(inner.anchor_every is not None for inner in sequences):
        return "a sequence with anchor_every is not traced"
    if len(list(sequence.named_parameters(remove_duplicate=False))) > len(
        list(sequence.parameters())
    ):
        return "a sequence with a parameter in two places is not traced"
    for where, layer, _ in _layers(sequence, ""):
        if type(layer).prepare is not ReversibleLayer.prepare:
            return f"{where} starts from its first batch (`prepare`), which is not traced"
        if any(part.backward_step is None for part in layer.parts(layer.forward)):
            return f"{where} has no backward_step, without which a layer is not traced"
        if any(isinstance(m, ReversibleSequence) for m in layer.modules()):
            return f"{where}: a sequence inside a sub-network is not traced"
        hooked = [type(m).__name__ for m in layer.modules() if has_hooks(m)]
        if hooked:
            return f"{where}: a {hooked[0]} has hooks, or a __call__ or forward of its own"
    return None


@constant_when_traced
def reads_contiguously(sequence: ReversibleSequence) -> bool:
    """Whether gradients have to be contiguous, see `gradient_strides`."""
    return may_misread_gradients(sequence)


def _layers(sequence: ReversibleSequence, prefix: str) -> _Layers:
    """The layers, those of inner sequences in their place; with the number of tapped values."""
    found: _Layers = []
    for i, layer in enumerate(sequence.layers):
        if isinstance(layer, ReversibleSequence):
            found += _layers(layer, f"{prefix}{i}.")
        elif isinstance(layer, ReversibleLayer):
            found.append((where_is(layer, f"{prefix}{i}"), layer, int(isinstance(layer, Tap))))
    return found


def _needs_grad(sequence: ReversibleSequence, inputs: Any) -> bool:
    """Whether there is a backward pass to save memory for."""
    if not torch.is_grad_enabled() or in_transform():
        return False
    tensors = [t for t in tree_leaves(inputs) if isinstance(t, Tensor)]
    return any(t.requires_grad for t in (*tensors, *sequence.parameters()))


def _run_plainly(
    layers: _Layers, state: State, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> State:
    """The layers as ordinary modules; behind the streams the tapped values."""
    taps: State = ()
    for _, layer, _ in layers:
        outputs = layer(*state[: layer.num_inputs], *args, **kwargs)
        state, taps = (
            (*outputs[: layer.num_outputs], *state[layer.num_inputs :]),
            (*taps, *outputs[layer.num_outputs :]),
        )
    return (*state, *taps)


def _expect_two(outputs: State) -> None:
    if len(outputs) != 2:
        raise ReversibleError("the sequence ends with open skips: a SplitSkip lacks its JoinSkip")
