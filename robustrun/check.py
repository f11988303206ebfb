"""From a composed config to a checked job, before any data is read or any directory made.

A `Job` is validated (types, bounds, unknown keys), its four axes fit together, its needs are identified, and it
has an identity: a hash of everything that can change its result, and of nothing else.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from robustrun.compose import Composer, builtins
from robustrun.errors import ConfigError
from robustrun.fit import misfit
from robustrun.numbers import PositiveInt
from robustrun.registry import AXES, nearest
from robustrun.runtime import shard_indices
from robustrun.runtime.precision import PrecisionName
from robustrun.schema import plain, validate

# What a typed override may change in a job without changing its needs: where and how things run.
CARRIED = ("runtime", "tracker", "paths")
# Nodes at the root of the config that axes read by interpolation.
SHARED = ("threat", "noise", "metric", "solver")
# All keys at the root of the config.
ROOT = (
    *AXES, *SHARED, "runtime", "tracker", "paths", "seed", "paper", "row", "rows", "needs", "paper_metrics",
    "rerun", "objective", "hydra",
)  # fmt: skip


@dataclass(frozen=True)
class Choice:
    """One axis of a job: the option's name, its implementation and its validated values."""

    option: str
    name: str
    implementation: Any
    values: Mapping[str, Any]

    def build(self, *injected: Any) -> Any:
        """Call the implementation with what is injected and the validated values.

        Raises:
            ConfigError: they do not go together; the option is named.
        """
        try:
            return self.implementation(*injected, **self.values)
        except ValueError as error:
            raise ConfigError(f"{self.option}: {error}") from error


@dataclass(frozen=True)
class Need:
    """Something a job reads that must be finished first: another job, a run directory or a file."""

    path: Path
    identity: str
    job: "Job | None" = None


@dataclass(frozen=True)
class Job:
    """One checked task x model x trainer x certifier."""

    config: DictConfig  # the whole composed config; the hydra node included
    overrides: tuple[str, ...]  # as typed
    exp: str
    seed: int
    axes: Mapping[str, Choice]
    needs: Mapping[str, Need] = field(default_factory=dict)
    sha256: str = ""

    @property
    def run_id(self) -> str:
        """The first twelve hexadecimal digits of the identity."""
        return self.sha256[:12]

    @property
    def row(self) -> str | None:
        """Which row of a comparison the job is."""
        return self.config.row

    @property
    def outputs(self) -> Path:
        """The directory under which all run directories lie."""
        return Path(str(self.config.paths.outputs)).absolute()

    @property
    def shard(self) -> str | None:
        """Which part of a certification this job does ("i/n"); None if all of it."""
        return self.axes["certifier"].values.get("shard")

    @property
    def subdir(self) -> str:
        """The run directory below `outputs`."""
        return f"{self.exp}/{self.run_id}" + (f"-{self.shard.replace('/', 'of')}" if self.shard else "")

    @property
    def kin(self) -> list[Path]:
        """The directories of the whole job and of its shards, where this is one of the shards."""
        if not self.shard:
            return []
        return sorted(self.outputs.glob(f"{self.exp}/{self.run_id}*"))

    @property
    def mark(self) -> str:
        """What a run directory is claimed with: shards of one certification share the identity, not the directory."""
        return self.sha256 + (f" {self.shard}" if self.shard else "")

    @property
    def directory(self) -> Path:
        """The run directory, unless hydra.run.dir was given by hand."""
        given = OmegaConf.to_container(self.config.hydra.run, resolve=False)["dir"]
        return self.outputs / self.subdir if "run_subdir" in given else Path(given).absolute()

    @property
    def finished(self) -> bool:
        """Whether the directory holds the result of this job (of another one, if it was given by hand: not)."""
        return (self.directory / "result.json").is_file() and self.holder(self.directory) in (None, self.mark)

    @staticmethod
    def holder(directory: Path) -> str | None:
        """The mark of the job whose directory this is; None if it is nobody's."""
        mark = directory / ".job"
        return mark.read_text() if mark.is_file() else None

    @property
    def title(self) -> str:
        """The experiment and its row, for people."""
        return f"{self.exp}:{self.row}" if self.row else self.exp

    def plain(self) -> dict[str, Any]:
        """The config as builtins, interpolations resolved, without Hydra's own node."""
        config = self.config.copy()
        with open_dict(config):
            del config["hydra"]
        return builtins(config, "config")


