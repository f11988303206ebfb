"""How a paper's tables stand: which row is which job, and which of those jobs are finished."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from robustrun.catalogue import options
from robustrun.errors import ConfigError
from robustrun.paths import conf_dir, experiments_dir
from robustrun.registry import nearest, plugin_conf_dirs
from robustrun.report.index import Found, Index
from robustrun.report.tables import Row, Table
from robustrun.report.view import TableView, row_view

if TYPE_CHECKING:
    from robustrun.identities import Identity

# Overrides that change where and how a job runs, but not what it is (and so are no part of a row's identity).
_ELSEWHERE = ("runtime", "tracker", "paths", "hydra", "rerun", "objective")
# What a job's identity follows from, beside the configs it is composed of: the schemas and how they are hashed.
_CODE = ("tasks", "models", "trainers", "certifiers", "check.py", "schema.py", "numbers.py", "compose.py", "plan.py")


def outputs_dir(overrides: Sequence[str] = ()) -> Path:
    """Where runs are looked for: `paths.outputs=`, $ROBUSTRUN_OUTPUTS or ./outputs."""
    typed = [o.partition("=")[2] for o in overrides if o.partition("=")[0] == "paths.outputs"]
    return Path(typed[-1] if typed else os.environ.get("ROBUSTRUN_OUTPUTS", "outputs")).absolute()


def open_index(outputs: Path) -> Index:
    """The index of the outputs and of the results that were committed with the papers."""
    return Index(outputs, sorted(path for path in experiments_dir().glob("*/results") if path.is_dir()))


class Reproduction:
    """Looks tables' rows up among finished runs, and plans the jobs of the missing ones.

    Args:
        index: the finished runs.
        overrides: added to every row; those that change the job make the rows reduced ones.
        config_dir: a further configuration directory.
    """

    def __init__(self, index: Index, overrides: Sequence[str] = (), config_dir: str | None = None):
        self.index = index
        self.overrides = tuple(o for o in overrides if not o.startswith("seed="))
        self.seeds = tuple(_seed(o) for o in overrides if o.startswith("seed="))[-1:]  # in place of the rows' own
        self._config_dir = config_dir
        self._configs: dict[str, str] = {}
        self._worked_out: dict[tuple[str, ...], str] = {}  # here and now, whether or not they can be kept for later

    @cached_property
    def composer(self):
        """Composes the rows whose identity is not known yet."""
        # Only imported when an identity is not known yet: looking at tables must be quick.
        from robustrun.compose import Composer

        return Composer.create(self._config_dir)

    @property
    def reduced(self) -> list[str]:
        """The overrides that make a row another job than the paper's."""
        seeds = [f"seed={seed}" for seed in self.seeds]
        return seeds + [
            o for o in self.overrides if o.partition("=")[0].partition(".")[0].partition("/")[0] not in _ELSEWHERE
        ]

    def views(self, tables: Mapping[str, Table]) -> list[TableView]:
        """The tables with all that is found of them."""
        self._identify(tables.values())
        return [self._view(name, table) for name, table in tables.items()]

    def _view(self, name: str, table: Table) -> TableView:
        found = [(id_, row, *self._runs(row)) for id_, row in self._rows(table)]
        runs = [run for *_, those, _ in found for run in those]
        reported = {metric for metric in table.columns if any(run.reports(metric) for run in runs)}
        rows = [
            row_view(id_, row, table.columns, those, error, bool(self.reduced), reported)
            for id_, row, those, error in found
        ]
        return TableView(name, table, rows, self.reduced)

    def jobs(self, table: Table) -> Iterator[tuple[str, object]]:
        """For each seed of each row its row and its checked job, or the error that there is none."""
        for id_, row in self._rows(table):
            for seed in row.seeds:
                try:
                    yield id_, self._job(row, seed)
                except ConfigError as error:
                    yield id_, error
                    break

    def _rows(self, table: Table) -> Iterator[tuple[str, Row]]:
        for id_, row in table.rows.items():
            yield id_, row.model_copy(update={"seeds": self.seeds}) if self.seeds else row

    def done(self, job) -> bool:
        """Whether `find` would find the job: under another experiment's name it is not looked for."""
        return self.index.has(job.exp, job.seed) and self.index.newest(job.sha256) is not None

    def find(self, row: Row, seed: int) -> Found | None:
        """The newest finished run of the row with that seed.

        Raises:
            ConfigError: the row makes no sense.
        """
        if not self.index.has(row.exp, seed):
            self._check_exp(row)
            return None  # before anything is composed, which takes longer than all the rest
        return self.index.newest(self._identity(row, seed))

    def _runs(self, row: Row) -> tuple[list[Found], str]:
        """The row's finished runs, one a seed at most, and why it makes no sense, if it makes none."""
        try:
            return [run for seed in row.seeds if (run := self.find(row, seed))], ""
        except ConfigError as wrong:
            return [], str(wrong)

    def _typed(self, row: Row, seed: int) -> list[str]:
        typed = {_key(o) for o in self.overrides}
        return [*(o for o in row.overrides if _key(o) not in typed), f"seed={seed}", *self.overrides]

    def _job(self, row: Row, seed: int):
        from robustrun.check import only_job

        return only_job(self.composer, self._typed(row, seed))

    def _identity(self, row: Row, seed: int) -> str:
        typed = self._deciding(row, seed)
        known = self._remembered(typed)
        if known is not None:
            return known
        from robustrun.identities import identify

        return self._remember(typed, identify(self.composer, typed))

    def _identify(self, tables: Iterable[Table]) -> None:
        """Work out all identities that are not known yet: there may be hundreds, and each takes a tenth of a second."""
        rows = [row for table in tables for _, row in self._rows(table)]
        asked = [self._deciding(row, seed) for row in rows for seed in row.seeds if self.index.has(row.exp, seed)]
        unknown = list({tuple(typed): typed for typed in asked if self._remembered(typed) is None}.values())
        if not unknown:
            return
        from rich.console import Console
        from rich.progress import track

        from robustrun.identities import identify_all  # as late as the composer

        console = Console(stderr=True)
        bar = {"total": len(unknown), "console": console, "transient": True, "disable": not console.is_terminal}
        found = track(identify_all(unknown, self._config_dir), "which jobs the rows are", **bar)
        for typed, identity in zip(unknown, found, strict=True):
            if identity is not None:
                self._remember(typed, identity)

    def _deciding(self, row: Row, seed: int) -> list[str]:
        """What decides which job the row with that seed is."""
        return [o for o in self._typed(row, seed) if _node(o) not in _ELSEWHERE]

    def _remembered(self, typed: Sequence[str]) -> str | None:
        if (here := self._worked_out.get(tuple(typed))) is not None:
            return here
        sha, configs = self.index.identity(self._key(typed)) or (None, {})
        return sha if all(self._config(path) == digest for path, digest in configs.items()) else None

    def _remember(self, typed: Sequence[str], identity: "Identity") -> str:
        self._worked_out[tuple(typed)] = identity.sha256
        if identity.lasting:
            self.index.remember(self._key(typed), identity.sha256, {p: self._config(p) for p in identity.configs})
        return identity.sha256

    def _key(self, typed: Sequence[str]) -> str:
        return _digest(json.dumps([self._code, typed]))

    @cached_property
    def _code(self) -> str:
        """Changes with every file of the package that a job's identity follows from."""
        package = Path(__file__).parent
        files = [
            f for name in _CODE for f in ([package / name] if "." in name else sorted((package / name).rglob("*.py")))
        ]
        return _digest(*(f.read_bytes() for f in files))

    def _config(self, path: str) -> str:
        """The digest of a config as it is found now: of nothing, where Hydra itself has it."""
        if path not in self._configs:
            found = (file for root in self._roots if (file := root / f"{path.removesuffix('.yaml')}.yaml").is_file())
            file = next(found, None)
            self._configs[path] = _digest(file.read_bytes()) if file else ""
        return self._configs[path]

    @cached_property
    def _roots(self) -> list[Path]:
        """Where configs are looked for, first come first served."""
        own = [Path(self._config_dir)] if self._config_dir else []
        return [*own, *plugin_conf_dirs(), conf_dir()]

    @cached_property
    def _experiments(self) -> Mapping[str, str]:
        return options("exp", Path(self._config_dir) if self._config_dir else None)

    def _check_exp(self, row: Row) -> None:
        if row.exp != "adhoc" and row.exp not in self._experiments:
            raise ConfigError(f"no exp is called '{row.exp}'{nearest(row.exp, self._experiments)}")


def _digest(*parts: str | bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode() if isinstance(part, str) else part)
    return digest.hexdigest()


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")


def _node(override: str) -> str:
    """The key at the root of the config that an override changes."""
    return _key(override).partition(".")[0].partition("/")[0]


def _seed(override: str) -> int:
    value = override.partition("=")[2]
    if not value.isdecimal():
        raise ConfigError(f"{override}: a table takes one seed for all its rows, a whole number from 0 on")
    return int(value)
