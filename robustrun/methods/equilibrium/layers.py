"""Monotone equilibrium layers, ready for any network: fully connected, convolutional, on several resolutions."""

from collections.abc import Sequence

from torch import Tensor, nn

from robustrun.methods.equilibrium.activations import Activation, Activations, masked, relu
from robustrun.methods.equilibrium.circular import CircularMonotone, border_mask
from robustrun.methods.equilibrium.dense import DenseMonotone
from robustrun.methods.equilibrium.grid import BatchLastConv2d, batch_last
from robustrun.methods.equilibrium.implicit import MonotoneLayer
from robustrun.methods.equilibrium.multitier import MultiTierMonotone
from robustrun.methods.equilibrium.splitting import Splitting, State
from robustrun.methods.equilibrium.unconstrained import FreeMultiTier


class MonotoneLinear(MonotoneLayer):
    """A fully connected monotone equilibrium layer, (B, in_features) -> (B, features)."""

    def __init__(
        self,
        in_features: int,
        features: int,
        *,
        margin: float = 1.0,
        activation: Activation = relu,
        settings: Splitting = Splitting(),  # noqa: B008
    ):
        super().__init__(nn.Linear(in_features, features), DenseMonotone(features, margin), activation, settings)


class _Bordered(MonotoneLayer):
    """Tiers of images on whose borders z is held at zero, so that circular convolutions do not wrap around."""

    def __init__(
        self, injection: nn.Module, operator: nn.Module, activation: Activation, settings: Splitting, sides: list[int]
    ):
        self._plain, self._tiers = activation, len(sides)
        super().__init__(injection, operator, activation, settings)
        for i, side in enumerate(sides):
            self.register_buffer(f"mask_{i}", border_mask(side), persistent=False)

    @property
    def activation(self) -> Activations:
        return tuple(masked(self._plain, getattr(self, f"mask_{i}")) for i in range(self._tiers))

    @activation.setter
    def activation(self, activation: Activation) -> None:
        self._plain = activation


class MonotoneConv2d(_Bordered):
    """A convolutional monotone equilibrium layer, (B, in_channels, side, side) -> (B, channels, side + 2, side + 2).

    The input gets a border of one pixel, on which z is held at zero.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        side: int,
        *,
        margin: float = 1.0,
        activation: Activation = relu,
        settings: Splitting = Splitting(),  # noqa: B008
    ):
        inject = BatchLastConv2d(in_channels, channels, 3, padding=2)  # one pixel of border, one of the kernel
        operator = CircularMonotone(channels, side + 2, 3, margin)
        super().__init__(inject, operator, activation, settings, [side + 2])


class MonotoneMultiTier2d(_Bordered):
    """A monotone equilibrium layer on several resolutions, (B, in_channels, side, side) -> the last tier (B, c, n, n).

    Tier 0 has side + 2 pixels a side and takes the input; each further tier has half as many and one more. All tiers
    come from `equilibrium`.

    Args:
        channels: one a tier, from fine to coarse.

    Raises:
        ValueError: the side does not halve as often as there are tiers below the first.
    """

    def __init__(
        self,
        in_channels: int,
        channels: Sequence[int],
        side: int,
        *,
        margin: float = 1.0,
        activation: Activation = relu,
        settings: Splitting = Splitting(),  # noqa: B008
    ):
        operator = MultiTierMonotone(channels, side + 2, 3, margin)
        inject = _FirstTier(in_channels, channels, operator.sides)
        super().__init__(inject, operator, activation, settings, operator.sides)


class FreeMultiTier2d(_Bordered):
    """The same with a free W, for comparison: an equilibrium need not exist, nor be found.

    Args: as of `MonotoneMultiTier2d`; the settings' method is none of the splittings, which need a resolvent or a step.
    """

    def __init__(
        self,
        in_channels: int,
        channels: Sequence[int],
        side: int,
        *,
        activation: Activation = relu,
        settings: Splitting = Splitting(method="broyden"),  # noqa: B008
    ):
        operator = FreeMultiTier(channels, side + 2)
        inject = _FirstTier(in_channels, channels, operator.sides)
        super().__init__(inject, operator, activation, settings, operator.sides)


class _FirstTier(BatchLastConv2d):
    """U x + b for the first tier, zero for the others."""

    def __init__(self, in_channels: int, channels: Sequence[int], sides: list[int]):
        super().__init__(in_channels, channels[0], 3, padding=2)
        self._rest = list(zip(channels[1:], sides[1:], strict=True))

    def forward(self, x: Tensor) -> State:
        first = super().forward(x)
        zeros = (first.new_zeros(len(x), channels, side, side) for channels, side in self._rest)
        return first, *(batch_last(tensor) for tensor in zeros)
