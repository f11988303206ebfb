"""Elementwise nonlinearities between two lines.

On l <= z <= u an activation lies between  lower_slope z + lower_intercept  and  upper_slope z + upper_intercept.
For ReLU the choice of the lower line is free (Zhang et al. 2018 adapt it, Wong and Kolter 2018 make it parallel
to the upper one, Xu et al. 2021 optimise it). For smooth activations only the slopes are chosen; the intercepts
are then the exact extremes of  f(z) - slope z  on [l, u], so that the lines are sound whatever the slopes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from robustrun.methods.bounds.regions import Bounds


class Lines(NamedTuple):
    """Slopes and intercepts of shape (batch, *features), or (batch, rows, *features) where they differ by row.

    `lower_intercept` is None where it is zero. `multiplier`, if given, is added to the coefficients on the
    pre-activation: the Lagrange multipliers of constraints on it (Wang et al. 2021).
    """

    lower_slope: Tensor
    lower_intercept: Tensor | None
    upper_slope: Tensor
    upper_intercept: Tensor
    multiplier: Tensor | None = None

    @property
    def parallel(self) -> bool:
        """Do lower and upper bounds share their coefficients?"""
        return self.lower_slope is self.upper_slope and self.lower_intercept is None and self.multiplier is None


RULES = ("crown", "dual")


def _chord(l: Tensor, u: Tensor, fl: Tensor, fu: Tensor, tangent: Tensor) -> Tensor:
    """Slope through (l, f(l)) and (u, f(u)); the tangent's where the two all but coincide."""
    wide = u - l > 1e-6 * (1 + l.abs() + u.abs())
    return torch.where(wide, (fu - fl) / torch.where(wide, u - l, 1.0), tangent)


@dataclass(frozen=True)
class ReLU:
    """max(z, 0), or max(z, leak z) with 0 <= leak < 1."""

    leak: float = 0.0

    def forward(self, z: Tensor) -> Tensor:
        return F.leaky_relu(z, self.leak) if self.leak else F.relu(z)

    def interval(self, z: Bounds) -> Bounds:
        return Bounds(self.forward(z.lower), self.forward(z.upper))

    def absolute(self, z: Tensor) -> Tensor:
        return z

    def lines(self, z: Bounds, rule: str = "crown", alpha: Tensor | None = None) -> Lines:
        """`alpha` in [0, 1] gives the lower slope of unstable units directly (0: leak, 1: identity).

        Raises:
            ValueError: no relaxation rule has that name.
        """
        rise, intercept = _Chord.apply(*z)
        scale = 1 - self.leak
        upper = self.leak + scale * rise if self.leak else rise
        intercept = scale * intercept if self.leak else intercept
        if rule == "dual" and alpha is None:
            return Lines(upper, None, upper, intercept)
        if alpha is not None:
            unstable, active = (z.lower < 0) & (z.upper > 0), z.lower >= 0
            # rows of alpha, if any, stand before the features
            if alpha.dim() > active.dim():
                active, unstable = active.unsqueeze(1), unstable.unsqueeze(1)
            lower = torch.where(unstable, alpha, active.to(alpha.dtype))
        elif rule == "crown":
            lower = (z.upper >= -z.lower).to(rise.dtype)
        else:
            raise ValueError(f"no relaxation rule {rule!r}; there are {', '.join(RULES)}")
        return Lines(self.leak + scale * lower if self.leak else lower, None, upper, intercept)


