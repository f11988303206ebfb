"""The launcher behind `hydra/launcher=slurm`: hydra-submitit-launcher's, made for sweeps that last days.

Hydra takes launchers from the namespace `hydra_plugins` alone, where packaging puts this file; the work is done in
`robustrun.cluster`. What it adds: `detach`, one failed job that leaves the others their results, waiting without
SLURM's accounting, and records for `robustrun jobs`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn

try:
    from hydra_plugins.hydra_submitit_launcher.submitit_launcher import BaseSubmititLauncher
except ImportError:
    from hydra.plugins.launcher import Launcher

    class BaseSubmititLauncher(Launcher):
        """Nothing can be submitted; making one says what to install."""

        def setup(self, **_: Any) -> None:
            pass


class SlurmLauncher(BaseSubmititLauncher):
    """Submits each job as a task of one job array."""

    _EXECUTOR = "slurm"

    def __init__(self, detach: bool = False, **params: Any) -> None:
        from robustrun.cluster import require_slurm

        require_slurm()
        super().__init__(**params)
        self.detach = detach
        self.run_dirs: Sequence[Path] = ()  # where the jobs will run, if whoever launches them knows
        self.after: Sequence[str] = ()  # jobs on the cluster that must end well first

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from robustrun import cluster

        state = Singleton.get_state()
        calls = [
            (list(overrides), "hydra.sweep.dir", initial_job_idx + i, f"job_id_for_{initial_job_idx + i}", state)
            for i, overrides in enumerate(job_overrides)
        ]
        jobs = cluster.submit(self, calls, self.params, self.after)
        cluster.record(jobs, self.run_dirs)
        return cluster.unfinished(jobs) if self.detach else cluster.wait(jobs)
