"""Stopping in good order: a signal sets a flag, and the job leaves at its next safe point with all saved."""

import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from robustrun.errors import Stopped

_NAMES = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2")


class StopFlag:
    """Which stop signals have arrived. `requested` is all that most code needs.

    The handlers only set the flag; a second SIGINT raises KeyboardInterrupt at once.
    """

    def __init__(self) -> None:
        self.received: list[int] = []
        self.deferred = False  # a training loop is at work: it leaves by itself, having saved
        self._previous: dict[int, Any] = {}

    @property
    def requested(self) -> bool:
        """Whether a signal has come."""
        return bool(self.received)

    @property
    def signum(self) -> int | None:
        """The first signal that arrived."""
        return self.received[0] if self.received else None

    @contextmanager
    def installed(self) -> Iterator["StopFlag"]:
        """Catch the stop signals inside the block (only in the main thread does python allow handlers)."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        for name in _NAMES:
            if (signum := getattr(signal, name, None)) is not None:
                self._previous[signum] = signal.signal(signum, self._handle)
        try:
            yield self
        finally:
            for signum, handler in self._previous.items():
                signal.signal(signum, handler if handler is not None else signal.SIG_DFL)
            self._previous.clear()

    def _handle(self, signum: int, frame: Any) -> None:
        if signum == signal.SIGINT and signum in self.received:
            raise KeyboardInterrupt
        first = not self.received
        self.received.append(signum)
        if first:  # by the bare system call: a handler may interrupt python's own writing
            name = signal.Signals(signum).name
            again = " (Ctrl-C again: at once)" if signum == signal.SIGINT else ""
            os.write(2, f"\n{name}: stopping at the next safe point{again}\n".encode())

    def leave(self, *, is_main: bool = True, saved: str = "") -> NoReturn:
        """End the job after everything has been saved.

        Under submitit its own handler is called, which requeues the job; a first Ctrl-C becomes
        KeyboardInterrupt; anything else becomes `Stopped`.
        """
        if signal.SIGINT not in self.received:
            self._requeue(is_main)
        if self.signum == signal.SIGINT:
            raise KeyboardInterrupt(f"interrupted{saved}: the same command resumes")
        name = signal.Signals(self.signum).name if self.signum is not None else "another process's signal"
        raise Stopped(f"stopped on {name}{saved}: the same command resumes")

    def _requeue(self, is_main: bool) -> None:
        """Under submitit: requeue the job and exit. Elsewhere: nothing."""
        requeue = next((h for h in self._previous.values() if _is_submitit(h) and h.__name__ != "bypass"), None)
        if requeue is None:
            return
        # SLURM announces a time limit with submitit's signal, a preemption with SIGTERM while the job still counts
        # as running; then it waits for the job to act. A job that it is requeueing or cancelling by itself is left
        # to it: to exit without a result is all there is to do.
        announced = {*self.received} - {signal.SIGTERM} or not self.received
        if is_main and (announced or _slurm_state() == "RUNNING"):
            requeue(self.signum or signal.SIGUSR2, None)  # exits, or raises: no further time-out is allowed
        time.sleep(0 if is_main else 60)  # another rank must not leave before the main one has requeued
        raise SystemExit(Stopped.exit_code)


def _slurm_state() -> str | None:
    """The state of this job as SLURM sees it; None if it does not say."""
    number = os.environ.get("SLURM_JOB_ID")
    try:
        command = ["scontrol", "--oneliner", "show", "job", str(number)]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    state = re.search(r"JobState=(\w+)", answer)
    return state.group(1) if state else None


def _is_submitit(handler: Callable | Any) -> bool:
    return callable(handler) and (getattr(handler, "__module__", None) or "").split(".")[0] == "submitit"
