"""An optimizer inside the backward pass: each parameter is stepped once its gradient is there.

The gradient is freed at once, so that a step holds the gradients of one layer and not of all. The
way is PyTorch's, `register_post_accumulate_grad_hook`, as in its tutorial "How to save memory by
fusing the optimizer step into the backward pass"; what is added is that one ordinary optimizer
keeps the state of all parameters, and that what would be wrong is refused.
"""

from __future__ import annotations

import inspect
import threading
import weakref
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.weak import WeakTensorKeyDictionary

Prepare = Callable[[Tensor], bool | None]
# By parameter, a weak reference to who steps it.
_steppers: Any = WeakTensorKeyDictionary()


def step_in_backward(
    optimizer: Optimizer, *, prepare: Prepare | None = None, local: bool = False
) -> StepInBackward:
    """Let an optimizer step each parameter during the backward pass, and free its gradient.

    The training loop stays as it is. `optimizer.step()` ends an iteration: it steps what got no
    hook (a parameter that was frozen, or added later), and must be called after each backward
    pass::

        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
        revgrad.optim.step_in_backward(optimizer)
        for x, target in batches:
            loss(net(x), target).backward()  # all weights are new when it returns
            optimizer.step()

    Weights are those of ordinary stepping. `optimizer.state_dict()`, `load_state_dict`,
    `param_groups` and learning-rate schedulers work as ever, as it is the same optimizer.

    Args:
        optimizer: Any optimizer that treats each parameter by itself.
        prepare: Called with each parameter before its step, its gradient being complete: the place
            to clip (`clip_grad_norm_([p], 1.0)`) or to unscale. If it returns False, the parameter
            is not stepped.
        local: The processes of a process group train parameters of their own. Without it, stepping
            by gradients that are not reduced over the processes is refused.

    Returns:
        A handle whose `remove()` takes the hooks away.

    Raises:
        ValueError: The optimizer needs a closure, two parameters overlap in memory, one is stepped
            already, or there is none to step.
        RuntimeError: In the backward pass, where a step would be wrong: see `StepInBackward`.
    """
    return StepInBackward(optimizer, prepare, local)


