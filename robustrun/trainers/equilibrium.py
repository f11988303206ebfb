"""Training of equilibrium networks: ordinary training that keeps the solver's step length at its best."""

from torch import Tensor

from robustrun.errors import Diverged
from robustrun.registry import trainers
from robustrun.roles import Batch, ClassificationTask, EquilibriumClassifier, Fitted
from robustrun.runtime import Run
from robustrun.trainers.supervised import Session, Standard


@trainers.register("equilibrium")
class Equilibrium(Standard):
    """Cross-entropy on clean examples; logs iterations of the forward and the backward solver.

    Args:
        tune: choose the step length anew at step 30 and in the middle of each epoch, as in arXiv 2006.08591.
        others: as of `standard`.

    Raises (from `fit`):
        Diverged: a solve left the finite numbers.
    """

    def __init__(self, *, tune: bool = True, **common):
        super().__init__(**common)
        self.tune = tune

    def fit(self, task: ClassificationTask, model: EquilibriumClassifier, run: Run) -> Fitted:
        return super().fit(task, model, run)

    def step(self, session: Session, batch: Batch) -> dict[str, Tensor]:
        layer = session.model.layer
        try:
            if self.tune and session.loop.position in (30, len(session.loop) // 2):
                session.model.tune(batch.inputs)
            means = super().step(session, batch)
        except FloatingPointError as error:
            raise Diverged(f"step {session.loop.step}: {error}") from error
        forward, backward = layer.statistics.forward, layer.statistics.backward
        return means | {
            "forward_iterations": forward.iterations.float().mean(),
            "backward_iterations": backward.iterations.float().mean(),
            "converged": forward.converged.float().mean(),
            "alpha": means["loss"].new_tensor(layer.settings.alpha),
        }
