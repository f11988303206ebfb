"""Adversarial weight perturbation: training at weights that have been attacked too (arXiv 2004.05884)."""

import torch.nn.functional as F
from torch import Tensor

from robustrun.methods.attacks import batch_norm_mode, weight_perturbation
from robustrun.numbers import NonNegative, Probability
from robustrun.registry import trainers
from robustrun.roles import Batch
from robustrun.trainers.adversarial import Adversarial
from robustrun.trainers.supervised import Session


@trainers.register("awp")
class AWP(Adversarial):
    """Adversarial training whose gradient is taken at the weights after a step of ascent, and applied before it.

    It flattens the loss over weights and narrows the gap of robust overfitting, for one more pass a step. Under data
    parallelism each process attacks the weights with its own examples.

    Args:
        gamma: length of the ascent, relative to the norm of each weight tensor.
        warm_up: fraction of training before it sets in.
        common: see `Adversarial`.
    """

    def __init__(self, *, gamma: NonNegative = 0.01, warm_up: Probability = 0.0, **common):
        super().__init__(**common)
        self.gamma, self.warm_up = gamma, warm_up

    def learn(self, session: Session, batch: Batch, delta: Tensor) -> tuple[Tensor, Tensor]:
        model, run = session.model, session.run
        if session.loop.fraction < self.warm_up * self.epochs:
            return super().learn(session, batch, delta)

        def loss() -> Tensor:
            with run.precision.autocast(), batch_norm_mode(model, "frozen"):
                return F.cross_entropy(model(batch.inputs + delta).float(), batch.targets)

        attack = weight_perturbation(model, loss, self.gamma)
        attack.apply()
        undo = session.optimizer.register_step_pre_hook(lambda *_: attack.undo())
        try:
            return super().learn(session, batch, delta)
        finally:
            undo.remove()
            attack.undo()  # a step that loss scaling skipped did not
