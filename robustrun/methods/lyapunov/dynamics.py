"""Dynamics that cannot blow up: a free network and a Lyapunov function, joined by a hard constraint.

Both parts are trained together, by the prediction loss alone. V needs no loss, labels or optimiser of its own: it
receives its gradient through the correction, from the examples at which the constraint is active.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from robustrun.methods.dynamics.systems import StateMap, VectorField
from robustrun.methods.lyapunov.functions import Lyapunov
from robustrun.methods.lyapunov.projection import project, project_unit_gradient

Projection = Literal["euclidean", "unit_gradient"]


class Decrease(NamedTuple):
    """How V changes along the dynamics at some states; every entry is (B,)."""

    violation: Tensor  # dV/dt + alpha V (or V(x') - beta V(x)); at most 0 if the condition holds
    scale: Tensor  # the size of the terms that cancel in it: |grad V| |f^| + alpha V (or V(f^(x)) + V(x))
    value: Tensor  # V

    @property
    def relative(self) -> Tensor:
        """The violation in units of its terms: above a few roundings it is real."""
        return self.violation / torch.where(self.scale > 0, self.scale, 1.0)


class StableDynamics(VectorField):
    """x' = f(x), the projection of a nominal field on {v : <grad V, v> <= -alpha V}.

    With a convex (or convexly warped) V, V(x(t)) <= exp(-alpha t) V(x(0)) for every solution and any weights.

    Args:
        nominal: any map (B, n) -> (B, n).
        lyapunov: V.
        alpha: decay rate of V, at least 0.
        centre: use f^(x) - f^(0), which makes f continuous at the origin and f(0) = 0.
        projection: "euclidean" is the paper's; "unit_gradient" an earlier form, kept for comparison.

    Raises:
        ValueError: alpha is negative.
    """

    def __init__(
        self,
        nominal: nn.Module,
        lyapunov: Lyapunov,
        *,
        alpha: float = 1e-3,
        centre: bool = False,
        projection: Projection = "euclidean",
    ) -> None:
        super().__init__()
        if not alpha >= 0:
            raise ValueError(f"the decay rate alpha must be at least 0, not {alpha}")
        self.nominal, self.lyapunov = nominal, lyapunov
        self.alpha, self.centre, self.projection = alpha, centre, projection

    def free(self, x: Tensor) -> Tensor:
        """The nominal field f^, centred if asked for, (B, n)."""
        return self.nominal(x) - self.nominal(x.new_zeros(1, x.shape[1])) if self.centre else self.nominal(x)

    def _parts(self, x: Tensor, prepared: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        value, gradient = self.lyapunov.value_and_gradient(x, prepared)
        nominal = self.free(x)
        bring_down = project if self.projection == "euclidean" else project_unit_gradient
        return bring_down(nominal, value, gradient, self.alpha), nominal, value, gradient

    def forward(self, x: Tensor, prepared: Any = None) -> Tensor:
        """States (B, n) -> derivatives (B, n)."""
        return self._parts(x, prepared)[0]

    def field_and_value(self, x: Tensor, prepared: Any = None) -> tuple[Tensor, Tensor]:
        """The derivatives (B, n) and V (B,), which they need anyway."""
        f, _, value, _ = self._parts(x, prepared)
        return f, value

    def field(self) -> Callable[[Tensor], Tensor]:
        """The vector field with everything that depends on the parameters alone computed once."""
        prepared = self.lyapunov.prepare()
        return lambda x: self(x, prepared)

    def decrease(self, x: Tensor, prepared: Any = None) -> Decrease:
        """<grad V, f> + alpha V at the states (times |grad V| for the unit-gradient form)."""
        f, nominal, value, gradient = self._parts(x, prepared)
        norm = torch.linalg.vector_norm(gradient, dim=1)
        required = self.alpha * value * (norm if self.projection == "unit_gradient" else 1.0)
        scale = norm * torch.linalg.vector_norm(nominal, dim=1) + required
        return Decrease((gradient * f).sum(1) + required, scale, value)


def free_decrease(field: Callable[[Tensor], Tensor], lyapunov: Lyapunov, x: Tensor, alpha: float) -> Decrease:
    """The same at x (B, n) for a field that nothing constrains, judged by a candidate V."""
    f = field(x)
    value, gradient = lyapunov.value_and_gradient(x)
    scale = torch.linalg.vector_norm(gradient, dim=1) * torch.linalg.vector_norm(f, dim=1) + alpha * value
    return Decrease((gradient * f).sum(1) + alpha * value, scale, value)


class StableMap(StateMap):
    """x_{k+1} = a point on the way from the origin to f^(x_k) at which V is at most beta V(x_k).

    `scaled` multiplies by min(1, beta V(x) / V(f^(x))), which over-contracts when V grows faster than linearly;
    `tight` finds the largest feasible factor and differentiates it implicitly.

    Source: Lawrence, Loewen, Forbes, Backstrom and Gopaluni (2020), for `scaled`.

    Raises:
        ValueError: beta is not in (0, 1], or V is not convex.
    """

    def __init__(
        self,
        nominal: nn.Module,
        lyapunov: Lyapunov,
        *,
        beta: float = 0.99,
        contraction: Literal["scaled", "tight"] = "tight",
    ) -> None:
        super().__init__()
        if not 0 < beta <= 1:
            raise ValueError(f"beta must lie in (0, 1], not {beta}")
        if not lyapunov.convex:
            raise ValueError("a stable map needs a V that is convex in the state")
        self.nominal, self.lyapunov, self.beta, self.contraction = nominal, lyapunov, beta, contraction

    def forward(self, x: Tensor, prepared: Any = None) -> Tensor:
        """States (B, n) -> next states (B, n)."""
        prepared = prepared if prepared is not None else self.lyapunov.prepare()
        y = self.nominal(x)
        target = self.beta * self.lyapunov(x, prepared)
        if self.contraction == "scaled":
            reached = self.lyapunov(y, prepared)
            factor = (target / torch.where(reached > 0, reached, 1.0)).clamp(max=1.0)
        else:
            factor = _attached_factor(self.lyapunov, y, target, prepared)
        return factor.unsqueeze(1) * y

    def step(self) -> Callable[[Tensor], Tensor]:
        """The map with everything that depends on the parameters alone computed once."""
        prepared = self.lyapunov.prepare()
        return lambda x: self(x, prepared)

    def decrease(self, x: Tensor, prepared: Any = None) -> Decrease:
        """V(x') - beta V(x) at the states."""
        prepared = prepared if prepared is not None else self.lyapunov.prepare()
        value, scale = self.lyapunov(x, prepared), self.lyapunov(self.nominal(x), prepared)
        return Decrease(self.lyapunov(self(x, prepared), prepared) - self.beta * value, scale + value, value)


def feasible_factor(
    convex: Lyapunov, y: Tensor, target: Tensor, prepared: Any = None, *, tight: bool = True, iterations: int = 2
) -> Tensor:
    """A factor (B,) in [0, 1] such that V(factor y) <= target, for a convex V, y (B, n) and target (B,) >= 0.

    V(c y) is convex in c with V(0) = 0, so target / V(y) is always feasible. `tight` comes as close to the largest
    feasible factor as it can: Newton's method from c = 1 stays above that factor and falls quadratically, and the
    chord between the infeasible end and the feasible one lies above V, so that it crosses the target at a feasible
    factor. For an excess of one percent, as steps leave it, 2 iterations give six digits of the factor.
    """
    high, (reached, gradient) = torch.ones_like(target), convex.value_and_gradient(y, prepared)
    low = torch.where(reached > target, target / torch.where(reached > 0, reached, 1.0), 1.0)
    if not tight:
        return low
    for _ in range(iterations):
        slope = (gradient * y).sum(1)
        step = (reached - target) / torch.where(slope > 0, slope, 1.0)
        high = torch.where(slope > 0, high - step, high).maximum(low).minimum(high)
        reached, gradient = convex.value_and_gradient(high.unsqueeze(1) * y, prepared)
    at_low = convex(low.unsqueeze(1) * y, prepared)
    rise = reached - at_low
    chord = low + (high - low) * (target - at_low) / torch.where(rise > 0, rise, 1.0)
    return torch.where((rise > 0) & (at_low <= target), chord.clamp(max=1.0).maximum(low), low)


def _attached_factor(lyapunov: Lyapunov, y: Tensor, target: Tensor, prepared: Any) -> Tensor:
    """The tight factor; its derivative is that of one Newton step for V(factor y) = target at the root."""
    with torch.no_grad():
        root = feasible_factor(lyapunov, y, target, prepared, iterations=30)
        active = lyapunov(y, prepared) > target
    value, gradient = lyapunov.value_and_gradient(root.unsqueeze(1) * y, prepared)
    slope = (gradient * y).sum(1).detach()
    residual = value - target
    step = (residual - residual.detach()) / torch.where(slope > 0, slope, 1.0)  # zero, but not its derivative
    return torch.where(active, root - step, root)
