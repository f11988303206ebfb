"""Names to implementations: `@trainers.register("fgsm")` on a class or factory.

The keyword-only parameters of an implementation *are* its configuration schema (names, types, defaults, bounds);
its positional parameters are injected. Third parties register through the entry-point group
`robustrun.plugins`: an entry point names a module (imported before a name is looked up), and a directory `conf`
beside that module joins the configuration search path.
"""

import difflib
import importlib
import importlib.metadata
import importlib.util
import inspect
import pkgutil
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from robustrun.errors import ConfigError

PLUGIN_GROUP = "robustrun.plugins"
T = TypeVar("T", bound=Callable[..., Any])


def nearest(name: str, known: Iterable[str]) -> str:
    """ "; did you mean 'x'?" for the nearest known name, or the empty string."""
    match = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean '{match[0]}'?" if match else ""


class Registry:
    """The implementations of one axis."""

    def __init__(self, axis: str, package: str):
        self.axis = axis
        self._package = package
        self._entries: dict[str, Callable[..., Any]] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Make a class or factory available as `name`.

        Raises:
            ConfigError: the name is taken by something else.
        """

        def decorate(implementation: T) -> T:
            taken = self._entries.get(name)
            if taken is not None and _where(taken) != _where(implementation):
                raise ConfigError(
                    f"two implementations are registered as {self.axis} '{name}': "
                    f"{_where(taken)} and {_where(implementation)}"
                )
            self._entries[name] = implementation
            return implementation

        return decorate

    def __getitem__(self, name: str) -> Callable[..., Any]:
        """The implementation called `name`.

        Raises:
            ConfigError: there is none; the message has the nearest match.
        """
        self._import_all()
        if name not in self._entries:
            known = sorted(self._entries)
            raise ConfigError(
                f"no {self.axis} is registered as '{name}'{nearest(name, known)} (registered: {', '.join(known)})"
            )
        return self._entries[name]

    def names(self) -> list[str]:
        """All registered names, plugins' included."""
        self._import_all()
        return sorted(self._entries)

    def _import_all(self) -> None:
        _import_submodules(self._package)
        load_plugins()


@cache
def _import_submodules(package: str) -> None:
    # One file a family registers itself; importing is cheap because heavy libraries are imported where used.
    module = importlib.import_module(package)
    for info in pkgutil.iter_modules(module.__path__, prefix=f"{package}."):
        importlib.import_module(info.name)


def _where(implementation: Callable[..., Any]) -> str:
    return f"{implementation.__module__}.{implementation.__qualname__}"


@cache
def load_plugins() -> None:
    """Import every module named in the entry-point group `robustrun.plugins`, once.

    Raises:
        ConfigError: a plugin cannot be imported; the message names it.
    """
    for entry in importlib.metadata.entry_points(group=PLUGIN_GROUP):
        try:
            entry.load()
        except Exception as error:
            raise ConfigError(
                f"the plugin '{entry.name}' ({entry.value}) cannot be imported: {error!r}; fix or uninstall it"
            ) from error


@cache
def plugin_conf_dirs() -> tuple[Path, ...]:
    """The directories `conf` beside the plugins' modules, found without importing the modules."""
    found = []
    for entry in importlib.metadata.entry_points(group=PLUGIN_GROUP):
        try:
            spec = importlib.util.find_spec(entry.module)
        except ImportError:
            continue  # load_plugins says what is wrong with it, when it is needed
        if spec is not None and spec.origin and (spec.parent or spec.submodule_search_locations):
            conf = Path(spec.origin).parent / "conf"
            if conf.is_dir():
                found.append(conf)
    return tuple(found)


def constructors(implementation: Callable[..., Any]) -> list[Callable[..., Any]]:
    """The functions whose keyword-only parameters configure an implementation, base classes first.

    A class whose `__init__` ends in `**common` hands those on to its base class, so the base's parameters are its
    own as well.
    """
    if not isinstance(implementation, type):
        return [implementation]
    found = []
    for cls in implementation.__mro__:
        if "__init__" not in cls.__dict__:
            continue
        found.append(cls.__init__)
        kinds = [p.kind for p in inspect.signature(cls.__init__).parameters.values()]
        if inspect.Parameter.VAR_KEYWORD not in kinds:
            break
    return found[::-1]


def parameters(implementation: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The keyword-only parameters of an implementation: its configuration keys."""
    return {
        p.name: p
        for function in constructors(implementation)
        for p in inspect.signature(function).parameters.values()
        if p.kind is inspect.Parameter.KEYWORD_ONLY
    }


tasks = Registry("task", "robustrun.tasks")
models = Registry("model", "robustrun.models")
trainers = Registry("trainer", "robustrun.trainers")
certifiers = Registry("certifier", "robustrun.certifiers")

AXES: dict[str, Registry] = {"task": tasks, "model": models, "trainer": trainers, "certifier": certifiers}
