"""Two gloo processes train to the same result as one process on the joined batch."""

import json
import signal
import time

import pytest
import torch

from robustrun.runtime import Distributed
from robustrun.runtime import distributed as processes
from tests.runtime import jobs


def assert_close(actual, expected):
    assert len(actual["history"]) == len(expected["history"])
    for row, other in zip(actual["history"], expected["history"], strict=True):
        assert row == pytest.approx(other, abs=1e-6)
    for name, sums in expected["states"].items():
        assert actual["states"][name] == pytest.approx(sums, abs=1e-5)


@pytest.mark.parametrize("options", [("--ragged",), ("--ragged", "--plain-step")], ids=["minimize", "step"])
def test_two_processes_equal_one(tmp_path, options):
    options = ("--dropout", "0", *options)
    alone = jobs.result(jobs.start(tmp_path / "one", *options))
    both = jobs.start_two(tmp_path / "two", *options)
    together = jobs.result(both[0])
    jobs.result(both[1])
    assert_close(together, alone)
    assert jobs.lines(tmp_path / "two" / "metrics.jsonl") == 4


def test_two_processes_stop_together_and_resume(tmp_path):
    """The signal reaches one rank; both save and leave with 75, and resume to the same bits."""
    options = ("--dropout", "0")
    expected = jobs.start_two(tmp_path / "whole", *options)
    whole = jobs.result(expected[0])
    jobs.result(expected[1])
    pair = jobs.start_two(tmp_path / "cut", *options, "--pause", "0.03")
    jobs.wait_for(lambda: jobs.lines(tmp_path / "cut" / "metrics.jsonl") >= 1, pair[0])
    time.sleep(0.1)
    pair[1].send_signal(signal.SIGTERM)
    for process in pair:
        jobs.result(process, expected=75)
    resumed = jobs.start_two(tmp_path / "cut", *options)
    assert jobs.result(resumed[0]) == whole
    jobs.result(resumed[1])


def test_nan_on_two_processes_ends_both(tmp_path):
    pair = jobs.start_two(tmp_path, "--explode", "25")
    for process in pair:
        assert "diverged" in jobs.result(process, expected=1)["stderr"]


def test_a_failure_on_the_main_rank_reaches_the_other(tmp_path):
    (tmp_path / "file").write_text("")
    for process in jobs.start_two(tmp_path / "file" / "run"):
        assert "the run directory" in jobs.result(process, expected=2)["stderr"]


@pytest.mark.parametrize(("n", "world_size"), [(7, 3), (2, 4), (8, 2), (0, 2)])
def test_slices_cover_everything_once(n, world_size):
    ranks = [Distributed(rank=r, world_size=world_size) for r in range(world_size)]
    parts = [rank.local(torch.arange(n)) for rank in ranks]
    assert torch.cat(parts).tolist() == list(range(n))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_alone_everything_is_the_identity():
    alone = Distributed()
    tensor = torch.randn(3)
    assert alone.is_main
    assert alone.all_reduce_sum(tensor) is tensor
    assert alone.agree(True, False) == [True, False]
    assert alone.local(tensor).equal(tensor)
    alone.barrier()


def test_slurm_step_is_recognised(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    # A batch script on a four-task allocation, not started by srun, is alone.
    for name, value in {"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_JOB_ID": "77"}.items():
        monkeypatch.setenv(name, value)
    assert processes._slurm() is None
    for name, value in {"SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_ID": "0", "SLURM_PROCID": "3"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SLURM_LOCALID", "1")
    monkeypatch.setenv("SLURM_STEP_NUM_NODES", "1")
    assert processes._slurm() == Distributed(rank=3, local_rank=1, world_size=4)
    assert processes.os.environ["MASTER_ADDR"] == "127.0.0.1"
    assert 20000 <= int(processes.os.environ["MASTER_PORT"]) < 40000


def test_two_processes_started_by_torchrun_variables_write_one_log(tmp_path):
    pair = jobs.start_two(tmp_path, "--epochs", "1")
    for process in pair:
        jobs.result(process)
    logged = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in logged] == [0]
