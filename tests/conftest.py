"""What all tests share: one thread a process, a run to work in, the command line as a user types it."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

# Before torch is imported: test processes share the cores, and threads that wait for each other would starve.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("WANDB_MODE", "offline")

import pytest
import torch

from robustrun.runtime import Run

torch.set_num_threads(1)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """A job's surroundings in a temporary directory: CPU, float32, seed 0."""
    with Run.create(tmp_path / "run", seed=0, device="cpu", precision="float32", threads=1) as surroundings:
        yield surroundings


@pytest.fixture
def cli(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess]:
    """`cli("+exp=...", ...)` runs robustrun in a process of its own, its outputs below the temporary directory."""

    def run_cli(*arguments: str, timeout: float = 300, **environment: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-W", "error", "-m", "robustrun.cli", *arguments],
            capture_output=True,
            text=True,
            timeout=timeout,
            cwd=tmp_path,
            env={**os.environ, "ROBUSTRUN_OUTPUTS": str(tmp_path / "outputs"), **environment},
        )

    return run_cli
