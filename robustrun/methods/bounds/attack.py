"""The other side of a bound: values that the network does take on a region, found by projected gradient steps."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from robustrun.methods.bounds.regions import Bounds, Region


class Attained(NamedTuple):
    """`lower` and `upper` (batch,): values attained at the inputs `at_lower` and `at_upper` (batch, *features)."""

    lower: Tensor
    upper: Tensor
    at_lower: Tensor
    at_upper: Tensor

    @property
    def bounds(self) -> Bounds:
        """The two values as an interval."""
        return Bounds(self.lower, self.upper)


def attained_range(
    model: Callable[[Tensor], Tensor],
    region: Region,
    *,
    steps: int = 50,
    restarts: int = 5,
    step_size: float | None = None,
    start: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Attained:
    """Least and greatest scalar output that projected gradient descent and ascent find within `region`.

    model: maps (batch, *features) to (batch,) or (batch, 1). Both signs and all restarts run as one batch: the
    first start is `start` (batch, *features; the middle of the region if None), the others are uniform samples.
    Each step moves `step_size` (2.5 / steps if None) of the radius in the region's own norm. Every iterate counts,
    not only the last. No gradient is left on the model's parameters.

    Raises:
        ValueError: there are no steps or no restarts.
    """
    if steps < 1 or restarts < 1:
        raise ValueError("steps and restarts must be at least 1")
    step_size = 2.5 / steps if step_size is None else step_size
    batch = region.lower.shape[0]
    start = (region.lower + region.upper) / 2 if start is None else start
    starts = start.unsqueeze(0)
    if restarts > 1:
        starts = torch.cat([starts, region.sample(restarts - 1, generator)])
    index = torch.arange(batch, device=start.device).repeat(2 * restarts)
    rows = region[index]
    sign = torch.tensor([-1.0, 1.0], dtype=start.dtype, device=start.device).repeat_interleave(restarts * batch)
    x = torch.cat([starts.flatten(0, 1)] * 2)
    best, best_x = torch.full_like(sign, -torch.inf), x
    for step in range(steps + 1):
        x = x.detach().requires_grad_(step < steps)
        with torch.set_grad_enabled(step < steps):
            value = sign * model(x).reshape(-1)
            gradient = torch.autograd.grad(value.sum(), x)[0] if step < steps else None
        better = value.detach() > best
        best = torch.where(better, value.detach(), best)
        best_x = torch.where(better.view(-1, *[1] * (x.dim() - 1)), x.detach(), best_x)
        if step < steps:
            x = rows.project(x.detach() + step_size * rows.step(gradient))
    best, winner = best.view(2, restarts, batch).max(dim=1)
    points = best_x.view(2, restarts, batch, *x.shape[1:])
    example = torch.arange(batch, device=x.device)
    return Attained(-best[0], best[1], points[0, winner[0], example], points[1, winner[1], example])
