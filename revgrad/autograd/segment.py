"""A module as one node of the graph that stores its inputs alone and runs it again."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from revgrad.autograd.layout import alias
from revgrad.autograd.observers import announce_stored
from revgrad.autograd.outside import outside_of_compiler
from revgrad.autograd.protocol import Gradients, Layer, Part, State
from revgrad.autograd.recompute import lock_of, version
from revgrad.autograd.record import Record, SideInputs
from revgrad.autograd.rewind import Rewind
from revgrad.autograd.saved import saved_tensors
from revgrad.errors import ReversibleError, locate


def run_segment(
    layer: Layer, part: Part, where: str, x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> State:
    """Run a part of a layer by itself, outside of any tape.

    Args:
        layer: The layer, for messages about its results.
        part: What is run; its `backward_step` is not asked.
        where: Its name, for messages.
        x: Its first argument.
        args: The further ones; tensors among them get their gradients.
        kwargs: The same by keyword.
    """
    record = Record(layer, part, SideInputs(args, kwargs), (x,), contiguous=False)
    with lock_of(part.module):
        tensors = (x, *SideInputs.tensors(args, kwargs), *record.collect_parameters())
        outputs: State = _Segment.apply(record, where, *tensors)
    return outputs


class _Segment(torch.autograd.Function):
    """Inputs are the record, its name, the argument, side tensors and parameters."""

    @staticmethod
    def forward(ctx: Any, record: Record, where: str, *tensors: Tensor) -> State:
        given = tensors[: 1 + record.side.count]
        args, kwargs = record.side.with_tensors(given[1:])
        before = [version(t) for t in given]
        outputs = record.run_forward(tensors[0], args=args, kwargs=kwargs)
        if before != [version(t) for t in given]:
            raise ReversibleError(
                f"{where}: the module changed an input in place, which the backward pass could "
                "not run it on again; make that operation out-of-place (ReLU() instead of "
                "ReLU(inplace=True))"
            )
        announce_stored(where, tensors[:1])
        ctx.record, ctx.where = record, where
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)
        return tuple(map(alias, outputs))

    @staticmethod
    @outside_of_compiler
    def backward(ctx: Any, *grads: Tensor | None) -> Gradients:
        record: Record = ctx.record
        try:
            x, *others = saved_tensors(ctx, "a parameter or an input of it")
            rewind = Rewind(record, others, ctx.needs_input_grad[3:])
            with lock_of(record.part.module):
                (input_grad,) = rewind.replay((x,), grads, ctx.needs_input_grad[2:3])
        except BaseException as error:
            locate(error, ctx.where)
            raise
        return None, None, input_grad, *rewind.leaf_grads()
