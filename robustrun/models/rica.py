"""Features of image patches by reconstruction ICA, pooled over the image's quarters (Le et al., NIPS 2011)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustrun.errors import ConfigError
from robustrun.methods.features import contrast_normalised
from robustrun.models.normalize import image_shape
from robustrun.numbers import PositiveInt
from robustrun.registry import models
from robustrun.roles import ClassificationSpec, PatchEncoder


@models.register("rica")
class Rica(PatchEncoder):
    """Filters on whitened patches, stride 1; positive and negative parts, summed over four quadrants: 8 F features.

    Args:
        spec: images of at least twice the patch's size.
        filters: F.
        patch: the patches' edge in pixels.
    """

    def __init__(self, spec: ClassificationSpec, *, filters: PositiveInt = 400, patch: PositiveInt = 6):
        super().__init__()
        channels, *extent = image_shape(spec)
        if min(extent) <= patch:
            raise ConfigError(f"model.patch={patch} leaves no two patches in images of {extent[0]}x{extent[1]} pixels")
        size = channels * patch**2
        self.patch, self.dimension = patch, 8 * filters
        self.filters = nn.Parameter(torch.randn(filters, size))
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("whitening", torch.eye(size))
        self.register_buffer("centre", torch.zeros(self.dimension))
        self.register_buffer("scale", torch.ones(self.dimension))

    def whitened(self, patches: Tensor) -> Tensor:
        return (contrast_normalised(patches) - self.mean) @ self.whitening

    def raw_features(self, inputs: Tensor) -> Tensor:
        height, width = (extent - self.patch + 1 for extent in inputs.shape[-2:])
        patches = contrast_normalised(F.unfold(inputs, self.patch), dim=1)  # (B, d, places)
        filters = self.whitening @ F.normalize(self.filters, dim=1).T
        code = (filters.T @ patches - (self.mean @ filters)[:, None]).unflatten(-1, (height, width))
        halves = [
            part
            for rows in code.tensor_split(2, dim=-2)
            for quarter in rows.tensor_split(2, dim=-1)
            for part in (quarter.clamp(min=0).sum((-2, -1)), quarter.clamp(max=0).sum((-2, -1)).neg())
        ]
        return torch.cat(halves, 1)

    def features(self, inputs: Tensor) -> Tensor:
        return (self.raw_features(inputs) - self.centre) * self.scale

    def forward(self, inputs: Tensor) -> Tensor:
        return self.features(inputs)
