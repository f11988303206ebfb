"""How far long work is: a bar on a terminal, a plain line now and then elsewhere (SLURM logs, CI)."""

import logging
import sys
import time
from collections.abc import Callable
from typing import Any

logger = logging.getLogger("robustrun")

FIRST_LINE, NEXT_LINES, REFRESH = 5.0, 30.0, 0.2  # seconds


class Display:
    """What one job shows: the bars that are open, one below the other, or lines in the log."""

    def __init__(self, *, silent: bool = False, on_advance: Callable[[], None] | None = None) -> None:
        self.silent = silent
        self.on_advance = on_advance
        self._rich: Any = None
        self._open = 0

    @property
    def terminal(self) -> bool:
        """Whether someone looks on: bars on a terminal, plain lines elsewhere."""
        return sys.stderr.isatty()

    def progress(self, total: float | None, description: str, unit: str = "it", done: float = 0) -> "Progress":
        return Progress(self, total, description, unit, done)

    def enter(self) -> Any:
        """The live bar display (None where plain lines are wanted), opened with the first bar."""
        if self.silent or not self.terminal:
            return None
        if self._rich is None:
            self._rich = _rich_progress()
            self._rich.start()
        self._open += 1
        return self._rich

    def leave(self) -> None:
        self._open -= 1
        if self._open <= 0:
            self.close()

    def close(self) -> None:
        """Take all bars off the screen."""
        if self._rich is not None:
            self._rich.stop()
        self._rich, self._open = None, 0


class Progress:
    """A context manager: `with run.progress(100, "certifying") as bar: bar.advance(5, radius=0.5)`.

    Fields are shown beside the bar. They may be tensors on a device: these are read only when something is
    shown, so that advancing waits for nothing.
    """

    def __init__(
        self, display: Display, total: float | None, description: str, unit: str = "it", done: float = 0
    ) -> None:
        self.total, self.description, self.unit = total, description, unit
        self.done = self._done_before = done  # a resumed job starts in the middle: its rate counts from there
        self._display = display
        self._fields: dict[str, Any] = {}
        self._rich: Any = None
        self._task: Any = None

    def __enter__(self) -> "Progress":
        self._started = self._shown = time.monotonic()
        self._wait = FIRST_LINE
        self._rich = self._display.enter()
        if self._rich is not None:
            self._task = self._rich.add_task(
                self.description, total=self.total, completed=self.done, unit=self.unit, fields=""
            )
        return self

    def advance(self, n: float = 1, **fields: Any) -> None:
        """`n` more units are done. A safe point: a requested stop takes effect here."""
        self.update(self.done + n, **fields)
        if self._display.on_advance is not None:
            self._display.on_advance()

    def update(self, done: float, *, description: str | None = None, **fields: Any) -> None:
        """Set what is done in all."""
        self.done = done
        self._fields.update(fields)
        self.description = description or self.description
        if self._display.silent:
            return
        now = time.monotonic()
        if self._rich is not None:
            if now - self._shown >= REFRESH or done == self.total:
                self._shown = now
                self._rich.update(
                    self._task, completed=done, description=self.description, fields=self._text_of_fields()
                )
        elif now - self._shown >= self._wait:
            self._shown, self._wait = now, NEXT_LINES
            logger.info("%s", self._line(now))

    def __exit__(self, *exception: object) -> None:
        if self._rich is not None:
            if exception[0] is None:
                self._rich.update(self._task, completed=self.done, fields=self._text_of_fields())
            if self._display._open > 1:  # an inner bar disappears, the outermost one stays in the scrollback
                self._rich.remove_task(self._task)
            self._display.leave()
            self._rich = None
        elif not self._display.silent and self._wait == NEXT_LINES:  # it was long enough to be mentioned
            logger.info("%s", self._line(time.monotonic()))

    def _text_of_fields(self) -> str:
        return "  ".join(f"{name} {_short(value)}" for name, value in self._fields.items())

    def _line(self, now: float) -> str:
        elapsed = now - self._started
        rate = (self.done - self._done_before) / elapsed if elapsed > 0 else 0.0
        total = "" if self.total is None else f"/{self.total:g}"
        parts = [f"{self.description}: {self.done:g}{total} {self.unit}", f"{rate:.3g} {self.unit}/s"]
        if self.total is not None and rate > 0 and self.done < self.total:
            parts.append(f"{_duration((self.total - self.done) / rate)} left")
        else:
            parts.append(_duration(elapsed))
        return ", ".join([*parts, *([self._text_of_fields()] if self._fields else [])])


def _short(value: Any) -> str:
    if hasattr(value, "item"):
        value = value.item()
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def _rich_progress() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Any) -> Text:
            speed = task.finished_speed or task.speed
            return Text("" if speed is None else f"{speed:.3g} {task.fields['unit']}/s", style="progress.data.speed")

    return RichProgress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        Rate(),
        TimeRemainingColumn(compact=True, elapsed_when_finished=True),
        TextColumn("{task.fields[fields]}"),
        console=Console(stderr=True),
        speed_estimate_period=60,
    )
