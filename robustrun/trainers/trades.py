"""TRADES: accuracy on clean examples traded against stability around them (arXiv 1901.08573)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from robustrun.errors import ConfigError
from robustrun.methods.attacks import evaluation_mode, kl_divergence, perturb
from robustrun.numbers import NonNegative
from robustrun.registry import trainers
from robustrun.roles import Batch
from robustrun.trainers.adversarial import Adversarial
from robustrun.trainers.supervised import Session


@trainers.register("trades")
class Trades(Adversarial):
    """Cross-entropy at x plus `beta` times the KL divergence from the prediction at x to that at x + delta.

    delta maximises the divergence, in evaluation mode; the loss is taken in training mode, and gradients flow through
    both predictions (equation 5 there). The released code passes x through the network twice in a step, which moves
    running statistics once more and nothing else; here it is once.

    Args:
        beta: weight of the divergence.
        common: see `Adversarial`; `attack_bn` and `freeze` have no effect.

    Raises:
        ConfigError: a carried start.
    """

    def __init__(self, *, beta: NonNegative = 6.0, **common):
        super().__init__(**common)
        if self.start == "previous":
            raise ConfigError("trainer.start=previous belongs to FGSM training; TRADES starts from gaussian")
        self.beta = beta

    def attack(self, session: Session, batch: Batch) -> Tensor:
        epsilon, alpha = self.radius(session.loop.fraction)
        with session.run.precision.autocast(), evaluation_mode(session.model):
            with torch.no_grad():
                clean = F.softmax(session.model(batch.inputs).float(), 1)
            return perturb(
                session.model,
                batch.inputs,
                clean,
                norm=self.norm,
                epsilon=epsilon,
                alpha=alpha,
                steps=self.steps,
                init_box=self.init_box,
                clip_ball=self.clip_ball,
                loss=kl_divergence,
                noise=self._noise(session, batch, epsilon),
            )

    def learn(self, session: Session, batch: Batch, delta: Tensor) -> tuple[Tensor, Tensor]:
        self.advance(session)
        with session.run.precision.autocast():
            clean = session.model(batch.inputs).float()
            moved = session.model(batch.inputs + delta).float()
            divergence = kl_divergence(moved, F.softmax(clean, 1)).mean()
            loss = F.cross_entropy(clean, batch.targets) + self.beta * divergence
        self.minimize(session, loss)
        return loss.detach(), moved.detach()
