"""scripts/compare.py pairs runs that differ in one override alone."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "scripts" / "compare.py"


@pytest.fixture
def runs(tmp_path):
    def add(trainer, seed, value, *more):
        folder = tmp_path / f"{trainer}{seed}{''.join(more)}"
        folder.mkdir()
        overrides = [f"trainer={trainer}", "task=abalone", f"seed={seed}", f"row=any {trainer}", *more]
        result = {"overrides": overrides, "seed": seed, "exp": "e", "metrics": {"metric": value, "tuned": 0.9}}
        (folder / "result.json").write_text(json.dumps(result))

    for seed, (one, other) in enumerate([(0.5, 0.3), (0.6, 0.5), (0.7, 0.4)]):
        add("a", seed, one)
        add("b", seed, other)
    add("b", 0, 0.99, "trainer.epochs=1")  # differs in more: no pair
    add("a", 9, 0.1)  # alone: no pair
    return tmp_path


def _compare(folder, *more):
    command = [sys.executable, str(SCRIPT), str(folder), "trainer=a", "trainer=b", *more]
    return subprocess.run(command, capture_output=True, text=True)


def test_pairs(runs):
    line = _compare(runs).stdout.splitlines()[1].split()
    assert line[:5] == ["abalone", "3", "0.6000", "0.4000", "+0.2000"]
    assert "3/3" in line
    assert float(line[-1]) == pytest.approx(0.25)
    assert "-0.3000" in _compare(runs, "--against", "tuned").stdout


def test_no_pairs(tmp_path):
    done = _compare(tmp_path)
    assert done.returncode == 1
    assert "no two finished runs" in done.stderr
