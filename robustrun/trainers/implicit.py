"""Training of deep equilibrium models: unrolled at first, implicitly differentiated from then on.

Source: Bai, Koltun and Kolter (arXiv 2006.08656).
"""

import numpy as np
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from robustrun.methods.equilibrium import DeepEquilibrium
from robustrun.numbers import NonNegative, NonNegativeInt, PositiveInt, Probability
from robustrun.registry import trainers
from robustrun.roles import Batch, ClassificationTask, EquilibriumNetwork, Fitted
from robustrun.runtime import Run, TrainingLoop
from robustrun.trainers.supervised import Session, Standard


class WarmUp(BaseModel):
    """The first `steps` optimiser steps train the weight-tied network of `layers` layers by ordinary backpropagation.

    Whatever is measured meanwhile is measured at the equilibrium.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    steps: NonNegativeInt = 0
    layers: PositiveInt = 10


class Jacobian(BaseModel):
    """A penalty on |df/dz|_F^2 / D at the equilibrium, in a random fraction of the steps (arXiv 2106.14342).

    Its weight grows by `growth` every `every` steps, and is zero after the fraction `until` of training.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    weight: NonNegative = 0.0
    growth: NonNegative = 0.0
    every: PositiveInt = 10000
    fraction: Probability = 1.0
    probes: PositiveInt = 1
    until: Probability = 1.0

    def at(self, loop: TrainingLoop, run: Run) -> float:
        """The weight in the loop's present step."""
        if not self.weight or loop.fraction >= self.until * loop.epochs:
            return 0.0
        if np.random.default_rng(run.seed_for("jacobian", loop.step)).random() >= self.fraction:
            return 0.0
        return self.weight + self.growth * (loop.step // self.every)


@trainers.register("implicit")
class Implicit(Standard):
    """Cross-entropy on clean examples; logs iterations and residuals of the forward and the backward solver.

    Args:
        warmup: unrolled training to begin with.
        jacobian: regularisation of the equilibrium's Jacobian.
        others: as of `standard`.
    """

    def __init__(self, *, warmup: WarmUp = WarmUp(), jacobian: Jacobian = Jacobian(), **common):  # noqa: B008
        super().__init__(**common)
        self.warmup, self.jacobian = warmup, jacobian

    def fit(self, task: ClassificationTask, model: EquilibriumNetwork, run: Run) -> Fitted:
        return super().fit(task, model, run)

    def step(self, session: Session, batch: Batch) -> dict[str, Tensor]:
        layer = session.model.layer
        own = layer.unroll
        if session.loop.step < self.warmup.steps:
            layer.unroll = self.warmup.layers
        self._weight = 0.0 if layer.unroll else self.jacobian.at(session.loop, session.run)
        layer.probes = self.jacobian.probes if self._weight else 0
        try:
            return super().step(session, batch) | solver_figures(layer)
        finally:
            layer.unroll, layer.probes = own, 0

    def minimize(self, session: Session, loss: Tensor) -> None:
        penalty = session.model.layer.statistics.jacobian
        super().minimize(session, loss if penalty is None else loss + self._weight * penalty)


def solver_figures(layer: DeepEquilibrium) -> dict[str, Tensor]:
    """Iterations and relative residuals of the last solves, means over the batch; none of an unrolled network."""
    figures: dict[str, Tensor] = {}
    for name in ("forward", "backward"):
        found = getattr(layer.statistics, name)
        if found is not None:
            figures[f"{name}_iterations"] = found.iterations.float().mean()
            figures[f"{name}_residual"] = found.residual.mean()
    if layer.statistics.jacobian is not None:
        figures["jacobian"] = layer.statistics.jacobian.detach()
    return figures
