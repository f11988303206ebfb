"""scripts/bench/run prints what the benchmarks claim as one table, misses and failures included. Nothing is timed."""

import json
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parent.parent / "scripts" / "bench"
RUN = runpy.run_path(str(BENCH / "run"), run_name="bench")


def _run(*arguments, script=BENCH / "run"):
    command = [sys.executable, str(script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def _cells(page, start):
    """The cells of the first row of a page that has `start` in it."""
    line = next(line for line in page.splitlines() if start in line)
    return [cell.strip() for cell in line.strip("|").split("|")]


@pytest.fixture
def fakes(tmp_path):
    """A copy of the runner beside two benchmarks that claim what they are told to, and one that breaks."""
    folder = tmp_path / "bench"
    folder.mkdir()
    shutil.copy(BENCH / "run", folder)
    hand_on = (
        "import json, os\n"
        "base = {'against': 'plain | loops', 'unit': 'x', 'threads': 1, 'clock': 'wall', 'at_most': None}\n"
        "with open(os.environ['ROBUSTRUN_BENCH_JSON'], 'a') as file:\n"
        "    for claim in CLAIMS:\n"
        "        print(json.dumps(base | claim), file=file)\n"
    )
    met = {"what": "steps", "values": [4.0, 6.0, 5.5], "at_least": 5.0, "met": True}
    missed = {"what": "seconds", "values": [2.5], "unit": "s", "at_least": None, "at_most": 1.0, "met": False}
    (folder / "launch.py").write_text(f"CLAIMS = {[met]}\n{hand_on}")
    (folder / "table.py").write_text(f"CLAIMS = {[missed]}\n{hand_on}print('half a line')\n1 / 0\n")
    (folder / "ase.py").write_text(f"CLAIMS = {[missed]}\n{hand_on}")
    return folder


def test_a_benchmark_to_its_row(tmp_path):
    done = _run("--quick", "--threads", 1, "--only", "attacks", "--to", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "against" in done.stdout
    assert re.search(r"PGD-2-2 with early-out.*a plain PGD loop.*at least 1 x.*(met|MISSED)", done.stdout)
    page = (tmp_path / "RESULTS.md").read_text()
    name, what, against, measured, spread, target, state, clock = _cells(page, "PGD-2-2")
    assert (name, against, spread, target, clock) == (
        "attacks",
        "a plain PGD loop",
        "n = 1",
        "at least 1 x",
        "processor, 1",
    )
    [claim] = json.loads((tmp_path / "results.json").read_text())["attacks"]["claims"]
    assert claim["what"] == what
    assert measured == f"{claim['values'][0]:.4g} x"
    assert state == ("met" if claim["values"][0] >= claim["at_least"] else "MISSED")
    assert re.search(r"\d+ cores.*torch 2", page)
    assert re.fullmatch(r"20\d\d-\d\d-\d\d \d\d:\d\d UTC", _cells(page, "attacks.py")[2])


def test_misses_and_failures_are_shown(fakes):
    done = _run("--only", "launch", "table", "ase", script=fakes / "run")
    assert done.returncode == 1
    assert "half a line" in done.stdout
    assert "1 of 3 targets are met. Failed: table." in done.stdout
    page = (fakes / "RESULTS.md").read_text()
    assert "**1 of 3 targets are met. Failed: table.**" in page
    cells = _cells(page.replace(r"plain \| loops", "loops"), "steps")
    assert cells == ["launch", "steps", "loops", "5.5 x", "4 to 6, n = 3", "at least 5 x", "met", "wall, 1"]
    assert _cells(page.replace(r"\|", ""), "at most 1 s")[3:7] == ["2.5 s", "n = 1", "at most 1 s", "MISSED"]
    failed = _cells(page, "ZeroDivisionError")
    assert re.fullmatch(r"table.py --runs .*: ZeroDivisionError: division by zero", failed[1])
    assert failed[6] == "FAILED"


def test_the_others_stay_on_the_page(fakes):
    for names in (["ase"], ["launch"]):
        assert _run("--only", *names, script=fakes / "run").returncode == 0
    page = (fakes / "RESULTS.md").read_text()
    assert page.index("| launch | steps |") < page.index("| ase | seconds |")
    assert [*json.loads((fakes / "results.json").read_text())] == ["launch", "ase"]


def test_tiny_sizes_write_nothing(fakes):
    assert _run("--quick", "--only", "launch", script=fakes / "run").returncode == 0
    assert not list(fakes.glob("*.md")) + list(fakes.glob("*.json"))


def test_a_benchmark_that_hangs_or_claims_nothing(fakes):
    (fakes / "launch.py").write_text("import time\ntime.sleep(60)\n")
    (fakes / "ase.py").write_text("")
    assert _run("--limit", 1, "--only", "launch", script=fakes / "run").returncode == 1
    assert _run("--only", "ase", script=fakes / "run").returncode == 1
    page = (fakes / "RESULTS.md").read_text()
    assert "not done after 1 s" in page
    assert "it handed no claim on" in page


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--only", "lanch"], "There is no benchmark 'lanch': did you mean 'launch'?"),
        (["--only", "zzzz"], "There is no benchmark 'zzzz': there are launch, table, "),
        (["--threads", "0"], "--threads 0: at least one thread is needed."),
    ],
)
def test_wrong_requests_are_one_sentence(arguments, sentence):
    done = _run(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith(sentence)
    assert len(done.stderr.splitlines()) == 1
    assert not done.stdout


def test_every_benchmark_hands_claims_on():
    for bench in RUN["BENCHES"].values():
        assert "claim(" in (BENCH / f"{bench.script}.py").read_text(), bench.script


def test_the_committed_page_is_what_was_measured():
    records = json.loads((BENCH / "results.json").read_text())
    assert RUN["page"](records) == (BENCH / "RESULTS.md").read_text()
    assert not [name for name, bench in RUN["BENCHES"].items() if name not in records and not bench.bfloat16]
