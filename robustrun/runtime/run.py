"""A job's surroundings: where it writes, on what it computes, what its randomness is, when it must stop."""

import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from robustrun.runtime import distributed as processes
from robustrun.runtime.checkpoints import Checkpoints
from robustrun.runtime.directory import locked, logging_to
from robustrun.runtime.distributed import Distributed
from robustrun.runtime.precision import Precision, PrecisionName, choose_device, choose_precision, numerics
from robustrun.runtime.progress import Display, Progress
from robustrun.runtime.records import ExampleLog
from robustrun.runtime.seeds import derive_seed, seed_globals
from robustrun.runtime.signals import StopFlag
from robustrun.runtime.trackers import NullTracker, Tracker, make_tracker


@dataclass
class Run:
    """What a task, trainer or certifier may ask of its surroundings. Made by `Run.create`."""

    dir: Path
    seed: int
    device: torch.device
    precision: Precision
    distributed: Distributed
    tracker: Tracker
    checkpoints: Checkpoints
    stop: StopFlag
    logger: logging.Logger = field(default_factory=lambda: logging.getLogger("robustrun"))
    display: Display = field(default_factory=Display)

    def seed_for(self, *key: Any) -> int:
        """The 63-bit seed of the draw named `key`; the same on every machine."""
        return derive_seed(self.seed, *key)

    def generator(self, *key: Any, device: torch.device | str | None = None) -> torch.Generator:
        """A fresh generator for the draw named `key`, on the run's device: `run.generator("noise", step)`."""
        generator = torch.Generator(self.device if device is None else device)
        return generator.manual_seed(self.seed_for(*key))

    def progress(self, total: float | None, description: str, unit: str = "it", done: float = 0) -> Progress:
        """A progress display, as a context manager; its `advance` is a safe point to stop at."""
        return self.display.progress(total, description, unit, done)

    def example_log(self, name: str = "examples", columns: Sequence[str] = ()) -> ExampleLog:
        """The resumable records of a long certification, in the run directory's records/."""
        return ExampleLog(self.dir / "records", name, columns, distributed=self.distributed)

    def leave_if_asked(self, save: Callable[[], Any] | None = None) -> None:
        """A safe point of this rank: if a signal asked for it, call `save` and end the job.

        Raises:
            Stopped: on SIGTERM or SIGUSR; under submitit the job is requeued instead.
            KeyboardInterrupt: on Ctrl-C.
        """
        if self.stop.requested:
            if save is not None:
                save()
            self.stop.leave(is_main=self.distributed.is_main)

    @classmethod
    @contextmanager
    def create(
        cls,
        dir: Path | str,
        *,
        seed: int = 0,
        device: str = "auto",
        precision: PrecisionName = "auto",
        tracker: str | Sequence[str] = "local",
        threads: int | None = None,
        deterministic: bool = False,
        compile: bool = False,
        channels_last: bool | None = None,
        project: str = "robustrun",
        run_id: str | None = None,
        name: str | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> Iterator["Run"]:
        """Prepare the surroundings, and undo on exit whatever was changed in the process.

        Joins the other processes of the job, locks and opens the directory, seeds the global generators, and
        catches the stop signals.

        Raises:
            ConfigError: the directory is not writable or in use, or this machine has no such device.
            JobFailed: the other processes do not answer.
        """
        dir = Path(dir).absolute()
        with ExitStack() as stack:
            group = processes.start()
            where = choose_device(device, group.local_rank)
            how = choose_precision(precision, where, compile=compile, channels_last=channels_last)
            group.on_main(lambda: stack.enter_context(locked(dir)))
            stack.enter_context(logging_to(dir / "log.txt" if group.is_main else None))
            stack.enter_context(numerics(how, threads=threads, deterministic=deterministic))
            tracking: Tracker = NullTracker()

            def open_tracker() -> None:
                nonlocal tracking
                tracking = make_tracker(tracker, dir, project=project, run_id=run_id, name=name, config=config)
                stack.callback(tracking.close)
                if "last" not in Checkpoints(dir / "checkpoints"):
                    tracking.restart()  # cut short before there was anything to resume from: it begins again

            group.on_main(open_tracker)
            stop = stack.enter_context(StopFlag().installed())
            run = cls(
                dir=dir,
                seed=seed,
                device=where,
                precision=how,
                distributed=group,
                tracker=tracking,
                checkpoints=Checkpoints(dir / "checkpoints", group),
                stop=stop,
            )
            run.display = Display(silent=not group.is_main, on_advance=run._safe_point)
            stack.callback(run.display.close)
            seed_globals(seed)
            yield run

    def _safe_point(self) -> None:
        if not self.stop.deferred:
            self.leave_if_asked()

    def clear(self) -> None:
        """Forget everything that an earlier attempt at this job left for resuming."""
        if self.distributed.is_main:
            for leftover in ("checkpoints", "records"):
                shutil.rmtree(self.dir / leftover, ignore_errors=True)
            self.tracker.restart()
        self.distributed.barrier()
