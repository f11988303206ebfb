"""Fixed-step integrators and roll-outs, batched over starts."""

from collections.abc import Callable

import torch
from torch import Tensor

Field = Callable[[Tensor], Tensor]
"""A vector field: states (B, n) -> derivatives (B, n)."""


def euler_step(field: Field, x: Tensor, h: float, first: Tensor | None = None) -> Tensor:
    """One explicit Euler step from x (B, n), of first order; `first` is field(x), where it is known already."""
    return x + h * (field(x) if first is None else first)


def rk4_step(field: Field, x: Tensor, h: float, first: Tensor | None = None) -> Tensor:
    """One step of the classical Runge-Kutta method from x (B, n), of fourth order; `first` as in `euler_step`."""
    k1 = field(x) if first is None else first
    k2 = field(torch.add(x, k1, alpha=0.5 * h))
    k3 = field(torch.add(x, k2, alpha=0.5 * h))
    k4 = field(torch.add(x, k3, alpha=h))
    return x + (h / 6) * (k1 + 2 * (k2 + k3) + k4)


METHODS = {"euler": euler_step, "rk4": rk4_step}


def integrator(field: Field, h: float, method: str = "rk4", substeps: int = 1) -> Callable[[Tensor], Tensor]:
    """The map x(t) -> x(t + h), made of `substeps` steps of the method ("euler" or "rk4")."""
    step, part = METHODS[method], h / substeps

    def advance(x: Tensor) -> Tensor:
        for _ in range(substeps):
            x = step(field, x, part)
        return x

    return advance


def rollout(step: Callable[[Tensor], Tensor], start: Tensor, steps: int, every: int = 1) -> Tensor:
    """Iterate a map from the starts (B, n); returns the states (1 + steps // every, B, n), the starts first.

    Differentiable; run it under `torch.no_grad()` when no gradient is needed.
    """
    states, x = [start], start
    for k in range(1, steps + 1):
        x = step(x)
        if k % every == 0:
            states.append(x)
    return torch.stack(states)
