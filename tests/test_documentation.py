"""What must be documented where it stands: config keys, modules, functions, shapes, sources."""

import ast
import importlib
import inspect
import pkgutil
import re
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import is_dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import robustrun
from robustrun.catalogue import GROUPS, bases, files
from robustrun.paths import conf_dir
from robustrun.registry import AXES

ROOT = Path(__file__).parent.parent


def _key_lines(file: Path) -> dict[str, str]:
    """Dotted key -> its line."""
    lines, above = {}, []
    for line in file.read_text().splitlines():
        if found := re.match(r"( *)([\w-]+):(?= |$)", line):
            above = [(depth, key) for depth, key in above if depth < len(found[1])] + [(len(found[1]), found[2])]
            lines[".".join(key for _, key in above)] = line
    return lines


def _inherited(group: str, file: Path) -> set[str]:
    """The keys of the options that an option builds on."""
    built_on = [files(group)[name] for name in bases(file)]
    return {key for base in built_on for key in {*_key_lines(base), *_inherited(group, base)}}


@pytest.mark.parametrize("group", [group for group in GROUPS if group != "exp"])
def test_every_key_of_a_config_says_on_its_line_what_it_is(group):
    silent = []
    for option, file in files(group).items():
        lines = _key_lines(file)
        new = set(lines) - _inherited(group, file) - {"name", "defaults"}  # a file's first line speaks for its name
        silent += [f"{group}/{option}: {key}" for key in sorted(new) if " # " not in lines[key]]
    assert not silent, "a comment says what a key is, in the file that has it first"


def test_every_line_of_the_frame_says_what_it_is():
    lines = (conf_dir() / "config.yaml").read_text().splitlines()
    assert [line for line in lines if line.strip() and " # " not in line and not line.startswith("#")] == []


@cache
def _modules() -> list[ModuleType]:
    names = [info.name for info in pkgutil.walk_packages(robustrun.__path__, "robustrun.")]
    return [importlib.import_module(name) for name in names if "hydra_plugins" not in name]


def _members(module: ModuleType) -> Iterator[tuple[str, Any]]:
    """What a module defines for others: classes, functions, and the methods of either kind of class."""
    for name, thing in vars(module).items():
        if name.startswith("_") or getattr(thing, "__module__", None) != module.__name__:
            continue
        if inspect.isclass(thing) or inspect.isfunction(thing):
            yield name, thing
        if inspect.isclass(thing):
            for method, value in vars(thing).items():
                value = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
                if not method.startswith("_") and inspect.isfunction(value) and value.__module__ == module.__name__:
                    yield f"{name}.{method}", value


@cache
def _contracts(package: str) -> dict[str, str]:
    """Method -> what classes of a package say of it: what else goes by the name there meets the same contract."""
    modules = [module for module in _modules() if module.__name__.rpartition(".")[0] == package]
    said: dict[str, str] = {}
    for name, thing in (member for module in modules for member in _members(module)):
        if "." in name and thing.__doc__:
            said[name.partition(".")[2]] = said.get(name.partition(".")[2], "") + thing.__doc__
    return said


def _is_documented(module: ModuleType, name: str, thing: Any) -> bool:
    if inspect.isclass(thing):  # what a dataclass writes itself is none
        return bool(thing.__doc__) and not thing.__doc__.startswith(f"{name}(")
    owner, _, method = name.rpartition(".")
    bases = vars(module)[owner].__mro__ if owner else ()
    inherited = any(getattr(vars(base).get(method), "__doc__", None) for base in bases)
    return bool(thing.__doc__) or inherited or method in _contracts(module.__name__.rpartition(".")[0])


def test_every_module_class_and_function_says_what_it_is():
    silent = [module.__name__ for module in _modules() if not module.__doc__]
    for module in _modules():
        found = _members(module)
        silent += [f"{module.__name__}.{name}" for name, thing in found if not _is_documented(module, name, thing)]
    assert not silent


_LENGTH = r"(?:\*?\w+|\.\.\.)(?: ?[-+*/|]{1,2} ?\w+)*"
_SHAPE = re.compile(rf"\({_LENGTH},(?: ?{_LENGTH},?)*\)|scalar|elementwise|coordinate|shape|(?:[Aa]s|in|of|[Ss]ee) `")


def test_functions_of_the_mathematics_state_shapes():
    silent = []
    for module in _modules():
        if not module.__name__.startswith("robustrun.methods."):
            continue
        for name, thing in _members(module):
            if inspect.isfunction(thing) and "." not in name:
                kinds = map(str, inspect.get_annotations(thing).values())
                arrays = any(re.search("Tensor|ndarray", kind) and "Callable" not in kind for kind in kinds)
                if arrays and not _SHAPE.search(thing.__doc__ or ""):
                    silent.append(f"{module.__name__}.{name}")
    assert not silent, "the docstring of a function on arrays has their shapes, such as (B, n)"


def _raised(thing: Any) -> set[str]:
    """The errors that a function raises itself; of a class, its constructor."""
    if inspect.isclass(thing):
        made = vars(thing).get("__post_init__") or (None if is_dataclass(thing) else vars(thing).get("__init__"))
        return _raised(made) if inspect.isfunction(made) and made.__module__ == thing.__module__ else set()
    tree = ast.parse(textwrap.dedent(inspect.getsource(thing)))
    raised = [getattr(node.exc, "func", None) for node in ast.walk(tree) if isinstance(node, ast.Raise)]
    return {error.id for error in raised if isinstance(error, ast.Name) and error.id[0].isupper()}


def test_functions_of_mathematics_and_data_say_what_they_raise():
    silent = []
    for module in _modules():
        package = module.__name__.rpartition(".")[0]
        if not package.startswith(("robustrun.methods", "robustrun.data", "robustrun.query")):
            continue
        for name, thing in _members(module):
            owner, _, method = name.rpartition(".")
            said = f"{thing.__doc__} {vars(module)[owner].__doc__ if owner else ''} {_contracts(package).get(method)}"
            silent += [f"{module.__name__}.{name}: {error}" for error in _raised(thing) if error not in said]
    assert not silent


NOBODYS = {"module", "load", "none", "standard"}  # what comes from no publication
_SOURCE = re.compile(r"arXiv \d{4}\.\d{5}|\b(?:19|20)\d\d\b")


PAGES = [*ROOT.glob("*.md"), *ROOT.glob("experiments/*/README.md"), *ROOT.glob("scripts/bench/*.md")]


@pytest.mark.parametrize("page", sorted(str(page.relative_to(ROOT)) for page in PAGES))
def test_what_a_page_points_at_is_there(page):
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)\)", (ROOT / page).read_text())
    assert [link for link in links if not (ROOT / page).parent.joinpath(link).exists()] == []


@pytest.mark.parametrize("axis", [axis for axis in AXES if axis != "task"])
def test_an_implementation_names_its_source(axis):
    silent = []
    for name in sorted(set(AXES[axis].names()) - NOBODYS):
        implementation = AXES[axis][name]
        if not implementation.__module__.startswith("robustrun."):
            continue  # that of another test
        texts = (implementation.__doc__, sys.modules[implementation.__module__].__doc__)
        if not _SOURCE.search(" ".join(text or "" for text in texts)):
            silent.append(f"{axis} {name} ({implementation.__module__})")
    assert not silent, "the docstring of a method, or of its module, names the publication that it is from"