def check(config: DictConfig, composer: Composer, ancestors: Sequence[str] = ()) -> Job:
    """A checked job from a composed config (with its `hydra` node).

    Raises:
        ConfigError: anything wrong with the request, in one sentence.
    """
    overrides = tuple(_typed(config))
    exp = config.hydra.runtime.choices.get("exp") or "adhoc"
    seed = config.seed
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ConfigError(f"seed={seed}: a seed is a whole number from 0 on")
    needs = _needs(config, composer, ancestors)
    paths = _with_needs(config, {name: str(need.path) for name, need in needs.items()})
    axes = {axis: _choice(axis, paths, config.hydra.runtime.choices) for axis in AXES}
    _check_fit(axes, composer)
    _check_typed(config, composer)
    validate(_runtime, builtins(config.runtime, "runtime"), "runtime")
    _check_paper_metrics(config.paper_metrics)
    # Paths differ from machine to machine: the identity holds the needs' identities in their place.
    names = _with_needs(config, {name: f"need:{need.identity}" for name, need in needs.items()})
    named = {axis: _choice(axis, names, config.hydra.runtime.choices) for axis in AXES} if needs else axes
    identity = {"seed": seed} | {
        axis: {"name": choice.name} | plain(choice.implementation, choice.values) for axis, choice in named.items()
    }
    shard_indices((), identity["certifier"].pop("shard", None))  # checked here; a part of a job is that job
    return Job(paths, overrides, exp, seed, axes, needs, digest(identity))


def _runtime(
    *,
    device: str = "auto",
    precision: PrecisionName = "auto",
    threads: PositiveInt | None = None,
    deterministic: bool = False,
    compile: bool = False,
    channels_last: bool | None = None,
) -> None:
    """The keys of `runtime`, for checking them before anything is made."""


def _check_paper_metrics(node: Any) -> None:
    """They are kept beside the result: what cannot be is said before hours are spent."""
    try:
        metrics = builtins(node, "paper_metrics") if OmegaConf.is_config(node) else node
        for value in (metrics or {}).values():
            float(0 if value is None else value)
    except (AttributeError, TypeError, ValueError):
        raise ConfigError("paper_metrics must be names with numbers: {clean_accuracy: 0.84}") from None


