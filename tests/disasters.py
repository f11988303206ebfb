"""A command line in a process to which something happens: killed, out of disk, out of permission, out of time.

What happens is counted in what the process does below its outputs, so that it happens at the same moment wherever the
test runs: in bytes written, in changes to files (opened for writing, renamed, removed), or in its processor time.
"""

import base64
import builtins
import errno
import io
import json
import os
import random
import resource
import signal
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

_CHANGES = {"os.rename": 1, "os.remove": 0, "os.mkdir": 0, "os.rmdir": 0, "os.truncate": 0, "sqlite3.connect": 0}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_DAY = 86400.0
_PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
)  # one pixel


@dataclass
class Counts:
    """What a process has done: the units in which its moments are given."""

    changes: int = 0
    bytes: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Disaster:
    """What happens to the process. Moments are numbers of changes, of bytes, or seconds of processor time.

    Attributes:
        kill_at: (unit, moment): it ends as by kill -9; in bytes, in the middle of a write.
        full_after: bytes after which the disk is full.
        read_only_after: changes after which the file system refuses all others.
        stop_when_owner: it stops itself (SIGSTOP) once, when it holds its first run directory.
        clock: seed of a wall clock that jumps by days at every change.
    """

    kill_at: tuple[str, float] | None = None
    full_after: int | None = None
    read_only_after: int | None = None
    stop_when_owner: bool = False
    clock: int | None = None


def run(arguments: list[str], outputs: str, disaster: Disaster, counts: str | None, experiments: str | None) -> int:
    """The command line; its exit code. `counts` is a file for what it did in all, `experiments` holds its tables."""
    from robustrun import cli
    from robustrun.report import figures, tables

    os.environ["ROBUSTRUN_OUTPUTS"] = outputs
    if experiments is not None:
        tables.experiments_dir = lambda: Path(experiments)
    figures.draw = lambda figure, file: file.write(_PNG)  # drawing takes longer than all the rest of a small job
    happening = _Happening(outputs, disaster)
    happening.begin()
    code = cli.run(arguments)
    if counts is not None:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        happening.done.seconds = usage.ru_utime + usage.ru_stime
        Path(counts).write_text(json.dumps(asdict(happening.done)))
    return code


class _Happening:
    def __init__(self, root: str, disaster: Disaster):
        self.root, self.disaster, self.done = root, disaster, Counts()
        self.unit, self.moment = disaster.kill_at or ("", 0)
        self.stops = disaster.stop_when_owner
        self._offset, self._draw = 0.0, random.Random(disaster.clock)

    def begin(self) -> None:
        sys.addaudithook(self._audit)
        self._real_open, _Raw.happening = builtins.open, self
        builtins.open = io.open = self._open
        if self.unit == "seconds":
            # The default action of SIGPROF ends a process as SIGKILL does: at once, and nothing of it runs any more.
            signal.signal(signal.SIGPROF, signal.SIG_DFL)
            signal.setitimer(signal.ITIMER_PROF, max(self.moment, 0.001))
        if self.disaster.clock is not None:
            now = time.time
            time.time = lambda: now() + self._offset
            time.time_ns = lambda: int(time.time() * 1e9)

    def _audit(self, event: str, arguments: tuple) -> None:
        if event == "open":
            if isinstance(arguments[0], (str, bytes, os.PathLike)) and (arguments[2] or 0) & _WRITING:
                self._change(arguments[0])
        elif event in _CHANGES:
            self._change(arguments[_CHANGES[event]])

    def _change(self, path: Any) -> None:
        path = os.fsdecode(path) if isinstance(path, (str, bytes, os.PathLike)) else ""
        if not path.startswith(self.root):
            return
        limit = self.disaster.read_only_after
        if limit is not None and self.done.changes >= limit:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)
        if self.unit == "changes" and self.done.changes >= int(self.moment):
            os.kill(os.getpid(), signal.SIGKILL)
        self.done.changes += 1
        self._offset = self._draw.choice([0.0, 3 * _DAY, -3 * _DAY, 400 * _DAY, -400 * _DAY])
        if self.stops and path.endswith("/log.txt"):  # opened under the lock
            self.stops = False
            os.kill(os.getpid(), signal.SIGSTOP)

    def write(self, raw: io.FileIO, data: Any) -> int:
        view = memoryview(data).cast("B")
        if self.unit == "bytes" and self.done.bytes + len(view) > self.moment:
            io.FileIO.write(raw, view[: max(0, int(self.moment) - self.done.bytes)])
            os.kill(os.getpid(), signal.SIGKILL)
        if self.disaster.full_after is not None:
            view = view[: max(0, self.disaster.full_after - self.done.bytes)]  # as much as there is room for
            if not view and len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = io.FileIO.write(raw, view)
        self.done.bytes += written
        return written

    def _open(self, file, mode="r", buffering=-1, encoding=None, errors=None, newline=None, closefd=True, opener=None):
        below = isinstance(file, (str, os.PathLike)) and os.fspath(file).startswith(self.root)
        if not below or not set(mode) & set("wax+"):
            return self._real_open(file, mode, buffering, encoding, errors, newline, closefd, opener)
        raw = _Raw(file, mode.replace("b", "").replace("t", ""), closefd, opener)
        if buffering == 0:
            return raw
        buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        if "b" in mode:
            return buffered
        text = io.TextIOWrapper(buffered, encoding, errors, newline, line_buffering=buffering == 1)
        text.mode = mode
        return text


class _Raw(io.FileIO):
    happening: _Happening

    def write(self, data: Any) -> int:
        return self.happening.write(self, data)

    def truncate(self, size: int | None = None) -> int:
        self.happening._change(self.name)
        return super().truncate(size)
