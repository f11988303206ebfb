"""Starting `training_job.py` as a process of its own: forked from a server that has imported torch."""

import json
import multiprocessing
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.runtime.training_job", "torch._dynamo"])  # optimizers import the latter


class Job:
    def __init__(self, arguments: list[str], env: dict[str, str]) -> None:
        self._output = tempfile.mkdtemp()
        self._process = _context.Process(target=_run, args=(arguments, env, self._output), daemon=True)
        self._process.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.is_alive()

    def read(self, stream: str) -> str:
        path = Path(self._output, stream)
        return path.read_text() if path.exists() else ""

    def send_signal(self, signum: int) -> None:
        os.kill(self.pid, signum)

    def finish(self, seconds: float) -> tuple[int | None, str, str]:
        self._process.join(seconds)
        code = self._process.exitcode
        if code is None:
            self._process.kill()
            self._process.join()
        out, err = self.read("stdout"), self.read("stderr")
        self._process.close()
        shutil.rmtree(self._output)
        return code, out, err


def _run(arguments: list[str], env: dict[str, str], output: str) -> None:
    from tests.runtime import training_job

    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(Path(output, name), os.O_WRONLY | os.O_CREAT), number)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    warnings.simplefilter("error")
    os.environ.update(env)
    sys.exit(training_job.main(arguments))


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
