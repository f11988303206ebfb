"""A CSV file of sensor readings, read with suspicion: what could silently spoil a guarantee is refused or said."""

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, model_validator

from robustrun.errors import ConfigError, DataError
from robustrun.numbers import NonNegative, Number, Positive, Probability

_EXAMPLE = "'task.columns=[{column: p_rail, unit: bar, min: 200, max: 2000, tolerance: 0.01}]'"
_SPLITS = ("train", "valid", "test")
# more readings than this outside [min, max] look like a wrong unit rather than like outliers
_OUTSIDE = 0.05


class Column(BaseModel):
    """A sensor: its column, unit, range and tolerance.

    Its tolerance is the sum of `tolerance` (a fraction of max - min), `tolerance_absolute` (in the unit) and
    `tolerance_relative` (a fraction of the reading); at least one must be given.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    column: str
    unit: str = ""
    min: Number
    max: Number
    tolerance: NonNegative | None = None
    tolerance_absolute: NonNegative | None = None
    tolerance_relative: NonNegative = 0.0

    @model_validator(mode="after")
    def _makes_sense(self) -> "Column":
        if self.min >= self.max:
            raise ValueError(f"the sensor '{self.column}' has min {self.min:g}, which is not below max {self.max:g}")
        if self.tolerance is self.tolerance_absolute is None and "tolerance_relative" not in self.model_fields_set:
            raise ValueError(
                f"the sensor '{self.column}' has no tolerance: give tolerance, tolerance_absolute or tolerance_relative"
            )
        return self

    @property
    def label(self) -> str:
        """The column with its unit, for people."""
        return f"{self.column} [{self.unit}]" if self.unit else self.column

    @property
    def fixed(self) -> float:
        """The part of the tolerance that does not depend on the reading, scaled by the range."""
        return (self.tolerance or 0.0) + (self.tolerance_absolute or 0.0) / (self.max - self.min)


class Target(BaseModel):
    """The quantity: its column, unit, greatest value, and the fraction of it below which rows are left out."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    column: str
    unit: str = ""
    max: Positive
    min_fraction: Probability = 0.05


@dataclass(frozen=True)
class Table:
    """What is asked of a file; see `sensors.SensorCSV`."""

    path: str
    target: Target
    columns: list[Column]
    split_column: str | None
    fractions: tuple[float, float, float]
    group: str | None
    split_seed: int

    def check(self) -> None:
        """Refuse what no file could satisfy.

        Raises:
            ConfigError: a column is named twice, or the fractions do not add up to one.
        """
        names = [c.column for c in self.columns]
        for name in names:
            if names.count(name) > 1:
                raise ConfigError(f"task.columns names the column '{name}' twice")
        if self.target.column in names:
            raise ConfigError(f"the target '{self.target.column}' is among the sensors too")
        if abs(sum(self.fractions) - 1) > 1e-9:
            raise ConfigError(f"task.fractions {list(self.fractions)} do not add up to 1")


def read_table(table: Table) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], list[str]]:
    """Scaled inputs (n, sensors) and targets (n,) of each split; and what was dropped, in sentences.

    Raises:
        ConfigError: no sensors are named.
        DataError: the file is missing or malformed, or its contents cannot be what the configuration says.
    """
    if not table.columns:
        raise ConfigError("task.columns is empty: name the sensors, such as " + _EXAMPLE)
    header, rows = _rows(table.path)
    needed = [c.column for c in table.columns] + [table.target.column]
    labels = [name for name in (table.split_column, table.group) if name]
    for name in (*needed, *labels):
        if name not in header:
            raise DataError(f"{table.path} has no column '{name}'; it has {', '.join(header)}")
    raw = np.array([[_number(table.path, i, name, row[header.index(name)]) for name in needed] for i, row in rows])
    texts = {name: np.array([row[header.index(name)].strip() for _, row in rows]) for name in labels}
    notes: list[str] = []

    def keep(mask: np.ndarray, why: str) -> None:
        nonlocal raw, texts
        if not mask.all():
            notes.append(f"{(~mask).sum()} of {len(mask)} rows dropped: {why}")
            raw, texts = raw[mask], {name: values[mask] for name, values in texts.items()}
        if not len(raw):
            raise DataError(f"{table.path} has no rows left: {notes[-1] if notes else 'it has none'}")

    keep(~np.isnan(raw).any(1), "a value is missing")
    first = np.zeros(len(raw), dtype=bool)
    first[np.unique(raw, axis=0, return_index=True)[1]] = True
    keep(first, "the same readings and quantity as an earlier row")
    target = raw[:, -1] / table.target.max
    _plausible_target(table, target)
    low = table.target.min_fraction
    keep((target >= low) & (target <= 1), f"the quantity is outside [{low * table.target.max:g}, {table.target.max:g}]")
    notes += _check_columns(table, raw)
    least, most = (np.array([getattr(c, end) for c in table.columns]) for end in ("min", "max"))
    inputs, targets = (raw[:, :-1] - least) / (most - least), raw[:, -1] / table.target.max
    found = {}
    for split, mask in _split(table, texts, len(raw)).items():
        if not mask.any():
            raise DataError(f"{table.path} leaves no rows for the split '{split}'")
        found[split] = inputs[mask], targets[mask]
    return found, notes