def digest(value: Any) -> str:
    """The SHA-256 of a value's canonical JSON, in hexadecimal."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _choice(axis: str, config: DictConfig, choices: Mapping[str, str]) -> Choice:
    option = choices.get(axis) or "?"
    node = builtins(config[axis], axis)
    if not isinstance(node, dict) or not isinstance(node.get("name"), str):
        raise ConfigError(f"{axis}={option}: a config file of this group must hold 'name: ...'")
    implementation = AXES[axis][node.pop("name")]
    raw = OmegaConf.to_container(config[axis], resolve=False)
    return Choice(option, raw["name"], implementation, validate(implementation, node, axis, raw))


def _check_fit(axes: Mapping[str, Choice], composer: Composer) -> None:
    kinds = {axis: choice.implementation for axis, choice in axes.items()}
    wrong = misfit(**kinds)
    if wrong is None:
        return
    axis, other, why = wrong
    fitting = [
        option
        for option in composer.options(axis)
        if (name := composer.implementation(axis, option)) and misfit(**kinds | {axis: AXES[axis][name]}) is None
    ]
    would = (
        f"{axis}s that fit here: {', '.join(fitting)}" if fitting else f"no {axis} fits here; change {other} as well"
    )
    raise ConfigError(f"{axis}={axes[axis].option} does not fit {other}={axes[other].option}: {why} ({would})")


def _typed(config: DictConfig) -> list[str]:
    """The overrides as typed; an interpolation in one stays as it is."""
    return OmegaConf.to_container(config.hydra.overrides.task, resolve=False)


def _check_typed(config: DictConfig, composer: Composer) -> None:
    """Refuse a key that nothing reads, and a typed override of a shared node that nothing in this job reads."""
    unknown = sorted(str(key) for key in config if key not in ROOT)
    if unknown:
        hint = nearest(unknown[0], ROOT)
        raise ConfigError(f"'+{unknown[0]}' reaches no key{hint} (there are: {', '.join(ROOT)})")
    text = json.dumps([OmegaConf.to_container(config[node], resolve=False) for node in (*AXES, "needs", *SHARED)])
    for override in composer.parse(_typed(config)):
        node = override.key_or_group.partition(".")[0]
        if node in SHARED and f"${{{node}" not in text:
            chosen = ", ".join(f"{axis}={config.hydra.runtime.choices.get(axis)}" for axis in AXES)
            raise ConfigError(f"'{override.input_line}' has no effect: nothing in this job reads {node} ({chosen})")


# ------------------------------------------------------------------------------------------------ needs


def _needs(config: DictConfig, composer: Composer, ancestors: Sequence[str]) -> dict[str, Need]:
    carried = [
        override.input_line
        for override in composer.parse(_typed(config))
        if override.key_or_group.partition(".")[0] in CARRIED and override.input_line
    ]
    declared = builtins(config.needs, "needs") or {}
    if not isinstance(declared, dict):
        raise ConfigError("needs must be names with what they need: {NAME: EXPERIMENT with overrides, or a path}")
    return {
        name: _need(name, text, carried, composer, ancestors) for name, text in declared.items() if text is not None
    }


# Words between spaces; quotes hold words together and stay, since they belong to the grammar of overrides.
_WORD = re.compile(r"""(?:[^\s'"]|'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*")+""")


def _need(name: str, text: Any, carried: list[str], composer: Composer, ancestors: Sequence[str]) -> Need:
    if not isinstance(text, str):
        raise ConfigError(f"needs.{name} must be one string: an experiment with overrides, a run directory or a file")
    path = Path(text).expanduser()
    if path.is_file():
        return Need(path.absolute(), hashlib.sha256(path.read_bytes()).hexdigest())
    if path.is_dir():
        return Need(path.absolute(), _identity_of_run(name, path))
    if text in ancestors:
        raise ConfigError(f"needs.{name} goes in a circle: {' -> '.join([*ancestors, text])}")
    exp, *rest = _WORD.findall(text)
    if exp not in composer.options("exp"):
        raise ConfigError(f"needs.{name}='{text}' is neither an experiment nor an existing run directory or file")
    job = only_job(composer, [f"+exp={exp}", *rest, *carried], [*ancestors, text])
    return Need(job.directory, job.sha256, job)


def _identity_of_run(name: str, path: Path) -> str:
    result = path / "result.json"
    if not result.is_file():
        raise ConfigError(f"needs.{name}={path} holds no finished run: there is no result.json in it")
    try:
        return str(json.loads(result.read_text())["config_sha256"])
    except (ValueError, KeyError, TypeError):
        raise ConfigError(f"needs.{name}={path}: its result.json cannot be read; run that job again") from None


def _with_needs(config: DictConfig, values: Mapping[str, str]) -> DictConfig:
    if not values:
        return config
    copy = config.copy()
    with open_dict(copy):
        copy.needs = {**(OmegaConf.to_container(config.needs) or {}), **values}
    return copy


# ------------------------------------------------------------------------------------------------ rows


def rows_of(composer: Composer, overrides: Sequence[str]) -> list[list[str]]:
    """The overrides of each job that was asked for: itself, or one a row of a comparison.

    Overrides typed by the user come after the row's own and win.

    Raises:
        ConfigError: there is no such row.
    """
    typed = composer.parse(overrides)
    config = composer.compose([o.input_line or "" for o in typed if o.key_or_group != "row"])  # once for all rows
    row = next((o.value() for o in reversed(typed) if o.key_or_group == "row" and not o.is_delete()), config.row)
    rows = (OmegaConf.to_container(config.rows) if OmegaConf.is_config(config.rows) else config.rows) or {}
    if not isinstance(rows, dict) or not all(_are_words(row) for row in rows.values()):
        raise ConfigError("rows must be names with lists of overrides: {NAME: [trainer.epochs=3, ...]}")
    if not rows:
        return [list(overrides)]
    if row is not None and row not in rows:
        raise ConfigError(f"row={row}: this experiment's rows are {', '.join(rows)}")
    chosen = [row] if row is not None else list(rows)
    return [_row_overrides(composer, name, rows[name] or [], overrides) for name in chosen]


def _are_words(row: Any) -> bool:
    return row is None or (isinstance(row, list) and all(isinstance(word, str) for word in row))


def _row_overrides(composer: Composer, name: str, own: Sequence[str], typed: Sequence[str]) -> list[str]:
    typed_keys = {o.key_or_group for o in composer.parse(typed)}
    kept = [text for text in own if composer.parse([text])[0].key_or_group not in typed_keys]
    rest = [text for text in typed if composer.parse([text])[0].key_or_group != "row"]
    return [*kept, *rest, f"row={name}"]


def only_job(composer: Composer, overrides: Sequence[str], ancestors: Sequence[str] = ()) -> Job:
    """The one job that the overrides name.

    Raises:
        ConfigError: they name a comparison of several rows.
    """
    listed = rows_of(composer, overrides)
    if len(listed) > 1:
        raise ConfigError(f"'{' '.join(overrides)}' is a comparison of {len(listed)} rows; choose one with row=NAME")
    return check(composer.compose(listed[0]), composer, ancestors)


# -------------------------------------------------------------------------------- for Hydra's directories


def _run_subdir(*, _root_: DictConfig) -> str:
    """`${run_subdir:}`: `hydra.run.dir` and `hydra.sweep.subdir` follow from a job's identity."""
    return check(_root_, Composer.current()).subdir


# With this module, so that it is there in every process that a launcher starts.
OmegaConf.register_new_resolver("run_subdir", _run_subdir, replace=True)


def current(config: DictConfig, composer: Composer) -> Job:
    """The job that Hydra is running in this process, from the config it hands over (its own node cut off)."""
    whole = config.copy()
    with open_dict(whole):
        whole["hydra"] = HydraConfig.get()
    return check(whole, composer)