class _Chord(torch.autograd.Function):
    """Slope s and intercept t of the least line above max(z, 0) on [l, u].

    Where l < 0 < u, with p = u / (u - l) and q = 1 - p:  s = p,  t = u q,  and

        ds/dl = p / (u - l),   ds/du = q / (u - l),   dt/dl = -p^2,   dt/du = q^2.

    Elsewhere s is 0 or 1, t is 0, and nothing changes with l and u. One node of autograd instead of a dozen, and
    no division by zero in a branch that is not taken.
    """

    @staticmethod
    def forward(ctx, l: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        active = l >= 0
        width = (u - l).masked_fill_(active | (u <= 0), torch.inf)
        p, q = u / width, -l / width  # both zero on a stable unit
        ctx.save_for_backward(p, q, width)
        return p + active, u * q

    @staticmethod
    @once_differentiable
    def backward(ctx, gs: Tensor, gt: Tensor) -> tuple[Tensor, Tensor]:
        p, q, width = ctx.saved_tensors
        gs = gs / width
        return (gs - gt * p).mul_(p), (gs + gt * q).mul_(q)


@dataclass(frozen=True)
class Smooth:
    """A smooth activation, given by f, f', and the points where f' takes a given value.

    shape: "convex", or "sigmoid" (convex left of zero, concave right of it).
    """

    name: str
    function: Callable[[Tensor], Tensor]
    derivative: Callable[[Tensor], Tensor]
    stationary: Callable[[Tensor], tuple[Tensor, ...]]
    shape: str

    def forward(self, z: Tensor) -> Tensor:
        return self.function(z)

    def interval(self, z: Bounds) -> Bounds:
        ends = self.function(z.lower), self.function(z.upper)
        if self.name == "square":
            straddles = (z.lower < 0) & (z.upper > 0)
            return Bounds(torch.where(straddles, 0.0, torch.minimum(*ends)), torch.maximum(*ends))
        return Bounds(*ends)

    def absolute(self, z: Tensor) -> Tensor:
        return (self.function(z).abs() + 1) * (1 + z) if self.name == "square" else z + 1

    def lines(self, z: Bounds, rule: str = "crown", alpha: Tensor | None = None) -> Lines:
        l, u = z
        with torch.no_grad():
            low, high = self._slopes(l, u)
        return Lines(low, self._gap(l, u, low)[0], high, self._gap(l, u, high)[1])

    def _gap(self, l: Tensor, u: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
        """Least and greatest f(z) - slope z on [l, u]: at an end, or where f' = slope."""
        points = [l, u, *(torch.minimum(torch.maximum(p, l), u) for p in self.stationary(slope))]
        values = torch.stack([self.function(p) - slope * p for p in points])
        return values.amin(0), values.amax(0)

    def _slopes(self, l: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        middle = self.derivative((l + u) / 2)
        chord = _chord(l, u, self.function(l), self.function(u), middle)
        if self.shape == "convex":
            return middle, chord
        convex, concave = u <= 0, l >= 0
        mixed_low = torch.where(self.derivative(l) >= chord, chord, self._tangent(u, l))
        mixed_high = torch.where(self.derivative(u) >= chord, chord, self._tangent(l, u))
        low = torch.where(convex, middle, torch.where(concave, chord, mixed_low))
        high = torch.where(convex, chord, torch.where(concave, middle, mixed_high))
        return low, high

    def _tangent(self, fixed: Tensor, far: Tensor) -> Tensor:
        """Slope of the tangent, at a point between 0 and `far`, that passes through (fixed, f(fixed)); by bisection."""
        near, far = torch.zeros_like(far), far.clone()
        value = self.function(fixed)
        for _ in range(12):
            point = (near + far) / 2
            width = point - fixed
            width = torch.where(width == 0, 1.0, width)
            beyond = (self.function(point) - value) / width > self.derivative(point)
            near, far = torch.where(beyond, near, point), torch.where(beyond, point, far)
        return self.derivative(far)


def _logit(p: Tensor) -> Tensor:
    tiny = torch.finfo(p.dtype).eps
    return torch.logit(p.clamp(tiny, 1 - tiny))


def _plus_minus(p: Tensor) -> tuple[Tensor, Tensor]:
    return p, -p


def tanh() -> Smooth:
    """The hyperbolic tangent."""

    def stationary(k: Tensor) -> tuple[Tensor, ...]:
        below_one = 1 - torch.finfo(k.dtype).eps
        return _plus_minus(torch.atanh((1 - k).clamp(min=0).sqrt().clamp(max=below_one)))

    return Smooth("tanh", torch.tanh, lambda z: 1 - torch.tanh(z) ** 2, stationary, "sigmoid")


def sigmoid() -> Smooth:
    """The logistic function."""

    def derivative(z: Tensor) -> Tensor:
        return torch.sigmoid(z) * torch.sigmoid(-z)

    def stationary(k: Tensor) -> tuple[Tensor, ...]:
        return _plus_minus(_logit((1 + (1 - 4 * k).clamp(min=0).sqrt()) / 2))

    return Smooth("sigmoid", torch.sigmoid, derivative, stationary, "sigmoid")


def softplus(beta: float = 1.0) -> Smooth:
    """log(1 + exp(beta z)) / beta."""

    def function(z: Tensor) -> Tensor:
        return F.softplus(z, beta, threshold=40.0)

    return Smooth("softplus", function, lambda z: torch.sigmoid(beta * z), lambda k: (_logit(k) / beta,), "convex")


def square() -> Smooth:
    """z^2."""
    return Smooth("square", torch.square, lambda z: 2 * z, lambda k: (k / 2,), "convex")


Activation = ReLU | Smooth
