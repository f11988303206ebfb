"""Normalisation inside the model, so that whoever perturbs its input works in natural units."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from robustrun.roles import ClassificationSpec, RegressionSpec, SegmentationSpec


class Normalize(nn.Module):
    """(x - mean) / std by channel (or feature): the first dimension after the batch's.

    The constants come from the task, so they are not part of the state that checkpoints hold.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], dimensions: int = 3):
        super().__init__()
        shape = (len(mean), *[1] * (dimensions - 1))
        mean, std = (torch.tensor(v, dtype=torch.float64).view(shape) for v in (mean, std))
        self.register_buffer("scale", (1 / std).float(), persistent=False)
        self.register_buffer("shift", (-mean / std).float(), persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.addcmul(self.shift, inputs, self.scale)


def normalization(spec: ClassificationSpec | RegressionSpec | SegmentationSpec) -> nn.Module:
    """The task's normalisation as a layer; the identity if it has none.

    Raises:
        ValueError: mean and standard deviation do not fit the input's channels.
    """
    if not spec.mean and not spec.std:
        return nn.Identity()
    channels = spec.input_shape[0]
    if not len(spec.mean) == len(spec.std) == channels or not all(s > 0 and math.isfinite(s) for s in spec.std):
        raise ValueError(f"the normalisation {spec.mean}, {spec.std} does not fit {channels} channels")
    return Normalize(spec.mean, spec.std, len(spec.input_shape))


def image_shape(spec: ClassificationSpec | SegmentationSpec) -> tuple[int, int, int]:
    """(channels, height, width) of the task's inputs.

    Raises:
        ValueError: the inputs are not images.
    """
    if len(spec.input_shape) != 3:
        raise ValueError(f"this model takes images (channels, height, width), not inputs of {spec.input_shape}")
    return spec.input_shape
