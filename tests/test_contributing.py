"""The worked example of CONTRIBUTING.md works: its files are made from the page, tested, and run."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "CONTRIBUTING.md").read_text()


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A copy of the package and its configs with the example's files added."""
    tree = tmp_path_factory.mktemp("tree")
    for room in ("robustrun", "conf", "experiments"):
        shutil.copytree(ROOT / room, tree / room, ignore=shutil.ignore_patterns("__pycache__", "results", "_conf"))
    files = re.findall(r"```(?:python|yaml)\n# (\S+)\n(.*?)```", PAGE, re.DOTALL)
    assert len(files) == 4
    for name, content in files:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(content)
    return tree


def call(tree, *command):
    environment = {**os.environ, "PYTHONPATH": str(tree), "ROBUSTRUN_OUTPUTS": str(tree / "outputs")}
    command = [sys.executable, *command]
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_its_test_passes(tree):
    assert "1 passed" in call(tree, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/methods")


def test_its_command_runs(tree):
    (command,) = re.findall(r"^robustrun (.*trainer=gradient_penalty.*)$", PAGE, re.MULTILINE)
    reduced = ("trainer.epochs=1", "certifier.examples=20", "certifier.steps=2", "certifier.restarts=1")
    assert "robust_accuracy" in call(tree, "-m", "robustrun.cli", *command.split(), *reduced)
    assert "a penalty on the input gradient" in call(tree, "-m", "robustrun.cli", "list", "trainer")
