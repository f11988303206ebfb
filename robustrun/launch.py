"""Running planned jobs through Hydra: a single one in this process, several through the configured launcher.

The launcher is called directly, because a comparison's rows are whole override lists and no sweeper makes
those; launchers and directories behave as Hydra's users know them.
"""

import errno
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra._internal.callbacks import Callbacks
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus, run_job
from hydra.errors import InstantiationException
from hydra.types import HydraContext
from omegaconf import DictConfig

from robustrun.check import Job, current
from robustrun.compose import Composer
from robustrun.errors import ConfigError, Stopped
from robustrun.plan import waves


@dataclass(frozen=True)
class Outcome:
    """How one job ended: its result file, the exception that ended it, or nothing yet if it was only submitted."""

    job: Job
    error: BaseException | None = None
    submitted: str | None = None  # its number on the cluster, where nobody waits for it


def task(config: DictConfig) -> float | None:
    """What Hydra calls for each job, in this process or on a node; returns the objective, if one is set.

    Raises:
        Stopped: a signal stopped the sweep before this job began.
    """
    from robustrun.job import run

    if _stopped:
        raise Stopped("not started: a signal stopped the sweep")
    job = current(config, Composer.current())
    try:
        result = run(job)
    except Stopped:
        _stopped.append(job)
        raise
    return result.metrics.get(job.config.objective) if result and job.config.objective else None


_stopped: list[Job] = []  # a job of this process was stopped by a signal: the sweep's later ones must not start


def launch(composer: Composer, jobs: Sequence[Job], multirun: bool) -> list[Outcome]:
    """Run jobs and their needs; finished ones are left alone. No failure takes the others with it."""
    pending = waves(jobs)
    for job in itertools.chain.from_iterable(pending):
        _make(job.directory)
    errors: dict[Path, BaseException] = {}
    submitted: dict[Path, str] = {}
    for wave in pending:
        ready = [job for job in wave if not _failed_need(job, errors)]
        for job in wave:
            failed = _failed_need(job, errors)
            if failed is not None:
                errors[job.directory] = failed
        if not ready:
            continue
        alone = len(pending) == 1 and len(wave) == 1 and not multirun
        returns = [_run_here(composer, wave[0])] if alone else _run_launcher(composer, ready, submitted)
        for job, returned in zip(ready, returns, strict=True):
            if returned.status is JobStatus.UNKNOWN:
                submitted[job.directory] = returned.working_dir
            elif returned.status is not JobStatus.COMPLETED:
                errors[job.directory] = returned._return_value
    return [Outcome(job, errors.get(job.directory), submitted.get(job.directory)) for job in jobs]


def detached(composer: Composer, overrides: Sequence[str]) -> list[str]:
    """The overrides for a multirun that is submitted and not waited for.

    Raises:
        ConfigError: they choose no launcher that can do that.
    """
    if not any(o.key_or_group == "hydra/launcher" and o.value() == "slurm" for o in composer.parse(overrides)):
        raise ConfigError("--detach leaves jobs to a cluster: add hydra/launcher=slurm")
    return [*overrides, "hydra.launcher.detach=true"]


def _make(directory: Path) -> None:
    """Make a run directory before anything starts: what cannot be written is a wrong request."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise ConfigError(
            f"cannot make the run directory {directory} ({error.strerror or error}): "
            "choose another place with paths.outputs= or $ROBUSTRUN_OUTPUTS"
        ) from None


def _failed_need(job: Job, errors: dict[Path, BaseException]) -> BaseException | None:
    return next((errors[need.path] for need in job.needs.values() if need.path in errors), None)


def _context(composer: Composer, config: DictConfig) -> HydraContext:
    return HydraContext(config_loader=composer.loader, callbacks=Callbacks(config))


def _run_here(composer: Composer, job: Job) -> JobReturn:
    context = _context(composer, job.config)
    context.callbacks.on_run_start(config=job.config, config_name="config")
    returned = run_job(
        task_function=task,
        config=job.config,
        job_dir_key="hydra.run.dir",
        job_subdir_key=None,
        hydra_context=context,
        configure_logging=False,
    )
    context.callbacks.on_run_end(config=job.config, config_name="config", job_return=returned)
    return returned


def _run_launcher(composer: Composer, jobs: Sequence[Job], submitted: Mapping[Path, str]) -> Sequence[JobReturn]:
    config = jobs[0].config
    context = _context(composer, config)
    try:
        launcher = Plugins.instance().instantiate_launcher(hydra_context=context, task_function=task, config=config)
    except InstantiationException as error:
        raise (
            error.__cause__
            if isinstance(error.__cause__, ConfigError)
            else ConfigError(
                f"hydra/launcher: {str(error).splitlines()[0]}; is its package installed ('robustrun doctor')?"
            )
        ) from None
    if hasattr(launcher, "run_dirs"):  # ours, for SLURM: it keeps records, and lets jobs wait for what they need
        launcher.run_dirs = [job.directory for job in jobs]
        launcher.after = list(submitted.values())
    context.callbacks.on_multirun_start(config=config, config_name="config")
    returned = launcher.launch([list(job.overrides) for job in jobs], initial_job_idx=0)
    context.callbacks.on_multirun_end(config=config, config_name="config")
    return returned
