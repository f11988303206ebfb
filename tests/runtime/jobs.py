"""Starting `training_job.py` as a process of its own: forked from a server that has imported torch."""

import json
import socket
import time
from collections.abc import Callable
from pathlib import Path

from tests.forked import Forked
from tests.runtime import training_job


class Job(Forked):
    def __init__(self, arguments: list[str], env: dict[str, str]) -> None:
        super().__init__(training_job.main, arguments, env=env)


def start(directory: Path, *options: str, env: dict[str, str] | None = None) -> Job:
    return Job([str(directory), *options], env or {})


def start_two(directory: Path, *options: str) -> list[Job]:
    """Two processes of one job, with the variables that torchrun sets."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]
    return [start(directory, *options, env={**common, **rank}) for rank in ranks]


def result(job: Job, expected: int = 0, seconds: float = 120.0) -> dict:
    """The JSON line that the job prints; its stderr if it was expected to fail."""
    code, out, err = job.finish(seconds)
    assert code == expected, f"exit code {code}\n{err}"
    return json.loads(out) if expected == 0 and out else {"stderr": err}


def wait_for(condition: Callable[[], bool], job: Job, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert job.alive, job.finish(0)
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def lines(path: Path) -> int:
    return path.read_text().count("\n") if path.exists() else 0
