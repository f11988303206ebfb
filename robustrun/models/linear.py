"""Linear classifiers on fixed features: pixels, random Fourier features, or another network's last hidden layer.

Source: Rosenfeld et al. (arXiv 2002.03018), whose linear classifiers stand on such features; random Fourier features:
Rahimi and Recht (NIPS 2007).
"""

import math

import torch
from torch import Tensor, nn

from robustrun.errors import ConfigError
from robustrun.models.normalize import image_shape, normalization
from robustrun.numbers import Positive, PositiveInt
from robustrun.registry import models
from robustrun.roles import ClassificationSpec, Encoder, LinearClassifier
from robustrun.saved import load


class _Linear(LinearClassifier):
    """Weights that start at zero, on `dimension` features."""

    def __init__(self, spec: ClassificationSpec, dimension: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(dimension, spec.classes, dtype=torch.float64))
        self.bias = nn.Parameter(torch.zeros(spec.classes, dtype=torch.float64))


@models.register("linear")
class Linear(_Linear):
    """Linear in the inputs themselves, normalised as the task says."""

    def __init__(self, spec: ClassificationSpec):
        super().__init__(spec, math.prod(spec.input_shape))
        self.normalize = normalization(spec)

    def features(self, inputs: Tensor) -> Tensor:
        return self.normalize(inputs).flatten(1).double()


@models.register("linear_fourier")
class LinearFourier(_Linear):
    """Linear in random Fourier features: sqrt(2 / k) cos(x W + b), a Gaussian kernel (Rahimi and Recht, 2007).

    Args:
        dimension: k, the number of features.
        scale: standard deviation of W, the inverse width of the kernel.
    """

    def __init__(self, spec: ClassificationSpec, *, dimension: PositiveInt = 1000, scale: Positive = 0.15):
        super().__init__(spec, dimension)
        self.normalize = normalization(spec)
        inputs = math.prod(spec.input_shape)
        self.register_buffer("frequencies", scale * torch.randn(inputs, dimension, dtype=torch.float64))
        self.register_buffer("phases", 2 * math.pi * torch.rand(dimension, dtype=torch.float64))

    def features(self, inputs: Tensor) -> Tensor:
        x = self.normalize(inputs).flatten(1).double()
        return math.sqrt(2 / len(self.phases)) * torch.cos(x @ self.frequencies + self.phases)


@models.register("linear_on_encoder")
class LinearOnEncoder(_Linear):
    """Linear in a finished network's features, which stay as they are: an encoder's own, else the inputs of the last
    linear layer.

    A certificate against changed labels holds only if the network has not seen these labels.

    Args:
        encoder: run directory of the job that trained the network.
    """

    def __init__(self, spec: ClassificationSpec, *, encoder: str):
        network = load(encoder)
        self._seen: list[Tensor] = []
        if isinstance(network, Encoder):
            super().__init__(spec, network.dimension)
            self.network = network.requires_grad_(False)
            return
        heads = [module for module in network.modules() if isinstance(module, nn.Linear)]
        if not heads:
            raise ConfigError(f"the model in {encoder} has no linear layer whose inputs could be features")
        super().__init__(spec, heads[-1].in_features)
        self.network = network.requires_grad_(False)
        heads[-1].register_forward_pre_hook(lambda _, arguments: self._seen.append(arguments[0]))

    def train(self, mode: bool = True) -> "LinearOnEncoder":
        super().train(mode)
        self.network.eval()
        return self

    def features(self, inputs: Tensor) -> Tensor:
        if isinstance(self.network, Encoder):
            return self.network.features(inputs).double()
        self._seen.clear()
        self.network(inputs)
        return self._seen.pop().flatten(1).double()


@models.register("feature_cnn")
class FeatureCNN(nn.Module):
    """Two 5 x 5 convolutions of stride 2 (16, 32 channels), 50 features and a linear layer on them.

    92,106 parameters on eight digits; its 50 features serve `linear_on_encoder`.
    """

    def __init__(self, spec: ClassificationSpec, *, features: PositiveInt = 50):
        super().__init__()
        channels, height, width = image_shape(spec)
        self.layers = nn.Sequential(
            normalization(spec),
            nn.Conv2d(channels, 16, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.Conv2d(16, 32, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * math.ceil(height / 4) * math.ceil(width / 4), features),
            nn.ReLU(),
            nn.Linear(features, spec.classes),
        )

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layers(inputs)
