"""Training of networks that solve an equation in every pass: equilibria, differential equations.

Source: Winston and Kolter (arXiv 2006.08591); differential equations: Chen et al. (arXiv 1806.07366).
"""

from dataclasses import replace

import torch
from torch import Tensor

from robustrun.errors import Diverged
from robustrun.registry import trainers
from robustrun.roles import Batch, ClassificationTask, EquilibriumClassifier, Fitted, ODEClassifier
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
                self._agree(session)
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

    @staticmethod
    def _agree(session: Session) -> None:
        """All processes go on with the step length of the first: each tuned it on its own part of the batch."""
        layer = session.model.layer
        alpha = torch.tensor(layer.settings.alpha, dtype=torch.float64, device=session.run.device)
        layer.settings = replace(layer.settings, alpha=float(session.run.distributed.broadcast(alpha)))


@trainers.register("neural_ode")
class NeuralODE(Standard):
    """Cross-entropy on clean examples; logs how often the right-hand side was evaluated, forward and backward.

    Args: as of `standard`.

    Raises (from `fit`):
        Diverged: the solver's steps became too small or too many.
    """

    def fit(self, task: ClassificationTask, model: ODEClassifier, run: Run) -> Fitted:
        return super().fit(task, model, run)

    def step(self, session: Session, batch: Batch) -> dict[str, Tensor]:
        try:
            means = super().step(session, batch)
        except (FloatingPointError, AssertionError) as error:  # the latter from the solver in the backward pass
            raise Diverged(f"step {session.loop.step}: {error}") from error
        forward, backward = (means["loss"].new_tensor(float(count)) for count in session.model.evaluations)
        return means | {"forward_evaluations": forward, "backward_evaluations": backward}
