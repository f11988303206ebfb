"""Convex, nondecreasing activations, evaluated as differences from a reference point.

A Lyapunov function built from a network g needs g(x) - g(0). Subtracting two evaluations loses all digits near
the origin, where the guarantee matters most. The activations therefore return s(r + t) - s(r) computed from t
itself: the result is accurate relative to t and exactly zero at t = 0.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Activation(Protocol):
    """A convex, nondecreasing, piecewise quadratic function of one variable."""

    def difference(self, reference: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
        """s(reference + delta) - s(reference) and the slope s'(reference + delta), broadcast together."""
        ...

    def __call__(self, r: Tensor) -> Tensor: ...

    def slope(self, r: Tensor) -> Tensor:
        """s'(r); at a kink, the slope to the left of it."""
        ...

    def bend(self, upstream: Tensor, slope: Tensor) -> Tensor | None:
        """`upstream` times s'' at the points with this slope; None where s'' is zero everywhere."""
        ...


@dataclass(frozen=True)
class SmoothRelu:
    """The smoothed ReLU: 0 for r <= 0, r^2 / (2 width) up to `width`, then r - width / 2.

    Its derivative clamp(r / width, 0, 1) is continuous, so that the gradient of V is.

    Source: Manek and Kolter (2019).

    Raises:
        ValueError: the width is not positive.
    """

    width: float = 1.0

    def __post_init__(self) -> None:
        if not self.width > 0:
            raise ValueError(f"the width of a smoothed ReLU must be positive, not {self.width}")

    def __call__(self, r: Tensor) -> Tensor:
        slope = self.slope(r)
        return slope * (r - 0.5 * self.width * slope)

    def slope(self, r: Tensor) -> Tensor:
        return (r * (1.0 / self.width)).clamp(0.0, 1.0)

    def difference(self, reference: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
        slope_before = self.slope(reference)
        beyond = reference - self.width * slope_before  # zero in the quadratic part, so that small deltas survive
        scale = 1.0 / self.width
        slope = torch.add(reference * scale, delta, alpha=scale).clamp(0.0, 1.0)
        change = slope - slope_before
        return torch.addcmul(delta * slope, change, torch.add(beyond, change, alpha=-0.5 * self.width)), slope

    def bend(self, upstream: Tensor, slope: Tensor) -> Tensor:
        # s'' is 1 / width strictly between the slopes 0 and 1 and zero elsewhere: one fused kernel masks both.
        return torch.ops.aten.hardtanh_backward(upstream, slope, 0.0, 1.0).mul_(1.0 / self.width)


@dataclass(frozen=True)
class LeakyRelu:
    """max(r, leak r) with 0 <= leak < 1; `leak` 0 is the ordinary ReLU.

    Raises:
        ValueError: the leak is not in [0, 1).
    """

    leak: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.leak < 1:
            raise ValueError(f"the leak must lie in [0, 1), not {self.leak}")

    def __call__(self, r: Tensor) -> Tensor:
        return torch.maximum(r, self.leak * r)

    def slope(self, r: Tensor) -> Tensor:
        return torch.where(r > 0, 1.0, self.leak).to(r.dtype)

    def difference(self, reference: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
        # relu(r + t) - relu(r) = max(t + min(r, 0), -max(r, 0)); the rest of the activation is linear.
        rise = (delta + reference.clamp(max=0.0)).maximum(-reference.clamp(min=0.0))
        return self.leak * delta + (1.0 - self.leak) * rise, self.slope(reference + delta)

    def bend(self, upstream: Tensor, slope: Tensor) -> None:
        return None
