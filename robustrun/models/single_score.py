"""Classifiers with one score for two classes: the logits are (0, score), so that score >= 0 predicts the second.

Networks and initialisation (Glorot uniform, zero biases) as in arXiv 1912.00965.
"""

import math

import torch.nn.functional as F
from torch import Tensor, nn

from robustrun.models.normalize import image_shape, normalization
from robustrun.numbers import PositiveInt
from robustrun.registry import models
from robustrun.roles import ClassificationSpec


class _SingleScore(nn.Module):
    """Layers that end in one output for two classes, in one output a class otherwise."""

    def __init__(self, *layers: nn.Module):
        super().__init__()
        self.layers = nn.Sequential(*layers)
        for layer in self.layers:
            if isinstance(layer, nn.Linear | nn.Conv2d):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs = self.layers(inputs)
        return F.pad(outputs, (1, 0)) if outputs.shape[-1] == 1 else outputs


@models.register("mlp_classifier")
class MLPClassifier(_SingleScore):
    """Fully connected with ReLU: (100, 100) hidden units in the paper, 100 d + 10,301 parameters for d features."""

    def __init__(self, spec: ClassificationSpec, *, hidden: list[PositiveInt] = [100, 100]):  # noqa: B006
        layers: list[nn.Module] = [normalization(spec), nn.Flatten()]
        width = math.prod(spec.input_shape)
        for units in hidden:
            layers += [nn.Linear(width, units), nn.ReLU()]
            width = units
        super().__init__(*layers, nn.Linear(width, 1 if spec.classes == 2 else spec.classes))


@models.register("cnn_classifier")
class CNNClassifier(_SingleScore):
    """Two 5 x 5 convolutions (20, 50 channels) with 2 x 2 pooling and 500 units: 426,571 parameters on 28 x 28.

    The original has no activation after the 500 units; `activation` adds one.
    """

    def __init__(self, spec: ClassificationSpec, *, activation: bool = False):
        channels, height, width = image_shape(spec)
        sides = [((side - 4) // 2 - 4) // 2 for side in (height, width)]
        if min(sides) < 1:
            raise ValueError(f"images of {height} x {width} are too small for two 5 x 5 convolutions and poolings")
        super().__init__(
            normalization(spec),
            nn.Conv2d(channels, 20, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(20, 50, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(50 * sides[0] * sides[1], 500),
            nn.ReLU() if activation else nn.Identity(),
            nn.Linear(500, 1 if spec.classes == 2 else spec.classes),
        )
