"""Affine coupling: a sub-network of one stream scales and shifts the other."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from revgrad.autograd.inventory import known
from revgrad.autograd.layout import is_shared
from revgrad.autograd.protocol import Gradients, Part, State
from revgrad.autograd.rewind import Rewind
from revgrad.errors import ReversibleError
from revgrad.nn.coupling import Coupling, expect_fitting_type
from revgrad.nn.logdet import summed_by_sample

SCALES = ("tanh", "atan", "sigmoid")


@known
class AffineCoupling(Coupling):
    """Affine coupling of two streams.

    With two sub-networks, and `exp(s)` and `t` made of each one's value::

        y1 = x1 * exp(s_f(x2)) + t_f(x2)
        y2 = x2 * exp(s_g(y1)) + t_g(y1)

    With one, f changes the first stream and the streams change places, as in `AdditiveCoupling`
    (RealNVP, Dinh et al. 2017, eq. 7). The log-determinant is the sum of the log-scales s.

    The first half of a sub-network's value a makes the log-scale, the second is the shift t. The
    log-scale is bounded, with b = `clamp`, since what is computed back is divided by the scale:
    in either direction rounding errors are amplified by exp(b) at most in each coupling.

    ========= ============================================== ============= =======================
    `scale`   s                                              bounds        after
    ========= ============================================== ============= =======================
    "tanh"    b * tanh(a)                                    (-b, b)       RealNVP, section 4.1
    "atan"    b * 2 / pi * atan(a)                           (-b, b)       Ardizzone et al. 2019
    "sigmoid" ln(exp(-b) + (1 - exp(-b)) * sigmoid(a + 2))   (-b, 0)       Glow (Kingma and
                                                                           Dhariwal 2018)
    ========= ============================================== ============= =======================

    RealNVP learns the factor of its tanh; Glow's sigmoid has no lower bound. A sub-network whose
    last layer starts at zero makes the coupling start as the identity (with "sigmoid", nearly).

    Args:
        f: Any module that maps the second stream to a tensor of the shape of the first, but with
            twice as many entries along `dim`. It must not change its input in place.
        g: Any module that maps the first stream to such a tensor for the second.
        scale: How the log-scale is bounded, see above.
        clamp: The bound b, a positive number.
        dim: Axis along which log-scale and shift lie behind each other.

    Shapes:
        x1: (N, C1, ...), x2: (N, C2, ...); two sub-networks keep the order of the streams, one
        exchanges it. f: (N, C2, ...) to (N, 2 * C1, ...). With `logdet=True` (N,) besides.

    Raises:
        ReversibleError: If a sub-network's result does not fit the stream that it changes.
    """

    gives_logdet = True

    def __init__(
        self,
        f: nn.Module,
        g: nn.Module | None = None,
        *,
        scale: str = "tanh",
        clamp: float = 2.0,
        dim: int = 1,
    ) -> None:
        super().__init__(f, g)
        if scale not in SCALES:
            raise ValueError(f"scale must be one of {SCALES}, not {scale!r}")
        if not 0 < clamp < math.inf:
            raise ValueError(f"clamp must be a positive number, not {clamp!r}")
        self.scale = scale
        self.clamp = float(clamp)
        self.dim = dim

    def parts(self, forward: Callable[..., State]) -> tuple[Part, ...]:
        """The change by each sub-network; all of it in one where a subclass has its own scale."""
        if not self._belongs("_slope", ("_log_scale", "_halves")):
            return (Part(self, forward, None),)
        return super().parts(forward)

    def extra_repr(self) -> str:
        return f"scale={self.scale!r}, clamp={self.clamp}, dim={self.dim}"

    def _coupled(
        self,
        stream: Tensor,
        module: nn.Module,
        x: Tensor,
        name: str,
        *args: Any,
        logdet: bool = False,
        **kwargs: Any,
    ) -> State:
        a, shift = self._halves(self.run(module, x, *args, **kwargs), stream, name)
        log_scale = self._log_scale(a)
        y = stream * log_scale.exp() + shift
        return (y, summed_by_sample(log_scale)) if logdet else (y,)

    def _uncoupled(
        self,
        stream: Tensor,
        module: nn.Module,
        x: Tensor,
        name: str,
        *args: Any,
        logdet: bool = False,
        **kwargs: Any,
    ) -> State:
        a, shift = self._halves(self.run(module, x, *args, **kwargs), stream, name)
        log_scale = self._log_scale(a)
        before = (stream - shift) * log_scale.neg().exp()
        return (before, -summed_by_sample(log_scale)) if logdet else (before,)

    def _undone(
        self,
        rewind: Rewind,
        stream: Tensor,
        module: nn.Module,
        x: Tensor,
        grads: Gradients,
        *args: Any,
        logdet: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        known_grad = next((g for g in grads if g is not None), None)
        f = rewind.evaluate(module, x, known_grad, *args, **kwargs)
        a, shift = self._halves(f.take_value(), stream, "f" if module is self.f else "g")
        in_place = not rewind.differentiable and not is_shared(stream)
        scaled = stream.sub_(shift) if in_place else stream - shift
        del shift
        log_scale = self._log_scale(a)
        of_value = None if known_grad is None else self._gradient(a, scaled, *grads)
        del a  # its memory, the sub-network's value, is not needed any more
        shrink = log_scale.neg().exp()
        before = scaled.mul_(shrink) if in_place else scaled * shrink
        del shrink
        grad = None if grads[0] is None else grads[0] * log_scale.exp()
        del log_scale
        return before, grad, f.pull(of_value)

    def _gradient(
        self, a: Tensor, scaled: Tensor, grad: Tensor | None, of_logdet: Tensor | None = None
    ) -> Tensor:
        """The gradient of a sub-network's value, from those of the stream and of logdet.

        Args:
            a: The first half of the value.
            scaled: The stream without its shift.
            grad: Gradient of the stream, None if there is none.
            of_logdet: Gradient of the log-determinant, (N,), None if there is none.
        """
        of_shift = torch.zeros_like(scaled) if grad is None else grad
        of_scale = of_shift * scaled
        if of_logdet is not None:
            by_sample = of_logdet.to(scaled.dtype).view(-1, *[1] * (scaled.dim() - 1))
            of_scale = of_scale + by_sample
        return torch.cat((of_scale * self._slope(a), of_shift), self.dim)

    def _halves(self, value: Tensor, stream: Tensor, name: str) -> tuple[Tensor, Tensor]:
        """What makes the log-scale, and the shift, in the stream's type."""
        expected = list(stream.shape)
        expected[self.dim] *= 2
        if list(value.shape) != expected:
            raise ReversibleError(
                f"the sub-network {name} gave shape {tuple(value.shape)}, but to scale and shift a "
                f"stream of shape {tuple(stream.shape)} it must give {tuple(expected)}: twice as "
                f"many entries along dim={self.dim}, the log-scale and then the shift"
            )
        expect_fitting_type(value, stream, name)
        a, shift = value.to(stream.dtype).chunk(2, self.dim)
        return a, shift

    def _log_scale(self, a: Tensor) -> Tensor:
        """The bounded log-scale. A subclass may give another, and its derivative in `_slope`."""
        if self.scale == "tanh":
            return self.clamp * a.tanh()
        if self.scale == "atan":
            return self.clamp * 2 / math.pi * a.atan()
        low = math.exp(-self.clamp)
        return (low + (1 - low) * (a + 2).sigmoid()).log()

    def _slope(self, a: Tensor) -> Tensor:
        """The derivative of `_log_scale`."""
        if self.scale == "tanh":
            return self.clamp * (1 - a.tanh().square())
        if self.scale == "atan":
            return self.clamp * 2 / math.pi / (1 + a.square())
        low = math.exp(-self.clamp)
        p = (a + 2).sigmoid()
        return (1 - low) * p * (1 - p) / (low + (1 - low) * p)
