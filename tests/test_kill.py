"""Kill it anywhere: a job of any kind, killed at random moments and started again, ends as one never touched.

ROBUSTRUN_KILLS says how often each is killed (2).
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

KILLS = int(os.environ.get("ROBUSTRUN_KILLS", "2"))
DIGITS = ("task=digits", "threat.epsilon=0.1")
ATTACK = ("certifier=pgd", "certifier.steps=20", "certifier.restarts=2", "certifier.batch_size=20")
CLASSIFIER = "mon_fc task=digits model.features=20 trainer.epochs=2 certifier.examples=50"
JOBS = {
    "training": (*DIGITS, "model=mnist_cnn", "trainer=pgd", "trainer.epochs=15", "trainer.steps=3", *ATTACK),
    "certification": (
        *DIGITS, "model=mlp_classifier", "trainer=standard", "trainer.epochs=2", "certifier=autoattack",
        "certifier.examples=60", "certifier.batch_size=10", "certifier.steps=30", "certifier.queries=300"),
    "smoothing": (
        *DIGITS, "model=mlp_classifier", "trainer=gaussian_augmentation", "trainer.epochs=2", "certifier=smoothing",
        "certifier.examples=30", "certifier.batch_size=5", "certifier.n=1000"),
    "closed form": (
        "task=digits17", "model=linear", "trainer=least_squares", "certifier=label_flip", "certifier.partitions=0",
        "certifier.batch_size=10"),
    "MILP": (
        "task=injector", "task.train=500", "task.valid=50", "task.test=12", "model=mlp_regressor", "model.hidden=[10]",
        "trainer=regression", "trainer.epochs=3", "certifier=sensor_milp", "certifier.examples=12",
        "certifier.batch_size=2"),
    "environment": (
        "task=unsafe_grid_small", "model=tabular_agent", "trainer=ase", "trainer.trials=2",
        "certifier=safe_exploration", "certifier.frames=2"),
    "needs": (
        "task=digits", f"+needs.classifier='{CLASSIFIER}'", "model=denoised_small", "model.denoiser.width=4",
        "model.denoiser.depth=3", "trainer=denoiser", "trainer.epochs=3", "certifier=smoothing",
        "certifier.examples=20", "certifier.batch_size=5", "certifier.n=500"),
    "sweep": (
        "-m", *DIGITS, "model=mnist_cnn", "trainer=fgsm", "trainer.epochs=5", "seed=0,1,2", *ATTACK,
        "certifier.examples=100"),
}  # fmt: skip


def start(arguments: tuple[str, ...], outputs: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "robustrun.cli", *arguments]
    environment = {**os.environ, "ROBUSTRUN_OUTPUTS": str(outputs)}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True, start_new_session=True)


def finish(process: subprocess.Popen) -> None:
    _, said = process.communicate(timeout=500)
    assert process.returncode == 0, said


def findings(outputs: Path) -> dict[str, tuple]:
    """What every job found, by its directory: metrics, records of examples, curves (but for times)."""
    found = {}
    for path in sorted(outputs.rglob("result.json")):
        examples, curve = path.with_name("examples.csv"), path.with_name("metrics.jsonl")
        lines = [json.loads(line) for line in curve.read_text().splitlines()] if curve.exists() else []
        for line in lines:
            for name in [name for name in line if "time" in name or "seconds" in name]:
                del line[name]
        record = examples.read_text() if examples.exists() else ""
        metrics = {k: v for k, v in json.loads(path.read_text())["metrics"].items() if "seconds" not in k}
        found[path.parent.relative_to(outputs).as_posix()] = metrics, record, lines
    return found


@pytest.mark.slow
@pytest.mark.parametrize("kind", JOBS)
def test_a_killed_job_ends_as_an_undisturbed_one(kind, tmp_path):
    began = time.monotonic()
    finish(start(JOBS[kind], tmp_path / "undisturbed"))
    duration = time.monotonic() - began
    moments = random.Random(kind)
    for _ in range(KILLS):
        process = start(JOBS[kind], tmp_path / "killed")
        time.sleep(moments.uniform(0.3, 0.95) * duration)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        for path in (tmp_path / "killed").rglob("result.json"):
            json.loads(path.read_text())  # written whole, or not there
    finish(start(JOBS[kind], tmp_path / "killed"))
    assert findings(tmp_path / "killed") == findings(tmp_path / "undisturbed")
