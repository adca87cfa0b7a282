"""A module that is run again in the backward pass, with only its inputs stored."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from revgrad.autograd.inventory import known
from revgrad.autograd.outside import outside_of_compiler
from revgrad.autograd.protocol import Part, State
from revgrad.autograd.segment import run_segment
from revgrad.errors import ReversibleError
from revgrad.nn.arithmetic import forward_mode_is_on


@known
class Recompute(nn.Module):
    """Runs any module so that nothing of it is stored for the backward pass but its inputs.

    For what is cheap to compute and large to keep, and can't be computed back: pooling,
    upsampling, 1x1 convolutions between reversible sequences. The repetition has the random
    numbers (of the CPU's generator and that of the first argument's device), autocast, train or
    eval mode and buffers of the forward pass; running statistics are updated once. The module may
    contain reversible sequences, and further modules of this class.

    Args:
        module: What is run. It gives a tensor or a tuple of tensors, must not change its inputs
            in place, and must get every tensor that requires a gradient as a parameter or an
            argument. What it keeps of its forward pass besides, such as a loss as an attribute,
            has no gradient.
        save_memory: If False, ordinary autograd. May be changed at any time.

    Raises:
        ReversibleError: If the module changes an input in place. In the backward pass, if a
            parameter or an input was changed in place since the forward pass, or a gradient would
            be lost.
    """

    num_inputs, num_outputs = 1, 1

    def __init__(self, module: nn.Module, *, save_memory: bool = True) -> None:
        super().__init__()
        if not isinstance(module, nn.Module):
            raise TypeError(f"module must be a torch.nn.Module, not {type(module).__name__}")
        self.module = module
        self.save_memory = save_memory

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Run the module. Traced by `torch.compile`, the graph is broken here."""
        if torch.compiler.is_dynamo_compiling() and self.save_memory:
            from revgrad.autograd.scrutiny import refuse  # brings the compiler

            refuse("a module that is recomputed is not traced")
        if not self._can_save((x, args, kwargs)):
            return self.module(x, *args, **kwargs)
        return self._run(x, args, kwargs)

    @outside_of_compiler
    def _run(self, x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        gave_one = False

        def call(*args: Any, **kwargs: Any) -> State:
            nonlocal gave_one
            result = self.module(*args, **kwargs)
            gave_one = isinstance(result, Tensor)
            return (result,) if gave_one else self._checked(result)

        part = Part(self.module, call, None, stores_input=True)
        outputs = run_segment(self, part, self._label(), x, args, kwargs)  # type: ignore[arg-type]
        return outputs[0] if gave_one else outputs

    def _checked(self, result: object) -> State:
        # Of any other type, a tuple with names among them, only the tensors would come back.
        if type(result) is tuple and result and all(isinstance(r, Tensor) for r in result):
            return result
        raise ReversibleError(
            f"{type(self.module).__name__} must give a tensor or a plain tuple of tensors to be "
            f"recomputed, not {_described(result)}"
        )

    def _can_save(self, inputs: Any) -> bool:
        """Whether there is a backward pass to save memory for."""
        if not self.save_memory or not torch.is_grad_enabled():
            return False
        if torch._C._are_functorch_transforms_active() or forward_mode_is_on():
            return False
        if not isinstance(inputs[0], Tensor):
            raise ReversibleError(
                f"the first argument must be a tensor, not {type(inputs[0]).__name__}"
            )
        tensors = (t for t in tree_leaves(inputs) if isinstance(t, Tensor))
        return any(t.requires_grad for t in tensors) or any(
            p.requires_grad for p in self.module.parameters()
        )

    def _label(self) -> str:
        return f"Recompute({type(self.module).__name__})"

    def extra_repr(self) -> str:
        return f"save_memory={self.save_memory}"


def _described(result: object) -> str:
    if type(result) is not tuple:
        return type(result).__name__
    return f"a tuple of ({', '.join(type(r).__name__ for r in result)})"
