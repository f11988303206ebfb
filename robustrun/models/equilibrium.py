"""Monotone operator equilibrium networks (arXiv 2006.08591), and one without the constraint beside them."""

from dataclasses import replace
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from robustrun.methods.equilibrium import (
    ACTIVATIONS,
    FreeMatrix,
    FreeMultiTier2d,
    MonotoneConv2d,
    MonotoneLayer,
    MonotoneLinear,
    MonotoneMultiTier2d,
    Splitting,
    tune_alpha,
)
from robustrun.methods.equilibrium.grid import Torus, average_pool, transfer
from robustrun.models.normalize import Normalize, image_shape, normalization
from robustrun.numbers import Number, Positive, PositiveInt
from robustrun.registry import models
from robustrun.roles import ClassificationSpec, EquilibriumClassifier

Method = Literal["peaceman_rachford", "forward_backward", "picard", "anderson", "broyden"]
ActivationName = Literal["relu", "tanh", "sigmoid"]


class Solver(BaseModel):
    """How the equilibrium is solved for, forwards and backwards; see `methods.equilibrium.Splitting`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: Method = "peaceman_rachford"
    alpha: Positive = 1.0  # step length to begin with; training may tune it
    rtol: Positive = 1e-2  # largest relative change of an iteration at which it stops
    max_iterations: PositiveInt = 300
    per_example: bool = False  # each example stops on its own, or one norm over the batch decides

    def build(self) -> Splitting:
        """The splitting of these settings."""
        return Splitting(**self.model_dump())


class _Equilibrium(EquilibriumClassifier):
    """Normalisation, layer and readout. The step length is part of the state: a tuned one is kept."""

    def __init__(self, spec: ClassificationSpec, layer: MonotoneLayer, features: int, mean: float, std: float):
        super().__init__()
        given = bool(spec.mean or spec.std)
        self.normalize = normalization(spec) if given else Normalize([mean], [std], len(spec.input_shape))
        self.layer = layer
        self.readout = nn.Linear(features, spec.classes)

    def forward(self, inputs: Tensor) -> Tensor:
        # In half precision neither the factorisation nor the stopping rule would mean anything.
        with torch.autocast(inputs.device.type, enabled=False):
            return self.readout(self.pool(self.layer(self.embed(inputs))))

    def tune(self, inputs: Tensor) -> None:
        if self.layer.settings.method in ("peaceman_rachford", "forward_backward"):  # the others have no step length
            with torch.no_grad(), torch.autocast(inputs.device.type, enabled=False):
                tune_alpha(self.layer, self.embed(inputs))

    def injection_norm(self) -> float:
        scale = float(self.normalize.scale.double().abs().max())
        return scale * self._norm_of_u() * (1 + 1e-9)  # rounding of the decomposition

    def _norm_of_u(self) -> float:
        return float(torch.linalg.matrix_norm(self.layer.injection.weight.detach().double(), 2))

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self.layer.settings.alpha, dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        self.layer.settings = replace(self.layer.settings, alpha=float(state))


class _FullyConnected(_Equilibrium):
    def embed(self, inputs: Tensor) -> Tensor:
        return self.normalize(inputs).flatten(1)


@models.register("mon_fc")
class MonotoneFC(_FullyConnected):
    """A fully connected monotone equilibrium layer and a linear readout; 84,313 parameters on MNIST.

    Args:
        features: size of z.
        margin: m, how strongly monotone I - W is.
        activation: of the layer.
        solver: how z is found.
        mean, std: normalisation of inputs where the task gives none.
    """

    def __init__(
        self,
        spec: ClassificationSpec,
        *,
        features: PositiveInt = 87,
        margin: Positive = 1.0,
        activation: ActivationName = "relu",
        solver: Solver = Solver(),  # noqa: B008
        mean: Number = 0.1307,
        std: Positive = 0.3081,
    ):
        inputs = torch.Size(spec.input_shape).numel()
        options = {"margin": margin, "activation": ACTIVATIONS[activation], "settings": solver.build()}
        super().__init__(spec, MonotoneLinear(inputs, features, **options), features, mean, std)


@models.register("deq_fc")
class UnconstrainedFC(_FullyConnected):
    """The same with a free W, for comparison: an equilibrium need not exist, nor be found.

    Args: as of `mon_fc`.
    """

    def __init__(
        self,
        spec: ClassificationSpec,
        *,
        features: PositiveInt = 87,
        activation: ActivationName = "relu",
        solver: Solver = Solver(method="picard"),  # noqa: B008
        mean: Number = 0.1307,
        std: Positive = 0.3081,
    ):
        injection = nn.Linear(torch.Size(spec.input_shape).numel(), features)
        layer = MonotoneLayer(injection, FreeMatrix(features), ACTIVATIONS[activation], solver.build())
        super().__init__(spec, layer, features, mean, std)


class _Images(_Equilibrium):
    """On square images; U is a convolution with a border."""

    def embed(self, inputs: Tensor) -> Tensor:
        return self.normalize(inputs)

    @staticmethod
    def square(spec: ClassificationSpec) -> tuple[int, int]:
        """(channels, side) of the inputs."""
        channels, side, columns = image_shape(spec)
        if side != columns:
            raise ValueError(f"this model takes square images, not {side} x {columns}")
        return channels, side

    def _norm_of_u(self) -> float:
        # A full convolution is a circular one on the larger grid, restricted to images with a border of zeros.
        kernel, side = self.layer.injection.weight.detach().double(), len(self.layer.mask_0)
        spectrum = transfer(kernel, Torus(side, kernel).points(), side)
        return float(torch.linalg.matrix_norm(spectrum, 2).max())


@models.register("mon_conv")
class MonotoneConv(_Images):
    """A convolutional monotone equilibrium layer, average pooling over 4 x 4 and a linear readout.

    84,460 parameters on MNIST with 56 channels, 172,218 on CIFAR-10 with 81, 853,612 with 200.

    Args:
        channels: of z, which is one pixel larger than the image on each side.
        others: as of `mon_fc`.

    Raises:
        ValueError: the inputs are no square images.
    """

    pool_norm = 0.25  # an average of 16: sqrt(16) / 16

    def __init__(
        self,
        spec: ClassificationSpec,
        *,
        channels: PositiveInt = 56,
        margin: Positive = 1.0,
        activation: ActivationName = "relu",
        solver: Solver = Solver(),  # noqa: B008
        mean: Number = 0.1307,
        std: Positive = 0.3081,
    ):
        given, side = self.square(spec)
        options = {"margin": margin, "activation": ACTIVATIONS[activation], "settings": solver.build()}
        features = channels * ((side + 2) // 4) ** 2
        super().__init__(spec, MonotoneConv2d(given, channels, side, **options), features, mean, std)

    def pool(self, z: Tensor) -> Tensor:
        return average_pool(z, 4).flatten(1)


class _MultiTier(_Images):
    """The readout takes all of the last tier."""

    def pool(self, z: Tensor) -> Tensor:
        return z.flatten(1)


@models.register("mon_multi")
class MonotoneMultiTier(_MultiTier):
    """A monotone equilibrium layer on several resolutions; a linear readout takes all of the last one.

    81,394 parameters on MNIST with (16, 32, 32) channels, 170,194 on CIFAR-10 with (16, 32, 60), 1,014,546 with
    (64, 128, 128).

    Args:
        channels: of each tier, from fine to coarse; the side of the image must halve that many times, less one.
        others: as of `mon_fc`.

    Raises:
        ValueError: the inputs are no square images, or their side does not halve.
    """

    def __init__(
        self,
        spec: ClassificationSpec,
        *,
        channels: tuple[PositiveInt, ...] = (16, 32, 32),
        margin: Positive = 1.0,
        activation: ActivationName = "relu",
        solver: Solver = Solver(),  # noqa: B008
        mean: Number = 0.1307,
        std: Positive = 0.3081,
    ):
        given, side = self.square(spec)
        options = {"margin": margin, "activation": ACTIVATIONS[activation], "settings": solver.build()}
        layer = MonotoneMultiTier2d(given, channels, side, **options)
        features = channels[-1] * layer.operator.sides[-1] ** 2
        super().__init__(spec, layer, features, mean, std)


@models.register("deq_multi")
class UnconstrainedMultiTier(_MultiTier):
    """The same with a free W, for comparison: an equilibrium need not exist, nor be found.

    Args: as of `mon_multi`.

    Raises:
        ValueError: as of `mon_multi`, or the solver's method is a splitting, which needs a monotone W.
    """

    def __init__(
        self,
        spec: ClassificationSpec,
        *,
        channels: tuple[PositiveInt, ...] = (16, 32, 32),
        activation: ActivationName = "relu",
        solver: Solver = Solver(method="broyden"),  # noqa: B008
        mean: Number = 0.1307,
        std: Positive = 0.3081,
    ):
        if solver.method in ("peaceman_rachford", "forward_backward"):
            raise ValueError(f"a free W is solved for by picard, anderson or broyden, not by {solver.method}")
        given, side = self.square(spec)
        options = {"activation": ACTIVATIONS[activation], "settings": solver.build()}
        layer = FreeMultiTier2d(given, channels, side, **options)
        features = channels[-1] * layer.operator.sides[-1] ** 2
        super().__init__(spec, layer, features, mean, std)
