"""Which job a list of overrides names; of many lists, worked out by several processes at once."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

from robustrun.check import only_job
from robustrun.compose import Composer
from robustrun.errors import ConfigError

# A process needs two seconds to begin, an identity a tenth of one.
_WORTH_A_PROCESS = 20
_PROCESSES = 8


@dataclass(frozen=True)
class Identity:
    """A job's identity, the configs it was composed of, and whether it follows from them and the code alone."""

    sha256: str
    configs: tuple[str, ...]
    lasting: bool


def identify(composer: Composer, overrides: Sequence[str]) -> Identity:
    """The identity of the one job that the overrides name.

    Raises:
        ConfigError: they name none.
    """
    composer.asked.clear()
    job = only_job(composer, overrides)
    lasting = all(need.job is not None for need in job.needs.values())  # files and directories may change
    return Identity(job.sha256, tuple(sorted(composer.asked)), lasting)


def identify_all(many: Sequence[Sequence[str]], config_dir: str | None = None) -> Iterator[Identity | None]:
    """The identities in their order; None for overrides that name no job, which `identify` says why."""
    processes = min(_PROCESSES, os.cpu_count() or 1, len(many) // _WORTH_A_PROCESS)
    if processes < 2:
        _begin(config_dir)
        yield from map(_identity, many)
        return
    # Not forked: this process may have threads.
    with ProcessPoolExecutor(processes, get_context("spawn"), _begin, (config_dir,)) as pool:
        yield from pool.map(_identity, many, chunksize=4)


def _begin(config_dir: str | None) -> None:
    global _composer
    _composer = Composer.create(config_dir)


def _identity(overrides: Sequence[str]) -> Identity | None:
    try:
        return identify(_composer, overrides)
    except ConfigError:
        return None
