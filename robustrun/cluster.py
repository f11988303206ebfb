"""Jobs on a SLURM cluster through submitit: submit, wait, and see how they stand, with accounting on or off."""

import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus

from robustrun.errors import ConfigError, DataError, JobFailed
from robustrun.report.results import Result
from robustrun.runtime.files import write_atomically

RECORD = ".slurm.json"  # in a run directory: the SLURM job that was last given it

_SHARED = {
    "timeout_min", "nodes", "tasks_per_node", "cpus_per_task", "gpus_per_node", "mem_gb", "name", "stderr_to_stdout",
}  # fmt: skip  # submitit's names for what every cluster has; its others carry the cluster's name
_POLL = 0.25  # seconds between two looks for a result
_ASK = 10.0  # seconds between two questions to SLURM
_LATE = 20.0  # seconds that a result may come after the end of its job, on a slow file system
_ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE"}


def require_slurm() -> None:
    """Raises ConfigError where this machine cannot submit jobs."""
    for module in ("submitit", "hydra_plugins.hydra_submitit_launcher"):
        try:
            __import__(module)
        except ImportError:
            raise ConfigError(
                f"hydra/launcher=slurm needs {module.rpartition('.')[2]}: pip install 'robustrun[slurm]'"
            ) from None
    if shutil.which("sbatch") is None:
        raise ConfigError(
            "hydra/launcher=slurm: there is no sbatch on this machine; log in to the cluster, or leave the launcher "
            "out to run the jobs here"
        )


def submit(
    function: Callable[..., Any], calls: Sequence[tuple], params: Mapping[str, Any], after: Sequence[str] = ()
) -> list[Any]:
    """Submit a call a job, as one array; submitit's jobs.

    Raises:
        ConfigError: SLURM refuses: no such partition, more than a node has, ...
    """
    import submitit

    params = {name: value for name, value in params.items() if value is not None}
    folder = params.pop("submitit_folder")
    executor = submitit.AutoExecutor(folder, cluster="slurm", slurm_max_num_timeout=params.pop("max_num_timeout"))
    if after:
        params["dependency"] = "afterok:" + ":".join(after)
        params["additional_parameters"] = {**params.get("additional_parameters", {}), "kill-on-invalid-dep": "yes"}
    if "cpus_per_task" in params:  # since SLURM 22.05 srun does not take it over from sbatch
        export = f"export SRUN_CPUS_PER_TASK={params['cpus_per_task']}"
        params["setup"] = [export, *params.get("setup", [])]
    said = io.StringIO()
    try:
        executor.update_parameters(**{n if n in _SHARED else f"slurm_{n}": v for n, v in params.items()})
        with contextlib.redirect_stderr(said):
            return executor.map_array(function, *zip(*calls, strict=True))
    except submitit.core.utils.FailedJobError as error:
        raise ConfigError(f"SLURM refuses the jobs: {_last_line(str(error))}") from None
    except (ValueError, NameError) as error:  # of submitit's own, for an option that it does not know
        raise ConfigError(f"hydra.launcher: {str(error).splitlines()[0]} (sbatch's: additional_parameters)") from None


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return re.sub(r"^\w+: error: (Batch job submission failed: )?", "", lines[-1]) if lines else "no reason given"


