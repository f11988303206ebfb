"""Composition: overrides as typed -> one resolved-on-demand Hydra config, or one clear sentence.

Hydra's own entry point makes directories before anything can be checked and exits by itself; here its parts
are called directly instead, so that composing has no side effects.
"""

import copy
import itertools
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from hydra._internal.config_repository import ConfigRepository
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.default_element import ConfigDefault
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, ValueType
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.plugins.config_source import ConfigResult
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from robustrun.errors import ConfigError
from robustrun.numbers import parse_number
from robustrun.paths import conf_dir
from robustrun.registry import nearest, plugin_conf_dirs

GROUPS = (
    "exp",
    "task",
    "model",
    "trainer",
    "certifier",
    "threat",
    "noise",
    "metric",
    "solver",
    "runtime",
    "tracker",
)

_RECENT = 4  # compositions that are kept: a comparison and, in turns, its rows


def _arithmetic(name: str, operation: Any) -> None:
    def resolve(a: Any, b: Any) -> float:
        return operation(parse_number(a), parse_number(b))

    OmegaConf.register_new_resolver(name, resolve, replace=True)


def register_resolvers() -> None:
    """`${mul:1.25,${threat.epsilon}}` and its kin, on numbers and fractions; safe to call again."""
    _arithmetic("add", lambda a, b: a + b)
    _arithmetic("sub", lambda a, b: a - b)
    _arithmetic("mul", lambda a, b: a * b)
    _arithmetic("div", lambda a, b: a / b)


register_resolvers()


class _Repository(ConfigRepository):
    """Hydra's, but a file is read once for all compositions, and it is known which were asked for."""

    def __init__(self, plain: ConfigRepository):
        self.sources = plain.sources
        self._read: dict[str, ConfigResult | None] = {}
        self.asked: set[str] = set()

    def __deepcopy__(self, memo: dict) -> "_Repository":
        # Hydra copies it for every composition, which may change the sources but not what is read
        return copy.copy(self)

    def initialize_sources(self, config_search_path: Any) -> None:
        super().initialize_sources(config_search_path)
        self._read = {}

    def load_config(self, config_path: str) -> ConfigResult | None:
        self.asked.add(config_path)
        if config_path not in self._read:
            try:
                self._read[config_path] = super().load_config(config_path)
            except (HydraException, OmegaConfBaseException):
                raise
            except Exception as error:  # a damaged file: readers of YAML raise several kinds
                reason = " ".join(str(error).split())
                raise ConfigError(f"the config {config_path} cannot be read: {reason}") from None
        found = copy.copy(self._read[config_path])
        if found is not None:
            found.config = copy.deepcopy(found.config)  # it becomes a part of the composed config
        return found


