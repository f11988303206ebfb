"""GradAlign: FGSM training kept from catastrophic overfitting by aligned input gradients (arXiv 2007.02617)."""

import torch.nn.functional as F
from torch import Tensor

from robustrun.errors import ConfigError
from robustrun.methods.attacks import batch_norm_mode, gradient_alignment
from robustrun.methods.attacks.balls import Ball
from robustrun.numbers import NonNegative
from robustrun.registry import trainers
from robustrun.roles import Batch
from robustrun.trainers.adversarial import Adversarial
from robustrun.trainers.supervised import Session


@trainers.register("grad_align")
class GradAlign(Adversarial):
    """Adversarial training plus `align` (1 - cos(gradient at x, gradient at a random point of the ball)).

    The gradients are those of the loss with respect to the input; differentiating them costs about two more
    steps of plain training.

    Args:
        align: weight of the regulariser (0.2 for CIFAR-10 at 8/255).
        common: see `Adversarial`.
    """

    differentiates_twice = True

    def __init__(self, *, align: NonNegative = 0.2, **common):
        super().__init__(**common)
        self.align = align

    def prepare(self, session: Session) -> None:
        super().prepare(session)
        if session.run.precision.compiled:
            raise ConfigError(
                "grad_align differentiates gradients, and compiled ones forbid it: leave out runtime.compile"
            )

    def learn(self, session: Session, batch: Batch, delta: Tensor) -> tuple[Tensor, Tensor]:
        run, loop = session.run, session.loop
        self.advance(session)
        epsilon, _ = self.radius(loop.fraction)
        noise = Ball(batch.inputs, self.norm, epsilon).start(
            "uniform", run.generator("align", loop.step, device=run.device)
        )
        with run.precision.autocast():
            logits = session.model(batch.inputs + delta)
            loss = F.cross_entropy(logits.float(), batch.targets)
            with batch_norm_mode(session.model, self.attack_bn):
                cosine = gradient_alignment(session.model, batch.inputs, batch.targets, noise)
        self.minimize(session, loss + self.align * (1 - cosine.mean()))
        return loss.detach(), logits.detach()
