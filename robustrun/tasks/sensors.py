"""Virtual sensors: a quantity from sensor readings with tolerances, simulated, public or anyone's own.

Whatever the source, inputs are readings scaled by their sensors' ranges and targets are fractions of the greatest
quantity, so that tolerances, errors and guarantees mean the same everywhere.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from robustrun.data import DeviceLoader, data_root
from robustrun.numbers import Positive, PositiveInt, Probability
from robustrun.registry import tasks
from robustrun.roles import Loader, RegressionSpec, SensorTask, Split
from robustrun.runtime import Run
from robustrun.tasks import injector_physics as physics
from robustrun.tasks.loading import surroundings
from robustrun.tasks.sensor_table import Column, Table, Target, read_table


@dataclass(frozen=True)
class Readings:
    """Scaled readings (n, sensors) and targets (n,) of one split, float64."""

    inputs: np.ndarray
    targets: np.ndarray


class Sensors(SensorTask):
    """Splits of readings on the device; a subclass says where they come from."""

    _parts: dict[str, tuple[Tensor, Tensor]] | None = None

    def __init__(self, sensors: Sequence[str], quantity: str, maximum: float):
        self.sensors, self.quantity, self.maximum = tuple(sensors), quantity, maximum
        self.spec = RegressionSpec((len(sensors),), outputs=1)

    def read(self, run: Run) -> dict[str, Readings]:
        """The splits "train", "valid" and "test"."""
        raise NotImplementedError

    def fixed_tolerance(self) -> np.ndarray:
        """(sensors,) tolerances that do not depend on the reading, in scaled units."""
        raise NotImplementedError

    def load(self, run: Run) -> None:
        if self._parts is None:
            self._parts = {
                split: (
                    torch.as_tensor(part.inputs, dtype=torch.float32, device=run.device),
                    torch.as_tensor(part.targets, dtype=torch.float32, device=run.device).unsqueeze(1),
                )
                for split, part in self.read(run).items()
            }

    def size(self, split: Split) -> int:
        return len(self._parts[split][0])

    def loader(
        self, split: Split, batch_size: int, run: Run, *, train: bool = False, indices: Sequence[int] | None = None
    ) -> Loader:
        return DeviceLoader(*self._parts[split], batch_size, indices=indices, **surroundings(run, train))

    def tolerance(self, inputs: Tensor) -> Tensor:
        return torch.as_tensor(self.fixed_tolerance(), dtype=inputs.dtype, device=inputs.device)


_TRACE_TIMES = [0.25 + 0.2 * j for j in range(physics.TRACE)]
# name, least and greatest reading, tolerance as a fraction of the range
_INJECTOR = [
    ("rail pressure [bar]", 200, 2000, 0.010),
    ("energising time [ms]", 0.15, 1.8, 0.003),
    ("fuel temperature [C]", 0, 110, 0.020),
    ("speed [rpm]", 500, 4500, 0.005),
    ("cylinder pressure [bar]", 20, 130, 0.020),
    *((f"inlet pressure at {t:.2f} ms [bar]", -300, 350, 0.030) for t in _TRACE_TIMES),
]


@tasks.register("injector")
class Injector(Sensors):
    """Fuel quantity of a simulated diesel injector from 21 sensors (see `injector_physics`).

    Quantities below 5 % of the maximum of 90 mm^3 are left out, as are those above it. Readings carry random noise
    of a third of the tolerance (one standard deviation). The injector's own state (hole area, needle speed, delay)
    shows in the pressure trace alone.

    Args:
        train, valid, test: shots drawn for each split.
        coked: mean hole area of the test set's injectors; 1 as in training, below 1 a coked nozzle.
    """

    def __init__(
        self,
        *,
        train: PositiveInt = 10_000,
        valid: PositiveInt = 1_500,
        test: PositiveInt = 1_500,
        coked: Positive = 1.0,
    ):
        super().__init__([name for name, *_ in _INJECTOR], "injected quantity [mm3]", 90.0)
        self._draws = {"train": (train, 1, 1.0), "test": (test, 2, coked), "valid": (valid, 3, 1.0)}

    def fixed_tolerance(self) -> np.ndarray:
        return np.array([tolerance for *_, tolerance in _INJECTOR])

    def read(self, run: Run) -> dict[str, Readings]:
        return {split: _injector_readings(*draw) for split, draw in self._draws.items()}


def _injector_readings(n: int, seed: int, area_mean: float) -> Readings:
    """Simulated once for each (n, seed, area) and version of the simulator, then kept in the data cache."""
    source = hashlib.sha256(Path(physics.__file__).read_bytes()).hexdigest()[:12]
    cache = data_root() / "injector" / f"{source}-{n}-{seed}-{area_mean:g}.npz"
    cache.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{cache}.lock"):
        if not cache.exists():
            shots = physics.sample(n, seed, area_mean=area_mean)
            # in chunks that stay in cache
            chunks = [physics.Shots(*(v[i : i + 5000] for v in shots)) for i in range(0, n, 5000)]
            found = [physics.simulate(chunk) for chunk in chunks]
            partial = cache.with_suffix(".part.npz")
            quantity, trace = (np.concatenate(part) for part in zip(*found, strict=True))
            np.savez(partial, raw=np.column_stack([*shots[:5], trace]), quantity=quantity)
            partial.replace(cache)
        with np.load(cache) as kept:
            raw, quantity = kept["raw"], kept["quantity"]
    low, high, tolerance = (np.array(v, dtype=float) for v in zip(*(row[1:] for row in _INJECTOR), strict=True))
    noise = np.clip(np.random.default_rng(seed + 1000).standard_normal(raw.shape), -3, 3)
    inputs = (raw - low) / (high - low) + tolerance / 3 * noise
    targets = quantity / 90.0
    keep = (targets >= 0.05) & (targets <= 1)
    return Readings(inputs[keep], targets[keep])


@tasks.register("sensor_csv")
class SensorCSV(Sensors):
    """Anyone's table of readings: a CSV file with a header row.

    Args:
        path: the file; UTF-8, decimal points, an empty cell or "nan" is missing (its row is dropped and counted).
        target: the quantity's column, its unit, its greatest value, and the least fraction that counts.
        columns: the sensors: column, unit, range, and tolerance (see `sensor_table.Column`).
        split_column: a column with train, valid and test in it; without it, rows are split by `fractions`.
        fractions: of rows (or of groups) for training, validation and testing.
        group: a column, such as an injector's number, whose values never fall into two splits.
        split_seed: of the random split; not the job's seed, so that jobs share their test set.
    """

    def __init__(
        self,
        *,
        path: str,
        target: Target = Target(column="quantity", max=1.0),  # noqa: B008
        columns: list[Column] = [],  # noqa: B006
        split_column: str | None = None,
        fractions: tuple[Probability, Probability, Probability] = (0.8, 0.1, 0.1),
        group: str | None = None,
        split_seed: int = 0,
    ):
        self._table = Table(path, target, columns, split_column, fractions, group, split_seed)
        self._table.check()
        super().__init__([c.label for c in columns], f"{target.column} [{target.unit}]", target.max)

    def read(self, run: Run) -> dict[str, Readings]:
        found, notes = read_table(self._table)
        for note in notes:
            run.logger.info("%s: %s", self._table.path, note)
        return {split: Readings(*part) for split, part in found.items()}

    def fixed_tolerance(self) -> np.ndarray:
        return np.array([column.fixed for column in self._table.columns])

    def tolerance(self, inputs: Tensor) -> Tensor:
        fixed = super().tolerance(inputs)
        relative = [c.tolerance_relative for c in self._table.columns]
        if not any(relative):
            return fixed
        # a fraction of the reading itself: |x (max - min) + min| in scaled units
        offset = inputs.new_tensor([c.min / (c.max - c.min) for c in self._table.columns])
        return fixed + inputs.new_tensor(relative) * (inputs + offset).abs()


@tasks.register("sensor_public")
class SensorPublic(Sensors):
    """A public regression set that scikit-learn ships: diabetes progression a year on, from 10 measurements.

    Measurements are scaled to [0, 1] and the target is divided by its greatest value; a fifth of the rows each is
    kept for validation and for testing.

    Args:
        dataset: which one.
        tolerance: of every measurement, as a fraction of its range.
    """

    def __init__(self, *, dataset: Literal["diabetes"] = "diabetes", tolerance: Probability = 0.02):
        names = ("age", "sex", "bmi", "blood pressure", *(f"serum {i}" for i in range(1, 7)))
        super().__init__(names, "disease progression", 346.0)
        self._tolerance = tolerance

    def fixed_tolerance(self) -> np.ndarray:
        return np.full(len(self.sensors), self._tolerance)

    def read(self, run: Run) -> dict[str, Readings]:
        from sklearn.datasets import load_diabetes

        inputs, targets = load_diabetes(return_X_y=True)
        inputs = (inputs - inputs.min(0)) / (inputs.max(0) - inputs.min(0))
        order = np.random.RandomState(0).permutation(len(targets))
        cuts = np.split(order, [round(0.6 * len(order)), round(0.8 * len(order))])
        return {
            split: Readings(inputs[rows], targets[rows] / self.maximum)
            for split, rows in zip(("train", "valid", "test"), cuts, strict=True)
        }