def _rows(path: str) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The header, and the rows with their line numbers."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"there is no file {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as UTF-8 text ({error})") from None
    reader = csv.reader(text.splitlines())
    header = [name.strip() for name in next(reader, [])]
    if not header:
        raise DataError(f"{path} is empty")
    if len(header) == 1 and any(mark in header[0] for mark in ";\t"):
        raise DataError(f"{path} separates its columns by something else than commas: save it as comma-separated")
    for name in header:
        if header.count(name) > 1:
            raise DataError(f"{path} has two columns named '{name}'")
    rows = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    for line, row in rows:
        if len(row) != len(header):
            raise DataError(f"{path}, line {line}: {len(row)} cells under {len(header)} column names")
    if not rows:
        raise DataError(f"{path} has a header but no rows")
    return header, rows


def _number(path: str, line: int, column: str, cell: str) -> float:
    cell = cell.strip()
    if not cell or cell.lower() == "nan":
        return np.nan
    try:
        value = float(cell)
    except ValueError:
        comma = " (decimal commas? use points)" if "," in cell else ""
        raise DataError(f"{path}, line {line}, column '{column}': {cell!r} is not a number{comma}") from None
    if not np.isfinite(value):
        raise DataError(f"{path}, line {line}, column '{column}': {cell!r} is not a finite number")
    return value


def _plausible_target(table: Table, target: np.ndarray) -> None:
    """A target in another unit than its `max` shows as fractions far from [0, 1]."""
    if np.median(target) > 1:
        raise DataError(
            f"{table.path}: half of the column '{table.target.column}' lies above target.max = {table.target.max:g} "
            f"{table.target.unit}: is it in another unit?"
        )
    if target.max() < table.target.min_fraction:
        raise DataError(
            f"{table.path}: all of the column '{table.target.column}' lies below {table.target.min_fraction:g} of "
            f"target.max = {table.target.max:g} {table.target.unit}: is it in another unit?"
        )


def _check_columns(table: Table, raw: np.ndarray) -> list[str]:
    notes = []
    for column, values in zip(table.columns, raw.T, strict=False):
        if np.ptp(values) == 0:
            raise DataError(
                f"{table.path}: the column '{column.column}' is {values[0]:g} in every row and tells nothing: "
                "leave it out of task.columns"
            )
        outside = ((values < column.min) | (values > column.max)).mean()
        if outside > _OUTSIDE:
            raise DataError(
                f"{table.path}: {outside:.0%} of the column '{column.column}' "
                f"({values.min():g} to {values.max():g}) lies "
                f"outside its range [{column.min:g}, {column.max:g}] {column.unit}: is it in another unit?"
            )
        if outside:
            notes.append(f"{outside:.1%} of the column '{column.column}' lies outside its range")
    return notes


def _split(table: Table, texts: dict[str, np.ndarray], n: int) -> dict[str, np.ndarray]:
    if table.split_column:
        names = texts[table.split_column]
        unknown = sorted(set(names) - set(_SPLITS))
        if unknown:
            raise DataError(
                f"{table.path}: the column '{table.split_column}' has '{unknown[0]}', not one of {', '.join(_SPLITS)}"
            )
        if table.group:
            for value in set(texts[table.group]):
                if len(set(names[texts[table.group] == value])) > 1:
                    raise DataError(f"{table.path}: '{value}' of the column '{table.group}' is in two splits")
        return {split: names == split for split in _SPLITS}
    groups = texts[table.group] if table.group else np.arange(n)
    values = np.random.default_rng(table.split_seed).permutation(np.unique(groups))
    ends = np.rint(np.cumsum(table.fractions) * len(values)).astype(int)
    parts = np.split(values, ends[:2])
    return {split: np.isin(groups, part) for split, part in zip(_SPLITS, parts, strict=True)}
