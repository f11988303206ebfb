"""A run directory: made, locked against a second process, and logged into."""

import json
import logging
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from robustrun.errors import ConfigError

logger = logging.getLogger("robustrun")

_DYING = 10.0  # seconds that the worker processes of a killed job may hold its lock


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Make the directory and hold its lock; the system frees the lock of a process that dies.

    Raises:
        ConfigError: it cannot be written, or another process holds it.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe = directory / f".writable-{os.getpid()}"
        probe.touch()
        probe.unlink(missing_ok=True)  # the holder of the lock may have swept it away
    except OSError as error:
        raise ConfigError(
            f"cannot write to the run directory {directory} ({error.strerror or error}): "
            "choose another place with paths.outputs= or $ROBUSTRUN_OUTPUTS"
        ) from error
    lock, owner_file = FileLock(directory / ".lock", thread_local=False), directory / ".owner"
    deadline = time.monotonic() + _DYING
    while True:
        try:
            lock.acquire(timeout=0.1)
            break
        except Timeout:
            owner = _read_owner(owner_file)
            dead = owner.get("host") == socket.gethostname() and not _alive(owner.get("pid"))
            if not dead or time.monotonic() > deadline:
                raise ConfigError(
                    f"another process (pid {owner.get('pid', '?')} on host {owner.get('host', '?')}) "
                    f"is running this job in {directory}"
                ) from None
    try:
        _sweep(directory)
        owner_file.write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
        yield
    finally:
        owner_file.unlink(missing_ok=True)
        lock.release()


def _sweep(directory: Path) -> None:
    """Remove what a killed process was writing: only the holder of the lock writes here, but for claims."""
    for leftover in (*directory.glob(".*.tmp"), *directory.glob("figures/.*.tmp"), *directory.glob(".writable-*")):
        if not leftover.name.startswith("..job."):
            leftover.unlink(missing_ok=True)


def _read_owner(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}


def _alive(pid: Any) -> bool:
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except (OSError, TypeError, ValueError):
        return True
    return True


class _Stderr(logging.StreamHandler):
    """Writes to whatever sys.stderr is at the moment: a progress bar puts itself in its place."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> Any:
        return sys.stderr


class _File(logging.FileHandler):
    """A log file that is no reason to fail: a full disk is said by what the job itself cannot write."""

    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exception(), OSError):
            super().handleError(record)

    def close(self) -> None:
        with suppress(OSError):
            super().close()


@contextmanager
def logging_to(path: Path | None, *, level: int = logging.INFO) -> Iterator[None]:
    """Send the log of `robustrun` to the file (if any) and to stderr inside the block."""
    console = _Stderr()
    console.setFormatter(logging.Formatter("%(message)s"))
    handlers: list[logging.Handler] = [console]
    if path is not None:
        file = _File(path)
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        handlers.append(file)
    before = logger.level, logger.propagate
    logger.setLevel(level)
    logger.propagate = False  # a root handler (Hydra's, say) would print every line twice
    for handler in handlers:
        logger.addHandler(handler)
    try:
        yield
    finally:
        for handler in handlers:
            logger.removeHandler(handler)
            handler.close()
        logger.setLevel(before[0])
        logger.propagate = before[1]
