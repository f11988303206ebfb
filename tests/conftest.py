"""What all tests share: one thread a process, the same draws in any order, a run to work in, the command line."""

import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

# Before torch is imported: test processes share the cores, and threads that wait for each other would starve.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("WANDB_MODE", "offline")

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

from robustrun.runtime import Run

torch.set_num_threads(1)

# The suite says the same thing each time; ROBUSTRUN_FUZZ=1 looks for examples that nobody has tried yet.
settings.register_profile("same", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("new", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("new" if os.environ.get("ROBUSTRUN_FUZZ") else "same")


def pytest_configure(config: pytest.Config) -> None:
    config.option.randomly_reset_seed = False  # pytest-randomly is here for the order alone


@pytest.fixture(autouse=True)
def _same_draws() -> None:
    """Tests run in random order (-p no:randomly for that of the files): none sees what another one drew."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - what scikit-learn falls back to
    torch.manual_seed(0)


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