class StepInBackward:
    """The hooks by which an optimizer steps inside the backward pass.

    A `RuntimeError` in the backward pass says so if a parameter gets a second gradient before
    `optimizer.step()` (gradient accumulation), if the optimizer keeps numbers that all parameters
    share, if a hook on its `step` would be passed over, or if the gradient is one process's own.

    Args:
        optimizer: As `step_in_backward` has it, as the others. It keeps this object alive.
        prepare: Called before each step.
        local: Whether gradients are this process's own affair.
    """

    def __init__(self, optimizer: Optimizer, prepare: Prepare | None, local: bool) -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(
                f"optimizer must be a torch.optim.Optimizer, not {type(optimizer).__name__}; "
                "make it as ever, of the parameters: step_in_backward(AdamW(net.parameters()))"
            )
        _refuse_closure(optimizer)
        # The optimizer holds this object; the other way round, and from the parameters, references
        # are weak, so that a network that is dropped is freed at once, without garbage collection.
        self._optimizer = weakref.ref(optimizer)
        self._prepare = prepare
        self._local = local
        # Without the hooks on `step`, which belong to an iteration and not to a parameter.
        step = type(optimizer).step
        self._step = inspect.unwrap(step, stop=lambda f: not getattr(f, "hooked", False))
        self._stepped: set[int] = set()
        self._stepping = False
        self._lock = (
            threading.Lock()
        )  # parameters of several devices are stepped by several threads
        places = [
            (parameter, group)
            for group, options in enumerate(optimizer.param_groups)
            for parameter in options["params"]
            if parameter.requires_grad
        ]
        if not places:
            raise ValueError("no parameter of the optimizer requires a gradient")
        _refuse_overlap([parameter for parameter, _ in places])
        self._claim([parameter for parameter, _ in places])
        self._handles: list[Any] = [optimizer.register_step_pre_hook(self._end_of_iteration)]
        self._handles += [
            parameter.register_post_accumulate_grad_hook(self._hook(group))
            for parameter, group in places
        ]

    def remove(self) -> None:
        """Take the hooks away: the optimizer is then an ordinary one with its state."""
        while self._handles:
            self._handles.pop().remove()

    def _claim(self, parameters: Sequence[Tensor]) -> None:
        """A gradient can be used once before it is freed."""
        for parameter in parameters:
            other = _steppers[parameter]() if parameter in _steppers else None
            if other is not None and other._handles:
                raise ValueError(
                    f"a parameter of shape {tuple(parameter.shape)} is stepped inside the backward "
                    "pass already; remove() the hooks of what step_in_backward returned before"
                )
            _steppers[parameter] = weakref.ref(self)

    def _hook(self, group: int) -> Callable[[Tensor], None]:
        reference = weakref.ref(self)

        def hook(parameter: Tensor) -> None:
            self = reference()
            if self is None:
                raise RuntimeError(
                    "the optimizer that steps inside the backward pass is gone; keep it as long "
                    "as the network trains, or call remove() of what step_in_backward returned"
                )
            # None: the backward pass reached its layer, but without a gradient for it.
            if parameter.grad is not None:
                with self._lock:
                    self._step_one(parameter, group)

        return hook

    @property
    def optimizer(self) -> Optimizer:
        """The optimizer."""
        optimizer = self._optimizer()
        assert optimizer is not None, "the optimizer is gone"
        return optimizer

    def _step_one(self, parameter: Tensor, group: int) -> None:
        self._refuse(parameter)
        if self._prepare is None or self._prepare(parameter) is not False:
            before = _version(parameter)
            self._step_alone(parameter, group)
            if before is not None and _version(parameter) == before:
                # Written by way of `.data`: a graph that needs the old value would not notice.
                torch.autograd.graph.increment_version(parameter)
        self._stepped.add(id(parameter))
        parameter.grad = None

    def _step_alone(self, parameter: Tensor, group: int) -> None:
        """Step as if the optimizer had no other parameter."""
        optimizer = self.optimizer
        groups = optimizer.param_groups
        alone = {**groups[group], "params": [parameter]}
        optimizer.param_groups, self._stepping = [alone], True
        try:
            self._step(optimizer)
        finally:
            optimizer.param_groups, self._stepping = groups, False
        shared = [key for key, value in alone.items() if value is not groups[group].get(key)]
        shared.remove("params")
        if shared:
            raise RuntimeError(
                f"{type(optimizer).__name__} changes {', '.join(map(repr, shared))} of its "
                "param_groups in each step, for all parameters together, so they can't be stepped "
                "one by one inside the backward pass"
            )

    def _refuse(self, parameter: Tensor) -> None:
        """Raise where a step now would be a wrong one."""
        name = f"a parameter of shape {tuple(parameter.shape)}"
        if id(parameter) in self._stepped:
            raise RuntimeError(
                f"{name} got a second gradient, but was stepped by the first one. Inside the "
                "backward pass gradients can't be accumulated: call optimizer.step() after each "
                "backward pass, and have one backward pass in each iteration"
            )
        if len(self.optimizer._optimizer_step_pre_hooks) > 1:
            raise RuntimeError(
                "the optimizer has a hook of register_step_pre_hook, which finds no gradients "
                "where parameters are stepped inside the backward pass: use "
                "step_in_backward(optimizer, prepare=...), which is called for each parameter"
            )
        if not self._local and _of_one_process(parameter):
            raise RuntimeError(
                f"{name} would be stepped by the gradient of this process alone. Under "
                "DistributedDataParallel gradients are averaged later and their buckets stay in "
                "memory: step as usual there, or shard by fully_shard. If the processes train "
                "parameters of their own: step_in_backward(optimizer, local=True)"
            )

    def _end_of_iteration(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        if self._stepping:  # the class calls the `step` of its base class
            return
        if len(args) > 1 or any(value is not None for value in kwargs.values()):
            raise RuntimeError(
                "a closure evaluates the loss inside optimizer.step(), but parameters are stepped "
                "inside the backward pass: call optimizer.step() without one"
            )
        self._stepped.clear()


def _refuse_closure(optimizer: Optimizer) -> None:
    parameters = list(inspect.signature(type(optimizer).step).parameters.values())[1:]
    if any(p.name == "closure" and p.default is inspect.Parameter.empty for p in parameters):
        raise ValueError(
            f"{type(optimizer).__name__} evaluates the loss several times in a step, by a closure, "
            "so it can't step inside one backward pass"
        )


def _refuse_overlap(parameters: Sequence[Tensor]) -> None:
    """A parameter that is also a part of another one would change before that one's gradient."""
    ends = []
    for p in parameters:
        if type(p.data) is not Tensor or p.numel() == 0 or p.is_meta or p.is_sparse:
            continue
        extent = 1 + sum((n - 1) * s for n, s in zip(p.shape, p.stride(), strict=True))
        ends.append((str(p.device), p.data_ptr(), p.data_ptr() + extent * p.element_size(), p))
    ends.sort(key=lambda end: end[:3])
    for (device, _, end, a), (other, start, _, b) in pairwise(ends):
        if device == other and start < end:
            raise ValueError(
                f"parameters of shapes {tuple(a.shape)} and {tuple(b.shape)} overlap in memory, so "
                "a step of one would change the other before its gradient is computed; tie them "
                "by using one nn.Parameter in both places"
            )


def _version(parameter: Tensor) -> int | None:
    """The count of in-place changes, where it can be raised."""
    return parameter._version if type(parameter.data) is Tensor else None


def _of_one_process(parameter: Tensor) -> bool:
    """Whether other processes have gradients of the same parameter."""
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return False
    if distributed.get_world_size() == 1:
        return False
    from torch.distributed.tensor import DTensor

    return not isinstance(parameter, DTensor)
