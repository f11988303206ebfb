"""What a user sees while files are fetched: a bar on a terminal, nothing elsewhere (a log line says it)."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def download_bar(description: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar of bytes with rate and time left; yields a function that is told how many more have arrived.

    `total` 0 means that the length is unknown.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(
        *columns, TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task(description, total=total or None)
        yield lambda count: bar.update(task, advance=count)


@contextmanager
def busy(description: str) -> Iterator[None]:
    """A sign of life with the time gone by, for a step whose length is unknown."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        bar.add_task(description, total=None)
        yield
