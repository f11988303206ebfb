"""Time steps that keep the guarantee: the projection is a statement about continuous time, a step is not.

For a convex V an Euler step obeys V(x + h f) >= V(x) + h <grad V, f>: V may rise, however small h is. A safe step
takes any explicit step and, where V then exceeds exp(-alpha h) V(x), moves the result towards the origin.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from robustrun.methods.dynamics.integrate import METHODS
from robustrun.methods.lyapunov.dynamics import StableDynamics, feasible_factor
from robustrun.methods.lyapunov.functions import Lyapunov


@dataclass
class SafeStep:
    """x(t) -> x(t + h) with V(x(t + h)) <= exp(-alpha h) V(x(t)) exactly, for any h.

    `tight` contracts as little as possible and follows the true solution; otherwise the factor is target / V,
    cheaper and over-contracting. Roll out in float64: near the origin, rounding makes a float32 V noisy.

    Raises:
        ValueError: V is not convex along paths to the origin, so that no step can be made safe this way.
    """

    dynamics: StableDynamics
    h: float
    method: str = "rk4"
    tight: bool = True
    steps: int = field(default=0, init=False)
    clamped: Tensor | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        if not self.dynamics.lyapunov.shrinkable:
            raise ValueError("safe steps need a Lyapunov function that is convex, or convexly warped, in the state")
        self._prepared = self.dynamics.lyapunov.prepare()

    def __call__(self, x: Tensor) -> Tensor:
        lyapunov, prepared = self.dynamics.lyapunov, self._prepared
        first, value = self.dynamics.field_and_value(x, prepared)
        y = METHODS[self.method](lambda s: self.dynamics(s, prepared), x, self.h, first)
        with torch.no_grad():
            target = math.exp(-self.dynamics.alpha * self.h) * value
            rising = lyapunov(y, prepared) > target
        self.steps += len(x)
        self.clamped = rising.sum() + (0 if self.clamped is None else self.clamped)
        return _contract(lyapunov, y, target, rising, prepared, self.tight)

    @property
    def clamp_fraction(self) -> float:
        """The share of steps so far that had to be contracted."""
        return float(self.clamped) / self.steps if self.steps else 0.0


def _contract(lyapunov: Lyapunov, y: Tensor, target: Tensor, rising: Tensor, prepared: Any, tight: bool) -> Tensor:
    rows = rising.nonzero().squeeze(1)  # the search costs several evaluations: only for the rows that need it
    if not len(rows):
        return y
    convex, point = lyapunov.convex_form(y[rows])
    with torch.no_grad():
        factor = feasible_factor(convex, point.detach(), target[rows], prepared, tight=tight)
    return y.index_copy(0, rows, lyapunov.from_convex_form(factor.unsqueeze(1) * point))


class Descent(NamedTuple):
    """How V behaved along roll-outs (T + 1 states of B starts)."""

    values: Tensor  # V, (T + 1, B)
    rise_fraction: float  # share of steps on which V rose by more than the tolerance
    bound_excess: float  # the largest V(x_k) / (exp(-alpha h k) V(x_0)) - 1; at most rounding if the bound holds
    worst_rise: float  # the largest V(x_{k+1}) / V(x_k) - 1


@torch.no_grad()
def descent_along(
    evaluate: Callable[[Tensor], Tensor], states: Tensor, alpha: float, h: float, tolerance: float = 1e-9
) -> Descent:
    """Judge roll-outs (T + 1, B, n) by V: (B, n) -> (B,). Starts at the origin are left out of the ratios."""
    values = evaluate(states.flatten(0, 1)).unflatten(0, states.shape[:2])
    before, after = values[:-1], values[1:]
    smallest = torch.finfo(values.dtype).tiny
    ratio = torch.where(before > smallest, after / before.clamp(min=smallest), 1.0)
    time = h * torch.arange(len(values), dtype=values.dtype, device=values.device)
    bound = torch.exp(-alpha * time).unsqueeze(1) * values[:1]
    excess = torch.where(bound > smallest, values / bound.clamp(min=smallest), 1.0)
    return Descent(
        values,
        float((ratio > 1 + tolerance).to(values.dtype).mean()),
        float(excess.max()) - 1.0,
        float(ratio.max()) - 1.0,
    )