def record(jobs: Sequence[Any], run_dirs: Sequence[Path]) -> None:
    """Write into each run directory which SLURM job has it."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    for job, directory in zip(jobs, run_dirs, strict=bool(run_dirs)):
        content = {"job": job.job_id, "log": str(job.paths.stderr), "submitted_at": now}
        write_atomically(directory / RECORD, json.dumps(content).encode())


def unfinished(jobs: Sequence[Any]) -> list[JobReturn]:
    """What a launcher returns for jobs that it does not wait for: their numbers, and no status yet."""
    return [JobReturn(status=JobStatus.UNKNOWN, working_dir=job.job_id) for job in jobs]


def wait(jobs: Sequence[Any]) -> list[JobReturn]:
    """Wait for all jobs. Of one that SLURM ended without a result, an error is the result."""
    returned: dict[int, JobReturn] = {}
    ended: dict[int, float] = {}
    asked, said = time.monotonic() - _ASK, ""
    with _farewell(jobs):
        while len(returned) < len(jobs):
            for i, job in enumerate(jobs):
                if i not in returned and (found := _returned(job)) is not None:
                    returned[i] = found
            if time.monotonic() - asked > _ASK:
                asked = time.monotonic()
                states = queue()
                for i, job in enumerate(jobs):
                    state = states.get(job.job_id, ("gone", ""))[0]
                    if i in returned or state not in (*_ENDED, "gone"):
                        ended.pop(i, None)
                    elif asked - ended.setdefault(i, asked) > _LATE:
                        returned[i] = _failed(JobFailed(_ending(job, state)))
                if (news := _news(jobs, returned, states)) != said:
                    print(said := news, file=sys.stderr)
            time.sleep(_POLL if len(returned) < len(jobs) else 0)
    return [returned[i] for i in range(len(jobs))]


def _news(jobs: Sequence[Any], returned: Mapping[int, JobReturn], states: Mapping[str, tuple[str, str]]) -> str:
    """One line on how the jobs stand; a job that waits says what for."""
    waiting = [states.get(job.job_id, ("gone", "")) for i, job in enumerate(jobs) if i not in returned]
    words = [f"{state.lower()} ({reason})" if state == "PENDING" else state.lower() for state, reason in waiting]
    counts = {word: words.count(word) for word in dict.fromkeys(words)} | ({"done": len(returned)} if returned else {})
    return f"SLURM {jobs[0].job_id.partition('_')[0]}: " + ", ".join(f"{n} {word}" for word, n in counts.items())


@contextlib.contextmanager
def _farewell(jobs: Sequence[Any]) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        number = jobs[0].job_id.partition("_")[0]
        print(
            f"\nno longer waiting; the jobs go on: 'robustrun jobs' shows them, 'scancel {number}' ends them",
            file=sys.stderr,
        )
        raise


def _ending(job: Any, state: str) -> str:
    how = "is gone" if state == "gone" else f"ended as {state}"
    return f"SLURM job {job.job_id} {how} without a result: its log is {job.paths.stderr}"


def _returned(job: Any) -> JobReturn | None:
    """What the job's first process returned, if it has ended."""
    from submitit.core import utils

    path = utils.JobPaths(job.paths.folder, job.job_id, 0).result_pickle
    with contextlib.suppress(OSError):
        os.listdir(path.parent)  # network file systems show a new file only to who looks
    if not path.exists():
        return None
    try:
        outcome, value = utils.pickle_load(path)
    except Exception as error:
        return _failed(JobFailed(f"the result of SLURM job {job.job_id} cannot be read ({error}): see {path}"))
    if outcome == "success":
        return value
    last = [line for line in str(value).splitlines() if line.strip() and not line[0].isspace()][-1]  # of a traceback
    last = last.partition(": ")[2] or last
    return _failed(JobFailed(f"SLURM job {job.job_id}: {last} (its log is {job.paths.stderr})"))


def _failed(error: Exception) -> JobReturn:
    returned = JobReturn(status=JobStatus.FAILED)
    returned.return_value = error
    return returned


def queue() -> dict[str, tuple[str, str]]:
    """SLURM job number -> state and reason, of all jobs of this user that SLURM remembers (squeue, no accounting).

    Raises:
        ConfigError: this machine has no squeue.
        JobFailed: SLURM does not answer.
    """
    command = ["squeue", "--noheader", "--array", "--states=all", "--me", "--format=%i|%T|%r"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    except FileNotFoundError:
        raise ConfigError("there is no squeue on this machine: the jobs can be seen on the cluster alone") from None
    except (OSError, subprocess.SubprocessError) as error:
        said = _last_line(getattr(error, "stderr", None) or str(error))
        raise JobFailed(f"SLURM does not answer: {said}") from None
    parts = (line.split("|") for line in answer.splitlines())
    return {number: (state, reason) for number, state, reason in parts}


@dataclass(frozen=True)
class Standing:
    """How a job on the cluster stands."""

    number: str
    directory: Path
    state: str
    detail: str = ""


def standings(outputs: Path) -> list[Standing]:
    """Every job of the run directories below `outputs` that was given to SLURM, the newest last."""
    records = sorted(_records(outputs), key=lambda item: (item[1]["submitted_at"], item[1]["job"]))
    if not records:
        return []
    try:
        states, silent = queue(), ""
    except (ConfigError, JobFailed) as error:
        states, silent = {}, str(error)
    return [_standing(directory, content, states, silent) for directory, content in records]


def _records(outputs: Path) -> Iterator[tuple[Path, dict[str, str]]]:
    for path in outputs.rglob(RECORD):
        with contextlib.suppress(ValueError, OSError):  # being written, or damaged: it is a note, no result
            yield path.parent, json.loads(path.read_text())


def _standing(
    directory: Path, content: Mapping[str, str], states: Mapping[str, tuple[str, str]], silent: str
) -> Standing:
    number = content["job"]
    if (directory / "result.json").is_file():
        try:
            return Standing(number, directory, "done", Result.read(directory / "result.json").finished_at)
        except DataError as error:
            return Standing(number, directory, "damaged", str(error))
    state, reason = states.get(number, ("", ""))
    if state in ("PENDING", "RUNNING") or (state and state not in _ENDED):
        again = "to be resumed" if (directory / "checkpoints" / "last.pt").is_file() and state == "PENDING" else ""
        detail = "; ".join(filter(None, [again, "" if reason in ("None", "") else reason]))
        return Standing(number, directory, state.lower(), detail)
    if silent:
        return Standing(number, directory, "unknown", silent)
    return Standing(number, directory, "failed", f"{state or 'no longer known to SLURM'}; log: {content['log']}")
