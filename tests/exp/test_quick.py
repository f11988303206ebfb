"""Every quick experiment runs end to end on real data at reduced size."""

import json

import pytest

from robustrun.catalogue import options
from tests.exp.quick_overrides import QUICK

EXPERIMENTS = [name for name in options("exp") if name.startswith("quick/")]


def test_every_quick_experiment_is_run():
    assert set(QUICK) == set(EXPERIMENTS)


@pytest.mark.slow
@pytest.mark.parametrize("exp", EXPERIMENTS)
def test_a_quick_experiment_runs_to_its_table(exp, cli, tmp_path):
    done = cli(f"+exp={exp}", *QUICK[exp])
    assert done.returncode == 0, done.stderr
    results = list((tmp_path / "outputs" / exp).glob("*/result.json"))
    assert results
    for result in results:
        content = json.loads(result.read_text())
        assert content["metrics"]
        assert any(value is not None for value in content["metrics"].values())
    again = cli(f"+exp={exp}", *QUICK[exp])
    assert again.returncode == 0, again.stderr
    finished = [line for line in done.stdout.splitlines() if line.startswith(str(tmp_path / "outputs"))]
    assert again.stdout.count("complete already") == len(finished) > 0
