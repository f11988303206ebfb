"""Linters, the contracts between the rooms, and documentation, so that one command checks everything."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from robustrun.catalogue import GROUPS, files
from robustrun.paths import conf_dir

ROOT = Path(__file__).parent.parent

COMMANDS = {
    "ruff check": [sys.executable, "-m", "ruff", "check", "."],
    "ruff format": [sys.executable, "-m", "ruff", "format", "--check", "."],
    "import-linter": [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_linter_is_content(name):
    done = subprocess.run(COMMANDS[name], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-1000:]}"


def test_shell_scripts_parse():
    for script in [*ROOT.glob("scripts/*"), ROOT / ".ci" / "run"]:
        if script.is_file() and script.read_text(errors="replace").startswith("#!") and "sh" in script.read_text()[:30]:
            shell = "bash" if "bash" in script.read_text()[:30] else "sh"
            subprocess.run([shell, "-n", str(script)], check=True)


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
    bases = re.search(r"^defaults: \[(.*)\]", file.read_text(), re.MULTILINE)
    built_on = [files(group)[name] for name in re.findall(r"[\w-]+", bases[1]) if name != "_self_"] if bases else []
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
