"""`experiments/<paper>/tables.yaml`: a paper's tables and figures, row by row, as jobs of ours beside its numbers."""

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from robustrun.errors import ConfigError
from robustrun.paths import experiments_dir
from robustrun.registry import nearest

_SCALES = {"%": 100.0, "min": 1 / 60, "h": 1 / 3600}  # result.json has fractions and seconds


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True)


class Column(_Strict):
    """A metric of result.json (`timings.x` and `counts.x` too) and how it is shown."""

    heading: str
    unit: str = ""
    better: Literal["higher", "lower"] | None = None
    tolerance: Annotated[float, Field(gt=0)] | None = None  # in the unit shown; none: not judged

    def shown(self, value: float) -> float:
        """A value of result.json in the unit of the column."""
        return value * _SCALES.get(self.unit, 1.0)

    @property
    def title(self) -> str:
        """The column's heading, with its unit."""
        return f"{self.heading} ({self.unit})" if self.unit and self.unit not in self.heading.split() else self.heading


def _paper_value(value: Any) -> Any:
    if value == "?" or value is None:
        return (None, None)
    return tuple(value) if isinstance(value, list) else (value, None)


# Mean and standard deviation as printed, in the unit shown: 46.06, [86.21, 0.75], or "?" where unknown.
PaperValue = Annotated[tuple[float | None, float | None], BeforeValidator(_paper_value)]


class Row(_Strict):
    """One line of a table: the overrides of its job, the seeds, the paper's values."""

    label: str
    overrides: Annotated[tuple[str, ...], Field(min_length=1)]
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = (0,)
    paper: dict[str, PaperValue] = {}
    note: str = ""
    x: float | None = None  # where the row lies in the table's figure
    series: str = ""  # which of the figure's lines it belongs to

    @property
    def exp(self) -> str:
        """The experiment that the row runs."""
        return next((o.partition("=")[2] for o in self.overrides if o.lstrip("+").startswith("exp=")), "adhoc")


class Axes(_Strict):
    """A table that is a figure in the paper: its columns against the rows' `x`."""

    xlabel: str
    ylabel: str = ""
    xscale: Literal["linear", "log"] = "linear"


class Table(_Strict):
    """A table or figure of a paper."""

    caption: str
    source: str
    columns: Annotated[dict[str, Column], Field(min_length=1)]
    rows: Annotated[dict[str, Row], Field(min_length=1)]
    figure: Axes | None = None

    @model_validator(mode="after")
    def _coherent(self) -> "Table":
        for name, row in self.rows.items():
            for metric in row.paper:
                if metric not in self.columns:
                    hint = nearest(metric, self.columns)
                    raise ValueError(f"rows.{name}.paper has a value for '{metric}', which is no column{hint}")
            if any(o.startswith("seed=") for o in row.overrides):
                raise ValueError(f"rows.{name}.overrides: a row's seeds belong in seeds: [...]")
            if len(set(row.seeds)) < len(row.seeds):
                raise ValueError(f"rows.{name}.seeds has a seed twice")
            if self.figure is not None and row.x is None:
                raise ValueError(f"rows.{name} has no x, but the table is a figure")
        return self


class TableFile(_Strict):
    """One tables.yaml: the tables of a paper."""

    paper: str
    tables: dict[str, Table]


class _Loader(yaml.SafeLoader):
    """YAML in which a key given twice is a mistake."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [self.construct_object(key) for key, _ in node.value]
        twice = next((key for i, key in enumerate(keys) if key in keys[:i]), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(None, None, f"'{twice}' is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


def read(path: Path) -> TableFile:
    """Read and check one table file.

    Raises:
        ConfigError: it is no YAML, or not of the form; one sentence with the place.
    """
    try:
        return TableFile.model_validate(yaml.load(path.read_text(), _Loader))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{path}{where}: {getattr(error, 'problem', None) or error}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text ({error})") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        raise ConfigError(f"{path}: {where}: {message[0].lower()}{message[1:]}") from None


def load(name: str | None = None, directory: Path | None = None) -> dict[str, Table]:
    """Qualified name (`fast_at.cifar10`) -> table: all, those of a paper, or one.

    Raises:
        ConfigError: there is no such table, or a file is wrong.
    """
    root = directory or experiments_dir()
    files = {path.parent.name: path for path in sorted(root.glob("*/tables.yaml"))}
    paper, _, wanted = (name or "").partition(".")
    if paper and paper not in files:
        raise ConfigError(f"there are no tables of '{paper}'{nearest(paper, files)} (papers: {', '.join(files)})")
    found: dict[str, Table] = {}
    for key, path in files.items():
        if not paper or key == paper:
            found |= {f"{key}.{table}": content for table, content in read(path).tables.items()}
    if not wanted:
        return found
    if name not in found:
        raise ConfigError(f"there is no table '{name}'{nearest(name, found)} (there are: {', '.join(found)})")
    return {name: found[name]}
