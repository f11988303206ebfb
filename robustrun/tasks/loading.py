"""How the loaders of tasks are tied to the job that they serve."""

from typing import Any

from robustrun.runtime import Run


def surroundings(run: Run, train: bool) -> dict[str, Any]:
    """A loader's device, seeds, and part in a job of several processes.

    Training batches are shuffled and shared among the ranks; otherwise every rank sees everything, in order.
    """
    return {
        "device": run.device,
        "seed_for": run.seed_for,
        "shuffle": train,
        "rank": run.distributed.rank if train else 0,
        "world_size": run.distributed.world_size if train else 1,
    }
