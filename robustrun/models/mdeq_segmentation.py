"""Multiscale deep equilibrium models that give every pixel a class (arXiv 2006.08656, section 4.3)."""

from torch import Tensor, nn

from robustrun.models.mdeq import Multiscale
from robustrun.models.mdeq_parts import SegmentationHead, initialize
from robustrun.models.mdeq_settings import GradientSettings, Solver, layer
from robustrun.numbers import NonNegativeInt, Positive, PositiveInt, Probability
from robustrun.registry import models
from robustrun.roles import SegmentationSpec


@models.register("mdeq_segmentation")
class MDEQSegmentation(Multiscale):
    """The trunk of `mdeq` and a head for pixels; 8,968,467 parameters with the defaults and 19 classes.

    Stem and cell have the names and shapes that they have in the classifier of the same channels, so its weights load.

    Args: as of `mdeq`, whose head's it has none of.
        momentum: of the running statistics of batch normalisation.

    Raises:
        ValueError: sizes that do not go together.
    """

    def __init__(
        self,
        spec: SegmentationSpec,
        *,
        channels: tuple[PositiveInt, ...] = (32, 64, 128, 256),
        expansion: PositiveInt = 5,
        groups: PositiveInt = 8,
        halvings: NonNegativeInt = 2,
        affine: bool = True,
        dropout: Probability = 0.05,
        softplus: Positive | None = None,
        init_std: Positive | None = 0.01,
        momentum: Probability = 0.01,
        solver: Solver = Solver(),  # noqa: B008
        forward_steps: NonNegativeInt = 27,
        backward_steps: NonNegativeInt = 30,
        gradient: GradientSettings = GradientSettings(),  # noqa: B008
        unroll: NonNegativeInt = 0,
    ):
        super().__init__(spec, channels, expansion, groups, halvings, affine, dropout, softplus)
        self.layer = layer(solver, forward_steps, backward_steps, gradient, unroll)
        self.head = SegmentationHead(channels, spec.classes)
        if init_std is not None:
            initialize(self, init_std)
        for part in self.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.momentum = momentum

    def readout(self, z: Tensor, inputs: Tensor) -> Tensor:
        return self.head(self.branches(z, inputs), tuple(inputs.shape[2:]))
