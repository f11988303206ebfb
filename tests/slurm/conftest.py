"""A real SLURM for the tests in this folder, started by scripts/slurm-sandbox and shut down after them."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "slurm-sandbox"


@pytest.fixture(scope="session")
def sandbox() -> Iterator[None]:
    """SLURM_CONF points to a cluster of this machine alone."""
    pytest.importorskip("submitit")
    if os.geteuid() != 0:
        pytest.skip("starting SLURM's daemons needs root")
    if shutil.which("slurmctld") is None and shutil.which("apt-get") is None:
        pytest.skip("neither SLURM nor apt-get to install it with")
    worker = os.environ.get("PYTEST_XDIST_WORKER", "gw0")
    directory = Path("/tmp", f"robustrun-slurm-{os.getpid()}")  # a short path: sockets have short names
    environment = {"ROBUSTRUN_SLURM_SANDBOX": str(directory), "ROBUSTRUN_SLURM_PORT": str(26817 + 3 * int(worker[2:]))}
    environment = {**os.environ, **environment}
    up = subprocess.run([SCRIPT, "up"], env=environment, capture_output=True, text=True, timeout=300)
    try:
        if up.returncode:
            pytest.skip(up.stderr.strip())
        os.environ["SLURM_CONF"] = up.stdout.strip().partition("=")[2]
        yield
    finally:
        os.environ.pop("SLURM_CONF", None)
        subprocess.run([SCRIPT, "down"], env=environment, check=True, timeout=120)
