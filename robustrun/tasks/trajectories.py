"""Recorded trajectories: from CSV files, or from an environment of gymnasium."""

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from robustrun.data import DeviceLoader
from robustrun.errors import ConfigError, DataError
from robustrun.numbers import NonNegativeInt, Positive, PositiveInt, Probability
from robustrun.registry import tasks
from robustrun.roles import DynamicsSpec, DynamicsTask, Loader, Split
from robustrun.runtime import Run
from robustrun.tasks.loading import surroundings


class _Recorded(DynamicsTask):
    """Trajectories at one sampling interval. The last part of each of them, or whole ones, are held out."""

    spec: DynamicsSpec

    def __init__(self, angles: int, held_out: float):
        self.angles, self.held_out = angles, held_out

    def _take(self, trajectories: Sequence[np.ndarray], dt: float, source: str) -> None:
        """Split the trajectories (T_i, n) into training and test ones; several by number, a single one by time."""
        shortest = min((len(t) for t in trajectories), default=0)
        if shortest < 3:
            raise DataError(f"{source}: a trajectory must have at least 3 states, and one has {shortest}")
        dimension = trajectories[0].shape[1]
        if self.angles > dimension:
            raise ConfigError(f"task.angles={self.angles}, but the states of {source} have {dimension} coordinates")
        if len(trajectories) > 1:
            held = min(max(1, round(self.held_out * len(trajectories))), len(trajectories) - 1)
            parts = {"train": trajectories[:-held], "test": trajectories[-held:]}
        else:
            cut = len(trajectories[0]) - max(3, round(self.held_out * len(trajectories[0])))
            if cut < 3:
                raise DataError(f"{source}: {len(trajectories[0])} states are too few to hold some out")
            parts = {"train": [trajectories[0][:cut]], "test": [trajectories[0][cut:]]}
        self._parts = {split: [torch.as_tensor(t, dtype=torch.float64) for t in part] for split, part in parts.items()}
        self.spec = DynamicsSpec((dimension,), dt=dt, angles=self.angles)

    def size(self, split: Split) -> int:
        return sum(len(t) for t in self._parts[split]) if split in self._parts else 0

    def loader(self, split: Split, batch_size: int, run: Run, *, train: bool = False, horizon: int = 0) -> Loader:
        parts = self._parts[split]
        if horizon:
            # Windows of 1 + horizon successive states, none across two trajectories.
            windows = [t.unfold(0, horizon + 1, 1).transpose(1, 2) for t in parts if len(t) > horizon]
            if not windows:
                raise ConfigError(
                    f"no trajectory of the split {split} has more than {horizon} states: lower the horizon"
                )
            joined = torch.cat(windows)
            states, targets = joined[:, 0], joined[:, 1:]
        else:
            states = torch.cat(parts)
            targets = torch.cat([torch.gradient(t, spacing=self.spec.dt, dim=0, edge_order=2)[0] for t in parts])
        return DeviceLoader(states.float(), targets.float(), batch_size, **surroundings(run, train))

    def trajectories(self, count: int, steps: int, run: Run) -> tuple[Tensor, Tensor]:
        parts = self._parts["test"]
        # Starts spread evenly over the held-out states; the truth lasts as long as the shortest remainder.
        length = min(steps, max(1, min(len(t) for t in parts) // 2))
        starts = torch.cat([t.unfold(0, length + 1, 1).transpose(1, 2) for t in parts])
        chosen = starts[np.linspace(0, len(starts) - 1, min(count, len(starts))).round().astype(int)]
        return chosen[:, 0].to(run.device), chosen.transpose(0, 1).to(run.device)


@tasks.register("recorded")
class Recorded(_Recorded):
    """Trajectories from CSV files with a header line, one state a line.

    Args:
        files: a CSV file, or a folder of them (each file then starts a new trajectory).
        states: the columns that make up a state, in order; all but `time` and `trajectory` if empty.
        time: the column of the time in seconds, equally spaced within a trajectory; null if there is none.
        trajectory: the column that numbers the trajectories; null if a file is one trajectory.
        dt: seconds between two lines, needed where there is no `time` column.
        angles: the first so many coordinates are angles in radians.
        held_out: the share held out for testing.
    """

    def __init__(
        self,
        *,
        files: str,
        states: list[str] = [],  # noqa: B006
        time: str | None = None,
        trajectory: str | None = None,
        dt: Positive | None = None,
        angles: NonNegativeInt = 0,
        held_out: Probability = 0.2,
    ):
        super().__init__(angles, held_out)
        if time is None and dt is None:
            raise ConfigError("recorded trajectories need task.dt (seconds between lines) or task.time (a column)")
        self.files = Path(files).expanduser()
        self.columns, self.time, self.trajectory, self.dt = states, time, trajectory, dt

    def load(self, run: Run) -> None:
        paths = sorted(self.files.glob("*.csv")) if self.files.is_dir() else [self.files]
        if not paths or not paths[0].is_file():
            raise DataError(f"task.files={self.files}: there is no such CSV file, or none in that folder")
        found, steps = [], []
        for path in paths:
            for states, times in self._read(path):
                found.append(states)
                if times is not None:
                    steps.append(self._step(times, path))
        if len({states.shape[1] for states in found}) > 1:
            raise DataError(f"the files in {self.files} differ in their columns: name them in task.states")
        dt = self.dt
        if steps:
            dt = float(np.median(steps))
            if not np.allclose(steps, dt, rtol=1e-3):
                raise DataError(f"{self.files}: the trajectories differ in their sampling interval")
        self._take(found, dt, str(self.files))

    def _read(self, path: Path) -> list[tuple[np.ndarray, np.ndarray | None]]:
        """The trajectories of a file with their times."""
        try:
            with open(path, newline="", encoding="utf-8-sig") as file:
                lines = list(csv.DictReader(file))
        except (UnicodeDecodeError, csv.Error) as error:
            raise DataError(f"{path} is not a CSV file: {error}") from None
        if not lines:
            raise DataError(f"{path} holds no states")
        header = [name for name in lines[0] if name is not None]
        columns = self.columns or [name for name in header if name not in (self.time, self.trajectory)]
        for name in [*columns, *filter(None, [self.time, self.trajectory])]:
            if name not in header:
                raise ConfigError(f"{path} has no column '{name}' (it has: {', '.join(header)})")
        states = np.array([[_number(line, name, path, i) for name in columns] for i, line in enumerate(lines)])
        times = self.time and np.array([_number(line, self.time, path, i) for i, line in enumerate(lines)])
        keys = [line[self.trajectory] for line in lines] if self.trajectory else [""] * len(lines)
        cuts = [i for i in range(1, len(keys)) if keys[i] != keys[i - 1]]
        pieces = np.split(np.arange(len(keys)), cuts)
        return [(states[piece], times[piece] if self.time else None) for piece in pieces]

    @staticmethod
    def _step(times: np.ndarray, path: Path) -> float:
        steps = np.diff(times)
        if len(steps) < 1 or steps.min() <= 0 or not np.allclose(steps, steps.mean(), rtol=1e-2):
            raise DataError(f"{path}: the times of a trajectory must rise in equal steps")
        return float(steps.mean())


def _number(line: dict, name: str, path: Path, index: int) -> float:
    try:
        value = float(line[name])
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"{path}, line {index + 2}: '{line[name]}' in column '{name}' is not a finite number")
    return value


@tasks.register("gymnasium")
class GymnasiumTrajectories(_Recorded):
    """Trajectories of an environment's observations, recorded by stepping it.

    Args:
        environment: its gymnasium id; observations must be vectors.
        episodes, steps: how many are recorded, and at most how long each is.
        dt: seconds a step.
        action: what is done: nothing ("zero", an autonomous system), or a random action a step.
        angles: the first so many coordinates are angles in radians.
        held_out: the share of episodes held out for testing.
    """

    def __init__(
        self,
        *,
        environment: str,
        episodes: PositiveInt = 50,
        steps: PositiveInt = 200,
        dt: Positive = 0.05,
        action: Literal["zero", "random"] = "zero",
        angles: NonNegativeInt = 0,
        held_out: Probability = 0.2,
    ):
        super().__init__(angles, held_out)
        self.environment, self.episodes, self.steps, self.dt, self.action = environment, episodes, steps, dt, action

    def load(self, run: Run) -> None:
        import gymnasium

        try:
            environment = gymnasium.make(self.environment, max_episode_steps=self.steps + 1)
        except gymnasium.error.Error as error:
            raise ConfigError(f"task.environment={self.environment}: {' '.join(str(error).split())}") from None
        with environment:
            space = environment.observation_space
            if not isinstance(space, gymnasium.spaces.Box) or len(space.shape) != 1:
                raise ConfigError(f"task.environment={self.environment} observes {space}, which is not a vector")
            environment.action_space.seed(run.seed_for("actions") % 2**31)
            episodes = [self._episode(environment, run.seed_for("episode", k) % 2**31) for k in range(self.episodes)]
        long_enough = [episode for episode in episodes if len(episode) >= 3]
        self._take(long_enough, self.dt, self.environment)

    def _episode(self, environment, seed: int) -> np.ndarray:
        observation, _ = environment.reset(seed=seed)
        states, ended = [observation], False
        while not ended and len(states) <= self.steps:
            action = environment.action_space.sample()
            if self.action == "zero":
                action = np.zeros_like(action)
            observation, _, terminated, truncated, _ = environment.step(action)
            states.append(observation)
            ended = terminated or truncated
        return np.asarray(states, dtype=np.float64)
