"""Neural ordinary differential equations (arXiv 1806.07366) and augmented ones (arXiv 1904.01681), as classifiers."""

import warnings
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustrun.errors import ConfigError
from robustrun.models.normalize import image_shape
from robustrun.numbers import NonNegativeInt, Positive, PositiveInt
from robustrun.registry import models
from robustrun.roles import ClassificationSpec, ODEClassifier

_ADAPTIVE = ("dopri5", "dopri8", "bosh3", "adaptive_heun")


class _Derivative(nn.Module):
    """dz/dt = conv1x1(relu(conv3x3(relu(conv1x1(z))))); time, if it matters, is one more channel of each."""

    def __init__(self, channels: int, filters: int, time: bool):
        super().__init__()
        more = int(time)
        self.time, self.calls = time, 0
        self.first = nn.Conv2d(channels + more, filters, 1)
        self.middle = nn.Conv2d(filters + more, filters, 3, padding=1)
        self.last = nn.Conv2d(filters + more, channels, 1)

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        self.calls += 1
        z = F.relu(self.first(self._with(t, z)))
        z = F.relu(self.middle(self._with(t, z)))
        return self.last(self._with(t, z))

    def _with(self, t: Tensor, z: Tensor) -> Tensor:
        return torch.cat((t.to(z).expand(len(z), 1, *z.shape[2:]), z), 1) if self.time else z


@models.register("neural_ode")
class NeuralODE(ODEClassifier):
    """z(1) of dz/dt = f(z), z(0) = x, and a linear readout; gradients by the adjoint equation.

    On MNIST 84,395 parameters with 92 filters, 84,816 with 64 and 5 more channels; on CIFAR-10 172,358 with 125 and
    171,799 with 64 and 10 more. Inputs are taken as they are, in [0, 1].

    Args:
        filters: hidden channels of f.
        augment: channels of zeros appended to x (augmented neural ODE).
        time_dependent: whether f sees t.
        method: of the solver; rk4 takes `steps` equal steps, the others choose theirs by `tolerance`.
        tolerance: relative and absolute tolerance of an adaptive solver.
        max_steps: of an adaptive solver, in one pass; more counts as divergence.
        steps: of rk4.

    Raises:
        ConfigError: torchdiffeq is not installed.
        FloatingPointError (in the forward pass): the solver gave up.
    """

    def __init__(
        self,
        spec: ClassificationSpec,
        *,
        filters: PositiveInt = 92,
        augment: NonNegativeInt = 0,
        time_dependent: bool = False,
        method: Literal["dopri5", "dopri8", "bosh3", "adaptive_heun", "rk4"] = "dopri5",
        tolerance: Positive = 1e-3,
        max_steps: PositiveInt = 1000,
        steps: PositiveInt = 5,
    ):
        super().__init__()
        _solver()
        channels, height, width = image_shape(spec)
        self.augment, self.method, self.tolerance = augment, method, tolerance
        self.options = {"max_num_steps": max_steps} if method in _ADAPTIVE else {"step_size": 1 / steps}
        self.derivative = _Derivative(channels + augment, filters, time_dependent)
        self.readout = nn.Linear((channels + augment) * height * width, spec.classes)

    def forward(self, inputs: Tensor) -> Tensor:
        z = F.pad(inputs, (0, 0, 0, 0, 0, self.augment))
        times = torch.tensor([0.0, 1.0], device=z.device, dtype=z.dtype)
        self.derivative.calls = 0
        with torch.autocast(inputs.device.type, enabled=False), warnings.catch_warnings():
            # Fixed-step solvers warn of options that concern only adaptive ones, and the other way round.
            warnings.simplefilter("ignore", UserWarning)
            try:
                z = _solver()(
                    self.derivative,
                    z,
                    times,
                    rtol=self.tolerance,
                    atol=self.tolerance,
                    method=self.method,
                    options=dict(self.options),
                    adjoint_options=dict(self.options),
                )[-1]
            except AssertionError as error:  # a step too small, or too many
                raise FloatingPointError(f"{self.method}: {error}") from error
        self.forward_evaluations = self.derivative.calls
        return self.readout(z.flatten(1))

    @property
    def evaluations(self) -> tuple[int, int]:
        """Of the right-hand side: in the last forward pass, and in the backward pass after it."""
        forward = self.forward_evaluations
        return forward, self.derivative.calls - forward


def _solver():
    try:
        from torchdiffeq import odeint_adjoint
    except ModuleNotFoundError:
        raise ConfigError("model=neural_ode needs torchdiffeq: pip install 'robustrun[ode]'") from None
    return odeint_adjoint
