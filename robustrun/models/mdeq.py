"""Multiscale deep equilibrium models (arXiv 2006.08656), and the single-stream one beside them."""

from collections.abc import Sequence

from torch import Tensor

from robustrun.models.mdeq_cell import MultiscaleCell
from robustrun.models.mdeq_parts import ClassificationHead, Stem, initialize
from robustrun.models.mdeq_settings import GradientSettings, Solver, layer
from robustrun.models.normalize import image_shape, normalization
from robustrun.numbers import NonNegativeInt, Positive, PositiveInt, Probability
from robustrun.registry import models
from robustrun.roles import ClassificationSpec, EquilibriumNetwork, SegmentationSpec


class Multiscale(EquilibriumNetwork):
    """Normalisation, stem, cell and equilibrium, with which every multiscale model begins."""

    def __init__(
        self,
        spec: ClassificationSpec | SegmentationSpec,
        channels: Sequence[int],
        expansion: int,
        groups: int,
        halvings: int,
        affine: bool,
        dropout: float,
        softplus: float | None,
    ):
        super().__init__()
        self.halvings = halvings
        self._check(spec, len(channels))
        self.normalize = normalization(spec)
        inject = halvings > 0 or len(channels) > 2
        self.stem = Stem(image_shape(spec)[0], channels[0], halvings, inject)
        self.cell = MultiscaleCell(channels, expansion, groups, affine, dropout, softplus)

    def equation(self, inputs: Tensor):
        return self.cell.equation(self.stem(self.normalize(inputs)))

    def branches(self, z: Tensor, inputs: Tensor) -> list[Tensor]:
        """The branches of the state z (B, D) at these inputs, (B, C_i, H_i, W_i) each."""
        height, width = (size >> self.halvings for size in inputs.shape[2:])
        return self.cell.split(z, height, width)

    def _check(self, spec: ClassificationSpec | SegmentationSpec, scales: int) -> None:
        size = tuple(image_shape(spec)[1:])
        divisor = 2 ** (self.halvings + scales - 1)
        if any(side % divisor for side in size):
            raise ValueError(
                f"{scales} scales and {self.halvings} halvings before them take images whose sides are multiples of "
                f"{divisor}, not {size[0]} x {size[1]}"
            )


@models.register("mdeq")
class MDEQ(Multiscale):
    """A multiscale deep equilibrium classifier; 158,986 parameters on CIFAR-10 with the defaults.

    Args:
        spec: images whose sides are multiples of 2^(halvings + scales - 1).
        channels: of each scale, the highest resolution first; one alone makes the single-stream model.
        expansion: by which the residual blocks are wider inside.
        groups: of the normalisations.
        widths: of the head's bottlenecks, one a scale.
        features: before the last layer.
        halvings: how often the stem halves the resolution, at most twice.
        affine: the normalisation behind the fusion has a scale and a shift.
        dropout: variational dropout of channels.
        softplus: its beta, where it takes the place of the last ReLU of block and fusion; None: ReLU everywhere.
        init_std: initial standard deviation of all convolutions that are not weight-normalised; None: torch's own
            initialisation, from which a few hundred large steps learn faster.
        solver: of both passes.
        forward_steps, backward_steps: of the solver, at most.
        gradient: how the equilibrium is differentiated.
        unroll: if above 0, the weight-tied network of so many layers in place of the equilibrium.

    Raises:
        ValueError: sizes that do not go together.
    """

    def __init__(
        self,
        spec: ClassificationSpec,
        *,
        channels: tuple[PositiveInt, ...] = (24, 24),
        expansion: PositiveInt = 5,
        groups: PositiveInt = 8,
        widths: tuple[PositiveInt, ...] = (8, 16),
        features: PositiveInt = 200,
        halvings: NonNegativeInt = 0,
        affine: bool = True,
        dropout: Probability = 0.25,
        softplus: Positive | None = None,
        init_std: Positive | None = 0.01,
        solver: Solver = Solver(),  # noqa: B008
        forward_steps: NonNegativeInt = 18,
        backward_steps: NonNegativeInt = 20,
        gradient: GradientSettings = GradientSettings(),  # noqa: B008
        unroll: NonNegativeInt = 0,
    ):
        if len(widths) != len(channels):
            raise ValueError(f"{len(channels)} scales need as many widths of the head, not {len(widths)}")
        super().__init__(spec, channels, expansion, groups, halvings, affine, dropout, softplus)
        self.layer = layer(solver, forward_steps, backward_steps, gradient, unroll)
        self.head = ClassificationHead(channels, widths, features, spec.classes)
        if init_std is not None:
            initialize(self, init_std)

    def readout(self, z: Tensor, inputs: Tensor) -> Tensor:
        return self.head(self.branches(z, inputs))