class Composer:
    """Composes configs from the shipped tree, the plugins' trees and `--config-dir`."""

    def __init__(self, hydra: Hydra):
        self.hydra = hydra
        self.loader = hydra.config_loader
        if not isinstance(self.loader.repository, _Repository):
            self.loader.repository = _Repository(self.loader.repository)
        self.asked: set[str] = set()  # the configs ("exp/fast_at_cifar") that went into all compositions so far
        self._recent: dict[tuple[str, ...], tuple[DictConfig, set[str]]] = {}

    @classmethod
    def create(cls, config_dir: str | Path | None = None) -> "Composer":
        """A composer over the shipped tree, the plugins' and the user's own directory.

        Raises:
            ConfigError: there is no such directory.
        """
        search_path = create_config_search_path(str(conf_dir()))
        for directory in plugin_conf_dirs():
            anchor = SearchPathQuery(provider="schema")  # Hydra wants that one to stay last
            search_path.prepend("robustrun-plugin", f"file://{directory}", anchor)
        if config_dir is not None:
            directory = Path(config_dir).absolute()
            if not directory.is_dir():
                raise ConfigError(f"--config-dir {config_dir}: no such directory")
            search_path.prepend("command-line", f"file://{directory}")
        GlobalHydra.instance().clear()
        return cls(Hydra.create_main_hydra2("robustrun", search_path))

    @classmethod
    def current(cls) -> "Composer":
        """The composer of the Hydra that runs in this process, for example inside a launched job."""
        hydra = GlobalHydra.instance().hydra
        return cls(hydra) if hydra is not None else cls.create()

    @cached_property
    def _parser(self) -> OverridesParser:
        return OverridesParser.create(config_loader=self.loader)

    def parse(self, overrides: Sequence[str]) -> list[Override]:
        """Parsed overrides.

        Raises:
            ConfigError: Hydra's grammar cannot take one of them; the message has a form that works.
        """
        parsed = []
        for text in overrides:
            try:
                parsed += self._parser.parse_overrides([text])
            except (OverrideParseException, HydraException) as error:
                raise ConfigError(_grammar_hint(text, error)) from None
        return parsed

    def expand(self, typed: Sequence[str]) -> list[list[str]]:
        """The cross-product of all sweeps among the overrides (`seed=0,1,2`, `range`, `choice`, `glob`).

        `+exp=glob(quick/*)` or `+exp/quick=glob(*)` sweep over experiments; Hydra's own glob sees no sub-directories.

        Raises:
            ConfigError: a sweep that only an optimising sweeper understands.
        """
        axes: list[list[str]] = []
        for override in self.parse(typed):
            if not override.is_sweep_override():
                axes.append([override.input_line or ""])
            elif override.value_type is ValueType.GLOB_CHOICE_SWEEP and override.key_or_group.split("/")[0] == "exp":
                axes.append([f"+exp={name}" for name in self._experiments(override)])
            elif override.is_discrete_sweep():
                key = override.get_key_element()
                axes.append([f"{key}={value}" for value in override.sweep_string_iterator()])
            else:
                hint = "choose a sweeper that samples, hydra/sweeper=NAME"
                raise ConfigError(f"'{override.input_line}' is an interval: {hint}")
        return [list(point) for point in itertools.product(*axes)]

    def _experiments(self, override: Override) -> list[str]:
        folder = override.key_or_group.removeprefix("exp").lstrip("/")
        names = [name for name in self.options("exp") if name.startswith(folder)]
        inside = {name.removeprefix(folder).lstrip("/"): name for name in names}
        found = [inside[name] for name in override.value().filter(list(inside))]
        if not found:
            raise ConfigError(f"'{override.input_line}': no experiment is called so ('robustrun list exp' shows all)")
        return found

    def options(self, group: str) -> list[str]:
        """The names that a group offers, sub-directories included ("quick/fast_at")."""
        found = []
        for name in self.loader.get_group_options(group):
            found.append(name)
        for name in self.loader.list_groups(group):
            found += [f"{name}/{option}" for option in self.options(f"{group}/{name}")]
        return sorted(set(found))

    def implementation(self, group: str, option: str) -> str | None:
        """The `name` in an option's file, or in that of the option it builds on; no composition is needed for it."""
        found = self.loader.repository.load_config(f"{group}/{option}")
        if found is None or "name" in found.config:
            return None if found is None else found.config["name"]
        bases = [base.path for base in found.defaults_list or [] if isinstance(base, ConfigDefault)]
        return next((name for base in bases if base != "_self_" and (name := self.implementation(group, base))), None)

    def compose(self, overrides: Sequence[str]) -> DictConfig:
        """The composed config, with its `hydra` node, for one job.

        Raises:
            ConfigError: an unknown option or key, a bad override: one sentence.
        """
        for override in self.parse(overrides):
            if override.is_sweep_override():
                text = override.input_line
                raise ConfigError(f"'{text}' asks for several values: add -m to run them all")
        try:
            return self._load(overrides)
        except MissingConfigException as error:
            raise ConfigError(self._missing(error)) from None
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(self._explain(overrides, error)) from None

    def _load(self, overrides: Sequence[str]) -> DictConfig:
        # Looking for a comparison's rows, for mistakes and for the job itself composes the same thing thrice.
        key = tuple(overrides)
        if key not in self._recent:
            typed = [line for text in overrides for line in self._metric_as_formula(text)]
            self.loader.repository.asked.clear()
            config = self.loader.load_configuration("config", typed, run_mode=RunMode.RUN)
            if len(self._recent) == _RECENT:
                del self._recent[next(iter(self._recent))]
            self._recent[key] = config, set(self.loader.repository.asked)
        config, asked = self._recent[key] = self._recent.pop(key)  # now the last one to go
        self.asked |= asked
        return config.copy()

    def _metric_as_formula(self, text: str) -> list[str]:
        """`metric="f_beta(2)"`: what cannot be an option's name is a formula, of the option `expression`."""
        (override,) = self.parse([text])
        value = override.value() if override.key_or_group == "metric" and not override.is_delete() else None
        if not isinstance(value, str) or re.fullmatch(r"[\w.@-]*", value):
            return [text]
        quoted = value.replace("\\", "\\\\").replace("'", "\\'")
        return ["metric=expression", f"metric.formula='{quoted}'"]

    # ------------------------------------------------------------------ what went wrong, in one sentence

    def _missing(self, error: MissingConfigException) -> str:
        text = str(error)
        unknown = re.search(r"Could not (?:find|load) '?([\w/@.-]+?)'?(?:\n|$|\.)", text)
        name = (error.missing_cfg_file or (unknown.group(1) if unknown else "") or "").removesuffix(".yaml")
        group, _, option = name.partition("/")
        if not option:
            return text.strip().splitlines()[0]
        known = self.options(group)
        if not known:
            return f"no config group '{group}'{nearest(group, self.loader.list_groups(''))}"
        hint = f"'robustrun list {group}' shows all {len(known)}"
        return f"no {group} is called '{option}'{nearest(option, known)} ({hint})"

    def _explain(self, overrides: Sequence[str], error: Exception) -> str:
        text = str(error)
        bare = next((o.value() for o in self.parse(overrides) if o.key_or_group == "exp" and not o.is_add()), None)
        if bare is not None:
            return f"experiments are added to the config, so write +exp={bare}"
        must = re.search(r"You must specify '(\w+)'", text)
        if must:
            group = must.group(1)
            hint = f"'robustrun list {group}' shows what there is"
            return f"no {group} is chosen: add {group}=NAME or +exp=NAME ({hint})"
        return self._unreached(overrides) or _first_line(error)

    def _unreached(self, overrides: Sequence[str]) -> str | None:
        """The override that reaches no key, described; None if all do."""
        parsed = self.parse(overrides)
        groups = set(self.loader.list_groups(""))
        choices = [o for o in parsed if o.key_or_group in groups or "/" in o.key_or_group or o.package]
        for override in parsed:
            group = override.key_or_group
            if override in choices and group.partition("/")[0] not in groups:
                return f"'{override.input_line}': no config group '{group}'{nearest(group, groups)}"
        try:
            config = self._load([o.input_line for o in choices if o.input_line])
        except (HydraException, OmegaConfBaseException):
            return None
        for override in parsed:
            if override in choices or override.is_add() or override.is_force_add():
                continue
            line = self._check_key(config, override)
            if line:
                return line
        return None

    def _check_key(self, config: DictConfig, override: Override) -> str | None:
        node: Any = config
        parts = override.key_or_group.split(".")
        for depth, part in enumerate(parts):
            if not isinstance(node, DictConfig) or part not in list(node):  # `in` is false of one that must be given
                where = ".".join(parts[:depth])
                known = sorted(str(k) for k in node if k != "hydra") if isinstance(node, DictConfig) else []
                choice = config.hydra.runtime.choices.get(where) if where else None
                owner = f"{where}={choice}" if choice else (where or "the config")
                return (
                    f"'{override.input_line}' reaches no key: {owner} has no '{part}'{nearest(part, known)} "
                    f"({'it has: ' + ', '.join(known) if known else 'it has no keys'})"
                )
            opaque = OmegaConf.is_interpolation(node, part) or OmegaConf.is_missing(node, part)
            node = node._get_node(part) if opaque else node[part]
        return None


def _grammar_hint(text: str, error: Exception) -> str:
    key, equals, value = text.partition("=")
    if not equals:
        return f"'{text}' is neither a verb nor an override (KEY=VALUE); 'robustrun --help' shows both"
    quoted = f"'{key}=\"{value}\"'"
    return f"'{text}' is not in Hydra's override grammar ({_first_line(error)}); quote the value: {quoted}"


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else repr(error)


def builtins(node: Any, where: str) -> Any:
    """A config node as plain builtins, interpolations resolved.

    Raises:
        ConfigError: an interpolation leads nowhere or to something that is not what it must be.
    """
    try:
        return OmegaConf.to_container(node, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        raise ConfigError(f"{error.full_key or where} must be given") from None
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or where
        raise ConfigError(f"{key}: {_first_line(error)}") from None
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from None
