"""A killed and resumed job ends with the same bits as one left alone; signals save and leave."""

import json
import signal
import time

import pytest

from robustrun.runtime import Checkpoints
from tests.runtime import jobs


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    directory = tmp_path_factory.mktemp("undisturbed")
    return directory, jobs.result(jobs.start(directory))


def test_undisturbed_job_learns_and_logs_each_epoch_once(undisturbed):
    directory, result = undisturbed
    assert len(result["history"]) == 4
    assert result["steps"] == 40
    assert result["history"][-1]["loss"] < 0.7 * result["history"][0]["loss"]
    logged = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in logged] == [0, 1, 2, 3]
    assert [line["loss"] for line in logged] == [row["loss"] for row in result["history"]]
    assert logged[-1]["train_seconds"] > 0


def test_kill_9_within_epochs_and_resume_gives_the_same_bits(undisturbed, tmp_path):
    """Killed twice in mid-epoch, saving every 0.05 s; dropout draws from the global generator."""

    def saved():
        # Between two renames of a save only the previous checkpoint is there.
        return (tmp_path / "checkpoints").glob("last*.pt")

    for epochs_done in (1, 2):
        process = jobs.start(tmp_path, "--pause", "0.02", "--checkpoint-every", "0.05")
        jobs.wait_for(lambda n=epochs_done: jobs.lines(tmp_path / "metrics.jsonl") >= n and any(saved()), process)
        time.sleep(0.1)
        process.send_signal(signal.SIGKILL)
        jobs.result(process, expected=-signal.SIGKILL)
    assert any(saved())
    assert jobs.result(jobs.start(tmp_path)) == undisturbed[1]
    steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert steps == [0, 1, 2, 3]
    assert "resuming at epoch" in (tmp_path / "log.txt").read_text()


@pytest.mark.parametrize("saved", [(), ("best",)])
def test_killed_before_the_first_checkpoint_logs_nothing_twice(saved, undisturbed, tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "loss": 0.7}\n')  # logged and killed:
    for name in saved:  # the best weights are written before the checkpoint that training resumes from
        Checkpoints(tmp_path / "checkpoints").save(name, {"model": {}, "epoch": 0})
    assert jobs.result(jobs.start(tmp_path)) == undisturbed[1]
    assert jobs.lines(tmp_path / "metrics.jsonl") == 4


def test_finished_job_started_again_does_nothing_and_says_the_same(undisturbed):
    directory, result = undisturbed
    assert jobs.result(jobs.start(directory)) == result
    assert jobs.lines(directory / "metrics.jsonl") == 4


@pytest.mark.parametrize(
    ("signum", "code"),
    [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGUSR2, 75), (signal.SIGINT, 130)],
)
def test_signal_saves_at_the_step_boundary_and_leaves(undisturbed, tmp_path, signum, code):
    process = jobs.start(tmp_path, "--pause", "0.05")
    jobs.wait_for(lambda: jobs.lines(tmp_path / "metrics.jsonl") >= 1, process)
    time.sleep(0.2)
    process.send_signal(signum)
    message = jobs.result(process, expected=code)["stderr"]
    assert f"{signum.name}: stopping at the next safe point" in message
    if code == 75:
        assert "saved at epoch 2 of 4, step" in message
        assert "the same command resumes" in message
    assert "Traceback" not in message
    assert jobs.result(jobs.start(tmp_path)) == undisturbed[1]


def test_second_ctrl_c_quits_at_once(tmp_path):
    process = jobs.start(tmp_path, "--pause", "30")
    jobs.wait_for(lambda: (tmp_path / "metrics.jsonl").exists(), process)
    time.sleep(0.7)
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert process.alive
    process.send_signal(signal.SIGINT)
    jobs.result(process, expected=130, seconds=5)


def test_nan_stops_the_job_and_keeps_the_last_good_checkpoint(undisturbed, tmp_path):
    message = jobs.result(jobs.start(tmp_path, "--explode", "25"), expected=1)["stderr"]
    assert "training diverged in epoch 3" in message
    assert "loss is nan" in message
    assert str(tmp_path / "checkpoints" / "last.pt") in message
    assert jobs.result(jobs.start(tmp_path)) == undisturbed[1]  # from epoch 3 on, without the accident


def test_nan_is_noticed_within_a_long_epoch(tmp_path):
    process = jobs.start(tmp_path, "--explode", "2", "--pause", "0.5")
    message = jobs.result(process, expected=1)["stderr"]
    assert "in epoch 1 at step" in message
    assert not (tmp_path / "checkpoints" / "last.pt").exists()


def test_two_jobs_on_one_directory(tmp_path):
    first = jobs.start(tmp_path, "--pause", "0.2")
    jobs.wait_for(lambda: (tmp_path / ".owner").exists(), first)
    message = jobs.result(jobs.start(tmp_path), expected=2)["stderr"]
    assert f"another process (pid {first.pid} on host" in message
    assert str(tmp_path) in message
    first.send_signal(signal.SIGKILL)
    jobs.result(first, expected=-signal.SIGKILL)
