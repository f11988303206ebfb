"""Stopping in good order: a signal sets a flag, and the job leaves at its next safe point with all saved."""

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from robustrun.errors import Stopped

logger = logging.getLogger("robustrun")

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
        for signum in dict.fromkeys(self.received):
            handler = self._previous.get(signum)
            if _is_submitit(handler):
                handler(signum, None)  # requeues and exits; for signals that submitit ignores it comes back
                if not is_main and handler.__name__ != "bypass":
                    time.sleep(60)  # the main rank is requeueing: leaving now would kill it
        if self.signum == signal.SIGINT:
            raise KeyboardInterrupt
        name = signal.Signals(self.signum).name if self.signum is not None else "another process's signal"
        raise Stopped(f"stopped on {name}{saved}: the same command resumes")


def _is_submitit(handler: Callable | Any) -> bool:
    return callable(handler) and (getattr(handler, "__module__", None) or "").split(".")[0] == "submitit"
