"""A residual network with a projection head, as contrastive learning wants it (SimCLR: Chen et al., ICML 2020)."""

from torch import Tensor, nn

from robustrun.models.preact_resnet import PreActResNet18
from robustrun.numbers import PositiveInt
from robustrun.registry import models
from robustrun.roles import ClassificationSpec, Encoder


@models.register("contrastive")
class Contrastive(Encoder):
    """A ResNet-18 for small images (3x3 stem, no pooling) whose pooled features go through a head of two layers.

    Its `features` are those before the head: 8 `width`.

    Args:
        spec: images.
        width: channels of the first stage; 64 gives 512 features.
        projection: outputs of the head, which the objective compares.
    """

    def __init__(self, spec: ClassificationSpec, *, width: PositiveInt = 64, projection: PositiveInt = 128):
        super().__init__()
        self.dimension = 8 * width
        self.backbone = PreActResNet18(spec, width=width, shortcut_on="preact")
        self.backbone.linear = nn.Identity()
        self.head = nn.Sequential(
            nn.Linear(self.dimension, self.dimension), nn.ReLU(), nn.Linear(self.dimension, projection)
        )

    def features(self, inputs: Tensor) -> Tensor:
        return self.backbone(inputs)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.features(inputs))
