"""Linters and the contracts between the rooms, so that one command checks everything."""

import subprocess
import sys
from pathlib import Path

import pytest

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
