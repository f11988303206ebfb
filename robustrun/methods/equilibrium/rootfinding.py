"""Equilibria on tiers by general root finders, which know nothing of W and promise nothing."""

from collections.abc import Callable

import torch
from torch import Tensor

from robustrun.methods.equilibrium.fixed_point import FixedPoint, FixedPointSolver

State = tuple[Tensor, ...]

MEMORY = {"broyden": 30, "anderson": 5}  # updates kept: hundreds of them would take gigabytes


def find_root(function: Callable[[State], State], start: State, solver: FixedPointSolver) -> tuple[State, FixedPoint]:
    """z = function(z) from `start` on: the iterate of the smallest residual over all tiers, and how it was found.

    Tiers have shapes (B, ...); the solver sees them as one vector an example.
    """
    shapes = [tier.shape[1:] for tier in start]
    sizes = [shape.numel() for shape in shapes]

    def unpack(flat: Tensor) -> State:
        parts = flat.split(sizes, 1)
        return tuple(part.reshape(-1, *shape) for part, shape in zip(parts, shapes, strict=True))

    def pack(state: State) -> Tensor:
        return torch.cat([tier.flatten(1) for tier in state], 1)

    found = solver.solve(lambda flat: pack(function(unpack(flat))), pack(start))
    return unpack(found.z), found
