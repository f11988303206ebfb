"""The wheel carries what can be composed, and a third party's package adds to it."""

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

EXAMPLE = re.search(r"```python\n# mypackage/models\.py\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL).group(
    1
)

PLUGIN = {
    "pyproject.toml": """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "tiny-robust-plugin"
version = "0.1"
[project.entry-points."robustrun.plugins"]
tiny = "tiny_plugin.models"
[tool.hatch.build.targets.wheel]
packages = ["tiny_plugin"]
""",
    "tiny_plugin/__init__.py": "",
    # The README's own example: what it promises is what is installed here.
    "tiny_plugin/models.py": EXAMPLE,
    "tiny_plugin/conf/model/my_net.yaml": "# A third party's network\nname: my_net\nhidden: 64\n",
    "tiny_plugin/conf/exp/tiny.yaml": """# @package _global_
# A third party's experiment
defaults:
  - override /task: digits
  - override /model: my_net
  - override /trainer: standard
  - override /certifier: accuracy
  - _self_
""",
}


def call(*command, **options):
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A directory into which the wheel and a third party's package are installed."""
    folder = tmp_path_factory.mktemp("wheel")
    call(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder), cwd=ROOT)
    (wheel,) = folder.glob("*.whl")
    plugin = folder / "plugin"
    for name, content in PLUGIN.items():
        (plugin / name).parent.mkdir(parents=True, exist_ok=True)
        (plugin / name).write_text(content)
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--disable-pip-version-check"]
    call(*pip, "--no-build-isolation", "--target", str(folder / "site"), str(wheel), str(plugin))
    return folder / "site"


@pytest.fixture
def installed(site, tmp_path):
    def run(*arguments):
        environment = {**os.environ, "PYTHONPATH": str(site), "ROBUSTRUN_OUTPUTS": str(tmp_path / "outputs")}
        command = [sys.executable, "-m", "robustrun.cli", *arguments]
        return call(*command, cwd=tmp_path, env=environment)

    return run


def test_the_wheel_holds_configs_and_tables(site):
    names = zipfile.ZipFile(next(site.parent.glob("*.whl"))).namelist()
    assert "robustrun/_conf/config.yaml" in names
    assert "robustrun/_conf/exp/quick/fast_at.yaml" in names
    assert any(name.endswith("LICENSE") for name in names)
    assert not [name for name in names if name.startswith(("tests/", "scripts/"))]


def test_an_installed_wheel_finds_its_own_tree(site):
    code = "import robustrun.paths as p; print(p.conf_dir())"
    shown = call(sys.executable, "-c", code, cwd=site.parent, env={**os.environ, "PYTHONPATH": str(site)})
    assert shown.strip() == str(site / "robustrun" / "_conf")


def test_a_plugin_is_listed_without_being_imported(installed):
    assert "A third party's network" in installed("list", "model")
    assert "tiny " in installed("list", "exp")


def test_a_plugins_experiment_runs(installed):
    assert "accuracy" in installed("+exp=tiny", "trainer.epochs=1", "model.hidden=8")
