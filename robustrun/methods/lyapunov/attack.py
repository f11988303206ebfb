"""An adversary that looks for a state at which V does not decrease as promised."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from robustrun.methods.lyapunov.dynamics import Decrease


class Attack(NamedTuple):
    """The worst state that was found and how bad it is."""

    violation: float  # largest relative violation; at most a few roundings if the guarantee holds
    absolute: float  # the violation of the same state in the units of dV/dt
    state: Tensor  # (n,)
    evaluations: int


def radial_starts(
    count: int, dimension: int, generator: torch.Generator, *, low: float = 1e-6, high: float = 1e3, **kwargs: object
) -> Tensor:
    """Random directions at log-uniform radii in [low, high], (count, dimension)."""
    direction = torch.randn(count, dimension, generator=generator, **kwargs)  # type: ignore[arg-type]
    unit = direction / torch.linalg.vector_norm(direction, dim=1, keepdim=True)
    exponent = torch.rand(count, 1, generator=generator, **kwargs)  # type: ignore[arg-type]
    return unit * torch.exp(math.log(low) + exponent * math.log(high / low))


def attack_decrease(
    decrease: Callable[[Tensor], Decrease], starts: Tensor, *, steps: int = 50, rate: float = 0.05
) -> Attack:
    """Maximise the relative violation by gradient ascent from all starts (B, n) at once.

    A step moves each state by `rate` times its norm along its own normalised gradient, shrinking linearly to
    zero, so that states at every distance from the origin are searched at their own scale. Every visited state
    counts, the starts included.
    """
    x = starts.detach().clone()
    best, best_state = x.new_full((len(x),), -math.inf), x.clone()
    for k in range(steps + 1):
        x.requires_grad_(True)
        relative = decrease(x).relative
        (gradient,) = torch.autograd.grad(relative.sum(), x)
        with torch.no_grad():
            score = torch.nan_to_num(relative, nan=math.inf)  # a state without a derivative is the worst of all
            better = score > best
            best = torch.where(better, score, best)
            best_state = torch.where(better.unsqueeze(1), x, best_state)
            norm = torch.linalg.vector_norm(gradient, dim=1, keepdim=True)
            radius = torch.linalg.vector_norm(x, dim=1, keepdim=True)
            move = rate * (1 - k / max(steps, 1)) * radius * gradient / torch.where(norm > 0, norm, 1.0)
            x = (x + torch.nan_to_num(move)).detach()
    worst = int(best.argmax())
    state = best_state[worst]
    with torch.no_grad():
        absolute = float(decrease(state.unsqueeze(0)).violation)
    return Attack(float(best[worst]), absolute, state, (steps + 1) * len(x))
