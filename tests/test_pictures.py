"""The pictures of the papers' READMEs: which they are, and that the quick runs' figures become them."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from robustrun.catalogue import files
from robustrun.report import figures
from robustrun.roles import Figure
from tests.report.test_view import found

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "scripts" / "pictures"
PICTURES = runpy.run_path(str(SCRIPT), run_name="pictures")["PICTURES"]


@pytest.mark.parametrize("picture", PICTURES, ids=lambda picture: f"{picture.paper}-{picture.figure}")
def test_each_is_of_shipped_rows_and_shown_by_its_paper(picture):
    rows = yaml.safe_load(files("exp")[picture.exp].read_text()).get("rows", {})
    assert set(picture.rows) <= set(rows)
    place = f"pictures/{picture.figure}.png"
    assert (ROOT / "experiments" / picture.paper / place).read_bytes().startswith(b"\x89PNG")
    assert f"]({place})" in (ROOT / "experiments" / picture.paper / "README.md").read_text()


def test_the_newest_run_of_each_row_is_drawn(tmp_path):
    rows_of = runpy.run_path(str(SCRIPT), run_name="pictures")["rows_of"]
    x = np.arange(3.0)
    runs = []
    for number, (row, day) in enumerate([("zero start", 1), ("PGD-7", 1), ("zero start", 2)]):
        folder = tmp_path / str(number)
        figures.write({"accuracy_by_steps": Figure("A", series={"robust": (x, x)})}, folder / "figures")
        content = json.loads(found(0.5).content) | {
            "exp": "quick/fast_at",
            "row": row,
            "finished_at": f"2026-01-0{day}",
        }
        runs.append(type(found(0.5))(folder / "result.json", json.dumps(content)))
    assert rows_of(runs, PICTURES[0]) == {"zero start": tmp_path / "2", "PGD-7": tmp_path / "1"}


def test_what_was_not_run_yet_is_named(tmp_path):
    done = subprocess.run([sys.executable, str(SCRIPT), str(tmp_path)], capture_output=True, text=True, timeout=100)
    assert done.returncode == 1
    assert done.stderr == "quick/fast_at: not run yet; robustrun +exp=quick/fast_at runs it\n"
