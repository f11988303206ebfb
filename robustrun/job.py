"""The whole flow on one page: check -> build -> fit -> certify -> record."""

import csv
import io
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from omegaconf import OmegaConf
from torch import nn

from robustrun.check import Job
from robustrun.errors import ConfigError, JobFailed
from robustrun.report import environment, figures
from robustrun.report.results import Result
from robustrun.roles import Fitted, Report, Task
from robustrun.runtime import Checkpoints, Run
from robustrun.runtime.files import write_atomically
from robustrun.runtime.seeds import seed_globals
from robustrun.saved import restore, save


def run(job: Job) -> Result | None:
    """Run a checked job to its result, or as far as a signal lets it; a finished one is only read.

    Returns:
        The result; None on the ranks of a distributed job that do not record it.

    Raises:
        Stopped: a signal came; the same job resumes from what was saved.
        JobFailed: training diverged, a solver gave up, the disk is full.
        DataError: data or weights cannot be obtained, or a checkpoint is damaged.
    """
    for need in job.needs.values():
        if need.job is not None:
            run(need.job)
    directory, result = job.directory, job.directory / "result.json"
    if result.is_file() and not job.config.rerun:
        _refuse_other(job, directory)
        return Result.read(result)
    _claim(job, directory)
    with Run.create(directory, seed=job.seed, **_surroundings(job)) as surroundings:
        if surroundings.distributed.any(result.is_file()):
            if not job.config.rerun:  # another process has finished it in the meantime
                return Result.read(result)
            _forget(surroundings)
        return _run(job, surroundings)


def _run(job: Job, run: Run) -> Result | None:
    timings: dict[str, float] = {}
    started = time.perf_counter()
    if run.distributed.is_main:
        write_atomically(run.dir / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(job.plain())).encode())
        write_atomically(run.dir / "overrides.yaml", OmegaConf.to_yaml(list(job.overrides)).encode())
    task, trainer, certifier = (job.axes[axis].build() for axis in ("task", "trainer", "certifier"))
    with _timed("data", timings):
        task.load(run)
        certifier.check(task)
    with _timed("build", timings):
        seed_globals(run.seed_for("build"))
        model = job.axes["model"].build(task.spec)
        if isinstance(model, nn.Module):
            model = run.precision.place(model, run.device)
    with _timed("fit", timings):
        fitted = restore(model, run.checkpoints) or _from_another_shard(job, model, task, run)
        if fitted is None:
            seed_globals(run.seed_for("fit"))
            fitted = trainer.fit(task, model, run)
            save(fitted, task.spec, run.checkpoints)
    with _timed("certify", timings):
        seed_globals(run.seed_for("certify"))
        report = certifier.certify(task, fitted, run)
    timings["total"] = time.perf_counter() - started
    if not run.distributed.is_main:
        return None
    return _record(job, run, fitted, report, _accumulate(timings, fitted))


def _from_another_shard(job: Job, model: object, task: Task, run: Run) -> Fitted | None:
    """The model that another part of the same certification has trained: all parts must judge one model."""
    for directory in job.kin:
        fitted = restore(model, Checkpoints(directory / "checkpoints"))
        if fitted is not None:
            save(fitted, task.spec, run.checkpoints)
            return fitted
    return None


def _record(job: Job, run: Run, fitted: Fitted, report: Report, timings: dict[str, float]) -> Result:
    figures.write(report.figures, run.dir / "figures")
    for name, content in report.files.items():
        write_atomically(run.dir / name, content)
    if report.examples is not None:
        write_atomically(run.dir / "examples.csv", _examples_csv(report.examples).encode())
    counts = {"parameters": _parameters(fitted.model), **report.counts}
    result = Result(
        exp=job.exp,
        paper=job.config.paper,
        row=job.row,
        shard=job.shard,
        metrics={name: float(value) for name, value in report.metrics.items()},
        paper_metrics=job.plain()["paper_metrics"] or {},
        timings=timings,
        counts={name: int(value) for name, value in counts.items()},
        env=environment.describe(run.device, run.precision.name, run.distributed.world_size),
        seed=job.seed,
        config_sha256=job.sha256,
        overrides=list(job.overrides),
        finished_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    run.tracker.summary(result.metrics)
    result.write(run.dir / "result.json")
    return result


def _surroundings(job: Job) -> dict:
    config = job.plain()
    tracker = config["tracker"]
    options = {"tracker": tracker["name"], "project": tracker.get("project", "robustrun")}
    name = job.subdir.rpartition("/")[2]  # shards are runs of their own to a tracker
    return {**config["runtime"], **options, "run_id": name, "name": job.title, "config": config}


def _claim(job: Job, directory: Path) -> None:
    """Mark the run directory as this job's; refuse one that holds another."""
    directory.mkdir(parents=True, exist_ok=True)
    _refuse_other(job, directory)
    write_atomically(directory / ".job", job.mark.encode())


def _refuse_other(job: Job, directory: Path) -> None:
    holder = job.holder(directory)
    if holder not in (None, job.mark):
        raise ConfigError(f"{directory} holds another job ({holder[:12]}): choose another hydra.run.dir")


def _forget(run: Run) -> None:
    """Make a finished job unfinished; killed on the way, it is finished still."""
    run.clear()
    if run.distributed.is_main:
        for name in ("examples.csv", "result.json"):
            (run.dir / name).unlink(missing_ok=True)
    run.distributed.barrier()


@contextmanager
def _timed(name: str, timings: dict[str, float]) -> Iterator[None]:
    start = time.perf_counter()
    yield
    timings[name] = time.perf_counter() - start


def _accumulate(timings: dict[str, float], fitted: Fitted) -> dict[str, float]:
    # The trainer knows how long it trained, interruptions included and evaluation during training excluded.
    if "train_seconds" in fitted.extra:
        timings["train"] = float(fitted.extra["train_seconds"])
    return {name: round(seconds, 3) for name, seconds in timings.items()}


def _parameters(model: object) -> int:
    return sum(p.numel() for p in model.parameters()) if isinstance(model, nn.Module) else 0


def _examples_csv(columns: dict[str, np.ndarray]) -> str:
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise JobFailed(f"the certifier's columns differ in length: {lengths}")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*(np.asarray(column).tolist() for column in columns.values()), strict=True))
    return text.getvalue()
