"""The error of a prediction relative to the quantity, and its worst case over an interval of predictions."""

import torch
from torch import Tensor


def relative_error(prediction: Tensor, target: Tensor, floor: float = 0.0) -> Tensor:
    """|prediction - target| / max(|target|, floor), elementwise.

    Small quantities dominate a relative error: below `floor` (in the target's unit) the error is taken relative to
    the floor instead. Raises ValueError for a target of zero without a floor.
    """
    return worst_relative_error(prediction, prediction, target, floor)


def worst_relative_error(lower: Tensor, upper: Tensor, target: Tensor, floor: float = 0.0) -> Tensor:
    """max(upper - target, target - lower) / max(|target|, floor): the largest relative error of any prediction in
    [lower, upper], elementwise; an over- or an underestimate, whichever is worse. Its gradient is +1 / |target| on
    `upper` or -1 / |target| on `lower`.

    Raises:
        ValueError: a target is zero and there is no floor.
    """
    scale = target.abs().clamp(min=floor)
    if bool((scale == 0).any()):
        raise ValueError("the relative error of a target of zero is not defined; give a floor")
    return torch.maximum(upper - target, target - lower) / scale


def interval_weights(target: Tensor, low: float, high: float, outside: float) -> Tensor:
    """1 where low <= target <= high, else `outside`, elementwise: what aims training at an interval of quantities."""
    inside = (target >= low) & (target <= high)
    return torch.where(inside, 1.0, outside).to(target.dtype)
