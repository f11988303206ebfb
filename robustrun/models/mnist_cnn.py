"""The small convolutional network for MNIST of arXiv 2001.03994."""

from torch import Tensor, nn

from robustrun.models.normalize import image_shape, normalization
from robustrun.numbers import Positive
from robustrun.registry import models
from robustrun.roles import ClassificationSpec


@models.register("mnist_cnn")
class MnistCNN(nn.Module):
    """Two 4x4 stride-2 convolutions (16, 32 channels) and two linear layers (100 hidden units).

    166,406 parameters on MNIST. `width` scales channels and hidden units alike.
    """

    def __init__(self, spec: ClassificationSpec, *, width: Positive = 1.0):
        super().__init__()
        channels, height, columns = image_shape(spec)
        narrow, wide, hidden = (max(1, round(width * n)) for n in (16, 32, 100))
        self.layers = nn.Sequential(
            normalization(spec),
            nn.Conv2d(channels, narrow, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(narrow, wide, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(wide * (height // 4) * (columns // 4), hidden),
            nn.ReLU(),
            nn.Linear(hidden, spec.classes),
        )

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layers(inputs)
