"""Sweeps on a real SLURM: arrays, processes, preemption, time limits, failures, refusals."""

import json
import os
import re
import subprocess
import time
from itertools import pairwise

import pytest

from robustrun import cli
from robustrun.report import tables

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.usefixtures("sandbox")]

DIGITS = ("task=digits", "model=mnist_cnn", "trainer=fgsm", "threat.epsilon=0.1", "certifier=pgd")
SMALL = ("certifier.steps=3", "certifier.restarts=1", "certifier.examples=60", "certifier.batch_size=20")
SLURM = ("-m", "hydra/launcher=slurm")

TABLE = """
paper: toy
tables:
  digits:
    caption: Three rows, one of which diverges
    source: nowhere
    columns: {clean_accuracy: {heading: clean, unit: "%", better: higher, tolerance: 100}}
    rows:
      zero: {label: zero start, overrides: [OVERRIDES, trainer.start=zero], paper: {clean_accuracy: 50}}
      bad: {label: diverging, overrides: [OVERRIDES, trainer.optimizer.lr=1e8], paper: {clean_accuracy: 50}}
      good: {label: random start, overrides: [OVERRIDES], paper: {clean_accuracy: 50}}
"""


def scontrol(job: str) -> dict[str, str]:
    answer = subprocess.run(["scontrol", "-o", "show", "job", job], capture_output=True, text=True, check=True)
    return dict(re.findall(r"(\w+)=(\S*)", answer.stdout))


def wait_for(condition, what: str, seconds: float = 120):
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"no {what} after {seconds} seconds"
        time.sleep(0.1)
    return value


def submitted(tmp_path) -> tuple[str, "os.PathLike"]:
    (record,) = (tmp_path / "outputs").rglob(".slurm.json")
    return json.loads(record.read_text())["job"], record.parent


def start_again_now(job: str) -> None:
    """A requeued job waits for two minutes unless told otherwise; one that starts before the old is gone is held."""
    wait_for(lambda: scontrol(job)["Restarts"] == "1" and scontrol(job)["JobState"] == "PENDING", "requeue", 150)

    def started() -> bool:
        if scontrol(job)["JobState"] != "PENDING":
            return True
        for command in (["release", job], ["update", f"jobid={job}", "StartTime=now"]):
            subprocess.run(["scontrol", *command], capture_output=True)
        time.sleep(2)
        return False

    wait_for(started, "second start", 200)


def test_a_table_with_a_failing_row(tmp_path, monkeypatch, capfd):
    overrides = ", ".join([*DIGITS, *SMALL])
    file = tmp_path / "experiments" / "toy" / "tables.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(TABLE.replace("OVERRIDES", overrides))
    monkeypatch.setattr(tables, "experiments_dir", lambda: tmp_path / "experiments")
    monkeypatch.setenv("ROBUSTRUN_OUTPUTS", str(tmp_path / "outputs"))
    command = ["table", "toy.digits", "--run", "trainer.epochs=3", "hydra/launcher=slurm"]
    assert cli.run(command) == 1
    out, err = capfd.readouterr()
    assert "toy.digits, row 'bad': " in err
    assert "diverged" in err
    assert "Traceback" not in err
    assert "REDUCED: trainer.epochs=3" in out
    assert out.count("done (reduced)") == 2
    assert len(list((tmp_path / "outputs" / ".submitit").glob("*_*/*_result.pkl"))) == 3, "one array of three"
    assert cli.run(["table", "toy.digits"]) == 0
    assert capfd.readouterr().out.count("missing") == 3, "a reduced row is not the paper's"


def test_two_processes_are_one_job(cli, tmp_path):
    done = cli(*DIGITS, *SMALL, "trainer.epochs=2", *SLURM, "hydra.launcher.tasks_per_node=2")
    assert done.returncode == 0, done.stderr
    (result,) = (tmp_path / "outputs").rglob("result.json")
    assert json.loads(result.read_text())["env"]["world_size"] == 2


