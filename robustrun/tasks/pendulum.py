"""The n-link pendulum, simulated, and the state space of random vector fields.

Source: Manek and Kolter (arXiv 2001.06116), whose experiments these are.
"""

import math

import torch
from torch import Tensor

from robustrun.data import DeviceLoader
from robustrun.errors import ConfigError
from robustrun.methods.dynamics import NLinkPendulum, integrator, rollout
from robustrun.numbers import NonNegative, Number, Positive, PositiveInt
from robustrun.registry import tasks
from robustrun.roles import DynamicsSpec, DynamicsTask, Loader, PendulumSpec, Split
from robustrun.runtime import Run
from robustrun.tasks.loading import surroundings


@tasks.register("pendulum")
class Pendulum(DynamicsTask):
    """A damped n-link pendulum: point masses on massless rods, absolute angles and angular velocities.

    Training and test states are uniform in a box, their derivatives exact. Trajectories start in a smaller box
    and follow the classical Runge-Kutta method in float64.

    Args:
        links: n; a state has 2 n coordinates.
        points_per_link: training states are so many times n, and as many test states.
        angles: training angles lie in [-angles, angles], in radians.
        velocities: training angular velocities lie in [-velocities, velocities], in rad/s.
        start_angles, start_velocities: the same for the starts of trajectories.
        dt: seconds between the states of a trajectory.
        masses, lengths: of every link, in kg and m; a null length is 1 / n.
        gravity: m/s^2.
        damping: torque on a link by its angular velocity, N m s.
    """

    spec: PendulumSpec

    def __init__(
        self,
        *,
        links: PositiveInt = 8,
        points_per_link: PositiveInt = 200,
        angles: NonNegative = math.pi,
        velocities: NonNegative = math.pi,
        start_angles: NonNegative = math.pi / 8,
        start_velocities: NonNegative = math.pi / 8,
        dt: Positive = 0.01,
        masses: Positive = 1.0,
        lengths: Positive | None = None,
        gravity: Number = 9.81,
        damping: NonNegative = 0.3,
    ):
        self.system = NLinkPendulum(links, masses=masses, lengths=lengths, gravity=gravity, damping=damping)
        self.points = points_per_link * links
        self.box = _half_widths(links, angles, velocities)
        self.start_box = _half_widths(links, start_angles, start_velocities)
        self.spec = PendulumSpec(
            (2 * links,),
            dt=dt,
            angles=links,
            masses=self.system.masses,
            lengths=self.system.lengths,
            damping=self.system.damping,
            gravity=gravity,
        )

    def load(self, run: Run) -> None:
        self._states = {split: _uniform(self.box, self.points, run, "pendulum", split) for split in ("train", "test")}

    def size(self, split: Split) -> int:
        return len(self._states[split]) if split in self._states else 0

    def loader(self, split: Split, batch_size: int, run: Run, *, train: bool = False, horizon: int = 0) -> Loader:
        states = self._states[split]
        if horizon:
            targets = rollout(integrator(self.system.field, self.spec.dt), states, horizon)[1:].transpose(0, 1)
        else:
            targets = self.system.field(states)
        return DeviceLoader(states.float(), targets.float(), batch_size, **surroundings(run, train))

    def derivative(self, states: Tensor) -> Tensor:
        return self.system.field(states)

    def trajectories(self, count: int, steps: int, run: Run) -> tuple[Tensor, Tensor]:
        starts = _uniform(self.start_box, count, run, "starts").to(run.device)
        with run.progress(steps, "simulating", "step") as progress:
            truth = rollout(progressing(integrator(self.system.field, self.spec.dt), progress), starts, steps)
        return starts, truth


@tasks.register("random_field")
class RandomField(DynamicsTask):
    """A state space without data: what untrained random vector fields do on it is the question.

    Args:
        dimension: of the states.
        box: starts are uniform in [-box, box] in every coordinate.
        dt: seconds between the states of a trajectory.
    """

    def __init__(self, *, dimension: PositiveInt = 2, box: Positive = 4.0, dt: Positive = 0.01):
        self.box = torch.full((dimension,), box, dtype=torch.float64)
        self.spec = DynamicsSpec((dimension,), dt=dt)

    def size(self, split: Split) -> int:
        return 0

    def loader(self, split: Split, batch_size: int, run: Run, *, train: bool = False, horizon: int = 0) -> Loader:
        raise ConfigError("task=random_field has no data to learn from: use trainer=none")

    def trajectories(self, count: int, steps: int, run: Run) -> tuple[Tensor, None]:
        return _uniform(self.box, count, run, "starts").to(run.device), None


def progressing(step, progress):
    """The same map, with a tick of progress (a safe point to stop at) after each application."""

    def advance(x: Tensor) -> Tensor:
        x = step(x)
        progress.advance()
        return x

    return advance


def _half_widths(links: int, angle: float, velocity: float) -> Tensor:
    return torch.tensor([angle] * links + [velocity] * links, dtype=torch.float64)


def _uniform(box: Tensor, count: int, run: Run, *key: str) -> Tensor:
    """Points (count, n), uniform in [-box, box]; drawn on the CPU so that every device sees the same ones."""
    generator = run.generator(*key, device="cpu")
    return box * (2 * torch.rand(count, len(box), generator=generator, dtype=torch.float64) - 1)
