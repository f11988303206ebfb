"""The sets of inputs over which a network is bounded.

A region knows three things: the box around it, the exact range of a linear function over it, and how to
sample and project. Every bound in this package needs no more.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Bounds(NamedTuple):
    """Elementwise `lower <= value <= upper`; unpacks like a pair."""

    lower: Tensor
    upper: Tensor

    def intersect(self, other: "Bounds") -> "Bounds":
        """Both hold, so the tighter of the two does."""
        return Bounds(torch.maximum(self.lower, other.lower), torch.minimum(self.upper, other.upper))

    def widen(self, margin: Tensor | float) -> "Bounds":
        """Lower by `margin` below, higher above."""
        return Bounds(self.lower - margin, self.upper + margin)

    def at(self, examples: slice | Tensor) -> "Bounds":
        """Those of some examples (a pair's own index means lower or upper)."""
        return Bounds(self.lower[examples], self.upper[examples])


@dataclass(frozen=True)
class Box:
    """{ x : lower <= x <= upper }, tensors of shape (batch, *features)."""

    lower: Tensor
    upper: Tensor

    @classmethod
    def around(
        cls,
        x: Tensor,
        epsilon: Tensor | float,
        minimum: Tensor | float | None = None,
        maximum: Tensor | float | None = None,
    ) -> "Box":
        """The points within `epsilon` of `x` (batch, *features) in each coordinate, cut to [minimum, maximum].

        `epsilon` is a number or broadcasts against `x`: one tolerance for all, one a feature, or one an example
        and feature, in the units of `x`. Raises ValueError where epsilon is negative or the cut leaves nothing.
        """
        epsilon = torch.as_tensor(epsilon, dtype=x.dtype, device=x.device)
        if bool((epsilon < 0).any()):
            raise ValueError("epsilon must not be negative")
        lower, upper = x - epsilon, x + epsilon
        if minimum is not None:
            lower = lower.clamp(min=torch.as_tensor(minimum, dtype=x.dtype, device=x.device))
        if maximum is not None:
            upper = upper.clamp(max=torch.as_tensor(maximum, dtype=x.dtype, device=x.device))
        if bool((lower > upper).any()):
            raise ValueError("the box is empty: x + epsilon lies below the minimum or x - epsilon above the maximum")
        return cls(lower, upper)

    @property
    def centre(self) -> Tensor:
        """(batch, *features)."""
        return (self.lower + self.upper) / 2

    @property
    def radius(self) -> Tensor:
        """(batch, *features): the largest deviation from the centre in each coordinate."""
        return (self.upper - self.lower) / 2

    @staticmethod
    def reduce(weighted: Tensor, dim: int) -> Tensor:
        """The dual norm, of coefficients already multiplied by `radius`: how far a linear function can deviate."""
        return weighted.abs().sum(dim)

    def minimizer(self, coefficients: Tensor) -> Tensor:
        """The point (batch, *features) of the region at which sum(coefficients * x) is least."""
        return torch.where(coefficients > 0, self.lower, self.upper)

    def step(self, gradient: Tensor) -> Tensor:
        """The steepest ascent step of unit length in the region's own norm."""
        return self.radius * gradient.sign()

    def project(self, x: Tensor) -> Tensor:
        """The nearest points of the region, for x (batch, *features)."""
        return torch.minimum(torch.maximum(x, self.lower), self.upper)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """(n, batch, *features) uniform points."""
        u = torch.rand((n, *self.lower.shape), generator=generator, dtype=self.lower.dtype, device=self.lower.device)
        return self.project(self.lower + u * (self.upper - self.lower))

    def __getitem__(self, index) -> "Box":
        return Box(self.lower[index], self.upper[index])

    def to(self, *args, **kwargs) -> "Box":
        """As `Tensor.to`."""
        return Box(self.lower.to(*args, **kwargs), self.upper.to(*args, **kwargs))


@dataclass(frozen=True)
class Ball:
    """{ x : || (x - centre) / radius ||_2 <= 1 }: an l2 ball, or an ellipsoid where `radius` differs by feature.

    centre: (batch, *features); radius: the same shape, not negative (a feature of radius 0 does not move).
    """

    centre: Tensor
    radius: Tensor

    @classmethod
    def around(cls, x: Tensor, epsilon: Tensor | float) -> "Ball":
        """All points whose difference from `x`, each feature in units of its `epsilon`, has l2 norm at most 1.

        Raises:
            ValueError: epsilon is negative.
        """
        epsilon = torch.as_tensor(epsilon, dtype=x.dtype, device=x.device)
        if bool((epsilon < 0).any()):
            raise ValueError("epsilon must not be negative")
        return cls(x, epsilon.expand_as(x))

    @property
    def lower(self) -> Tensor:
        """(batch, *features): the least value of each coordinate."""
        return self.centre - self.radius

    @property
    def upper(self) -> Tensor:
        """(batch, *features): the greatest value of each coordinate."""
        return self.centre + self.radius

    @staticmethod
    def reduce(weighted: Tensor, dim: int) -> Tensor:
        return torch.linalg.vector_norm(weighted, dim=dim)

    def _unit(self, direction: Tensor) -> Tensor:
        flat = direction.flatten(1)
        length = torch.linalg.vector_norm(flat, dim=1, keepdim=True)
        return (flat / length.clamp(min=torch.finfo(flat.dtype).tiny)).view_as(direction)

    def minimizer(self, coefficients: Tensor) -> Tensor:
        return self.centre - self.radius * self._unit(coefficients * self.radius)

    def step(self, gradient: Tensor) -> Tensor:
        return self.radius * self._unit(gradient * self.radius)

    def project(self, x: Tensor) -> Tensor:
        still = self.radius == 0
        scaled = torch.where(still, 0.0, (x - self.centre) / torch.where(still, 1.0, self.radius))
        length = torch.linalg.vector_norm(scaled.flatten(1), dim=1).clamp(min=1.0)
        return self.centre + self.radius * scaled / length.view(-1, *[1] * (x.dim() - 1))

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        shape = (n * self.centre.shape[0], self.centre[0].numel())
        options = {"generator": generator, "dtype": self.centre.dtype, "device": self.centre.device}
        direction = self._unit(torch.randn(shape, **options))
        length = torch.rand((shape[0], 1), **options) ** (1 / shape[1])
        return self.centre + self.radius * (direction * length).view(n, *self.centre.shape)

    def __getitem__(self, index) -> "Ball":
        return Ball(self.centre[index], self.radius[index])

    def to(self, *args, **kwargs) -> "Ball":
        return Ball(self.centre.to(*args, **kwargs), self.radius.to(*args, **kwargs))


Region = Box | Ball


def linear_range(region: Region, coefficients: Tensor) -> tuple[Tensor, Tensor]:
    """Value at the centre and largest deviation from it of sum(coefficients * x) over the region, exactly.

    coefficients: (1 or batch, rows, *features). Returns two tensors (batch, rows).
    """
    flat = coefficients.flatten(2)
    value = dot(flat, region.centre)
    deviation = region.reduce(flat * region.radius.flatten(1).unsqueeze(1), -1)
    return value, deviation


def dot(coefficients: Tensor, values: Tensor) -> Tensor:
    """(batch, rows): each row of coefficients (1 or batch, rows, *features) times values (batch, *features)."""
    rows, values = coefficients.flatten(2), values.flatten(1)
    if rows.shape[1] == 1:  # batched matrix products of single rows are slow
        return (rows * values.unsqueeze(1)).sum(-1)
    return (rows @ values.unsqueeze(-1)).squeeze(-1)
