"""Processes for the tests to start and kill, forked from a server that has imported everything: half a second each.

The server (multiprocessing's) is one for a test process, and has no threads when it forks.
"""

import contextlib
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

_context = multiprocessing.get_context("forkserver")
# Optimizers import torch._dynamo; tests.warm imports all that a job may need.
_context.set_forkserver_preload(["tests.runtime.training_job", "torch._dynamo", "tests.warm"])


class Forked:
    """A process that runs `main(*arguments)` and exits with what that returns; its output goes to files."""

    def __init__(self, main: Callable[..., int], *arguments: object, env: dict[str, str] | None = None) -> None:
        self._output = tempfile.mkdtemp()
        self._process = _context.Process(target=_run, args=(main, arguments, env or {}, self._output), daemon=True)
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

    def wait_until_stopped(self, seconds: float = 120.0) -> None:
        """Wait until it has stopped itself (SIGSTOP)."""
        deadline = time.monotonic() + seconds
        while "\nState:\tT" not in Path(f"/proc/{self.pid}/status").read_text():
            assert self.alive, self.finish(0)
            assert time.monotonic() < deadline, "waited in vain"
            time.sleep(0.01)

    def finish(self, seconds: float = 120.0) -> tuple[int | None, str, str]:
        """Its exit code (None: it had to be killed), stdout and stderr."""
        self._process.join(seconds)
        code = self._process.exitcode
        if code is None:
            self._process.kill()
            self._process.join()
        out, err = self.read("stdout"), self.read("stderr")
        self._process.close()
        shutil.rmtree(self._output)
        return code, out, err


def _run(main: Callable[..., int], arguments: tuple, env: dict[str, str], output: str) -> None:
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(Path(output, name), os.O_WRONLY | os.O_CREAT), number)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    warnings.simplefilter("error")
    os.environ.update(env)
    code = main(*arguments)
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.flush()
    sys.exit(code)
