"""The fully connected ReLU network of virtual sensors (arXiv 2007.00147)."""

import itertools

from torch import Tensor, nn

from robustrun.numbers import PositiveInt
from robustrun.registry import models
from robustrun.roles import RegressionSpec


@models.register("mlp_regressor")
class MLPRegressor(nn.Module):
    """Linear layers with ReLU between them: hidden widths as given, no normalisation, PyTorch's initialisation."""

    def __init__(self, spec: RegressionSpec, *, hidden: tuple[PositiveInt, ...] = (64, 64)):
        super().__init__()
        (inputs,) = spec.input_shape
        layers: list[nn.Module] = []
        for n, m in itertools.pairwise((inputs, *hidden, spec.outputs)):
            layers += [nn.Linear(n, m), nn.ReLU()]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layers(inputs)
