"""How far a predicted trajectory is from the true one."""

import math

import torch
from torch import Tensor


def wrap_angle(angle: Tensor) -> Tensor:
    """The equivalent angle in [-pi, pi), elementwise."""
    return torch.remainder(angle + math.pi, 2 * math.pi) - math.pi


def squared_error(truth: Tensor, prediction: Tensor, angles: int = 0) -> Tensor:
    """Squared distance of states (..., n), summed over the state: (...).

    The first `angles` coordinates are angles in radians; the wrapped difference counts for them. Only the error
    is wrapped: wrapping a state itself would make a Lyapunov function jump.
    """
    difference = truth - prediction
    if angles:
        difference = torch.cat([wrap_angle(difference[..., :angles]), difference[..., angles:]], -1)
    return difference.square().sum(-1)
