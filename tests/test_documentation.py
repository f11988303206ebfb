"""What must be documented where it stands: config keys, modules, functions, shapes, sources."""

import re
import sys
from pathlib import Path

import pytest

from robustrun.catalogue import GROUPS, bases, files
from robustrun.paths import conf_dir
from robustrun.registry import AXES


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


NOBODYS = {"module", "load", "none", "standard"}  # what comes from no publication
_SOURCE = re.compile(r"arXiv \d{4}\.\d{5}|\b(?:19|20)\d\d\b")


@pytest.mark.parametrize("axis", [axis for axis in AXES if axis != "task"])
def test_an_implementation_names_its_source(axis):
    silent = []
    for name in sorted(set(AXES[axis].names()) - NOBODYS):
        implementation = AXES[axis][name]
        texts = (implementation.__doc__, sys.modules[implementation.__module__].__doc__)
        if not _SOURCE.search(" ".join(text or "" for text in texts)):
            silent.append(f"{axis} {name} ({implementation.__module__})")
    assert not silent, "the docstring of a method, or of its module, names the publication that it is from"