def test_two_nodes_are_one_job(cli, tmp_path):
    two_nodes = ("hydra.launcher.partition=pair", "hydra.launcher.nodes=2", "hydra.launcher.cpus_per_task=1")
    done = cli(*DIGITS, *SMALL, "trainer.epochs=2", *SLURM, *two_nodes)
    assert done.returncode == 0, done.stderr
    (result,) = (tmp_path / "outputs").rglob("result.json")
    assert json.loads(result.read_text())["env"]["world_size"] == 2
    assert scontrol(submitted(tmp_path)[0])["NumNodes"] == "2"


def test_a_preempted_job_ends_as_an_undisturbed_one(cli, tmp_path):
    job_overrides = (*DIGITS, *SMALL, "trainer.epochs=60", "tracker=wandb")
    everything = f"hydra.launcher.cpus_per_task={os.cpu_count()}"
    assert cli(*job_overrides, *SLURM, everything, "--detach").returncode == 0
    job, run_dir = submitted(tmp_path)
    wait_for((run_dir / "checkpoints" / "last.pt").is_file, "checkpoint")
    urgent = [
        "sbatch",
        "--partition=urgent",
        f"--cpus-per-task={os.cpu_count()}",
        "--output=/dev/null",
        "--wrap=sleep 1",
    ]
    subprocess.run(urgent, check=True, capture_output=True)
    start_again_now(job)
    assert "to be resumed" in cli("jobs").stdout or scontrol(job)["JobState"] != "PENDING"
    wait_for((run_dir / "result.json").is_file, "result")
    disturbed = json.loads((run_dir / "result.json").read_text())
    done = cli(*job_overrides, ROBUSTRUN_OUTPUTS=str(tmp_path / "undisturbed"))
    assert done.returncode == 0, done.stderr
    (undisturbed,) = (tmp_path / "undisturbed").rglob("result.json")
    assert disturbed["metrics"] == json.loads(undisturbed.read_text())["metrics"]
    attempts = [path.name.rsplit("-", 1) for path in (run_dir / "wandb").glob("offline-run-*")]
    assert len(attempts) == 2
    assert {run_id for _, run_id in attempts} == {run_dir.name}, "one run to wandb"
    assert "done" in cli("jobs").stdout


def test_a_job_over_its_time_limit_is_requeued_and_goes_on_where_it_was(cli, tmp_path):
    limits = ("hydra.launcher.timeout_min=2", "hydra.launcher.signal_delay_s=60")
    assert cli(*DIGITS, *SMALL, "trainer.epochs=100000", *SLURM, *limits, "--detach").returncode == 0
    job, run_dir = submitted(tmp_path)
    start_again_now(job)
    curve = run_dir / "metrics.jsonl"
    before = len(curve.read_text().splitlines())
    wait_for(lambda: len(curve.read_text().splitlines()) > before + 2, "further epoch", 400)
    subprocess.run(["scancel", job], check=True)
    wait_for(lambda: scontrol(job)["JobState"] == "CANCELLED", "end")
    lines = [json.loads(line) for line in curve.read_text().splitlines()]
    assert len({b["step"] - a["step"] for a, b in pairwise(lines)}) == 1, "no epoch lost, none twice"
    assert max(b["time"] - a["time"] for a, b in pairwise(lines)) > 1, "there was a pause"
    assert "CANCELLED" in cli("jobs").stdout


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ("hydra.launcher.partition=nowhere", "Invalid partition name specified"),
        ("hydra.launcher.cpus_per_task=9999", "More processors requested than permitted"),
    ],
)
def test_a_refusal_is_one_sentence(option, sentence, cli):
    done = cli(*DIGITS, *SLURM, option)
    assert done.returncode == 2
    assert done.stderr == f"robustrun: SLURM refuses the jobs: {sentence}\n"
