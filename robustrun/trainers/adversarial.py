"""Adversarial training: FGSM with any start, PGD-K and Free (arXiv 2001.03994, 2002.11569, 1904.12843)."""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from robustrun.errors import ConfigError
from robustrun.methods.attacks import batch_norm_mode, perturb, pgd
from robustrun.methods.attacks.balls import Ball
from robustrun.numbers import NonNegative, Number, PositiveInt, Probability
from robustrun.registry import trainers
from robustrun.roles import Batch
from robustrun.trainers.supervised import Session, Supervised, accuracy


@trainers.register("adversarial")
class Adversarial(Supervised):
    """Train on the perturbations that a short attack finds: one step is FGSM, more are PGD.

    Args:
        norm, epsilon: the threat model.
        alpha: step size.
        steps: attack steps (1: FGSM).
        start: where the attack begins (`Ball.start`); `previous` carries each slot's perturbation from batch to batch.
        init_box: what happens to a start outside the pixel box (`methods.attacks.perturb`).
        clip_ball: false holds the result in the box alone (N-FGSM).
        freeze: only examples that are still classified correctly move.
        epsilon_ramp: epsilon and alpha grow linearly over this fraction of training.
        alpha_schedule: step size from an epoch on, e.g. {3: 0.6}.
        attack_bn: batch normalisation during the attack: `train` moves running statistics as in the papers.
        early_stop: stop at catastrophic overfitting and return the weights of the epoch before.
        stop_drop: PGD accuracy that must be lost within an epoch for that.
        log_clean: record training accuracy on clean examples too, at the cost of one more pass (in training mode,
            as in arXiv 2002.11569).

    Raises:
        ConfigError: options that exclude each other.
    """

    def __init__(
        self,
        *,
        norm: Literal["linf", "l2"] = "linf",
        epsilon: NonNegative = 8 / 255,
        alpha: Number = 10 / 255,
        steps: PositiveInt = 1,
        start: Literal["zero", "uniform", "corners", "wide", "gaussian", "cube", "previous"] = "uniform",
        init_box: Literal["none", "project", "clamp_forward"] = "project",
        clip_ball: bool = True,
        freeze: bool = False,
        epsilon_ramp: Probability = 0.0,
        alpha_schedule: dict[int, Number] = {},  # noqa: B006
        attack_bn: Literal["train", "frozen", "eval"] = "train",
        early_stop: bool = False,
        stop_drop: Probability = 0.2,
        log_clean: bool = False,
        **common,
    ):
        super().__init__(**common)
        if freeze and self.mixup:
            raise ConfigError("trainer.freeze=true asks whether an example is right, which mixed labels do not say")
        if early_stop and self.average.name != "none":
            raise ConfigError("trainer.early_stop=true returns an epoch's weights, trainer.average a mean over many")
        self.norm, self.epsilon, self.alpha, self.steps = norm, epsilon, alpha, steps
        self.start, self.init_box, self.clip_ball, self.freeze = start, init_box, clip_ball, freeze
        self.epsilon_ramp, self.alpha_schedule, self.attack_bn = epsilon_ramp, alpha_schedule, attack_bn
        self.early_stop, self.stop_drop, self.log_clean = early_stop, stop_drop, log_clean

    def prepare(self, session: Session) -> None:
        if self.start == "previous":
            session.state["carried"] = CarriedPerturbation(self.batch_size, session)
        if self.early_stop:
            session.state["collapse"] = CollapseDetector(self.stop_drop)

    def step(self, session: Session, batch: Batch) -> dict[str, Tensor]:
        if self.early_stop and session.loop.position == 0 and not self.mixup:
            session.state["collapse"].batch = batch
        delta = self.attack(session, batch)
        loss, logits = self.learn(session, batch, delta)
        figures = {"loss": loss, "train_accuracy": accuracy(logits, batch.targets)}
        if self.log_clean:
            with torch.no_grad(), session.run.precision.autocast():
                clean = session.model(batch.inputs).float()
            figures["train_clean_accuracy"] = accuracy(clean, batch.targets)
            figures["train_clean_loss"] = F.cross_entropy(clean, batch.targets)
        return figures

    def learn(self, session: Session, batch: Batch, delta: Tensor) -> tuple[Tensor, Tensor]:
        """One optimiser step at the perturbed batch; (loss, logits)."""
        return self.update(session, batch.inputs + delta, batch.targets)

    def attack(self, session: Session, batch: Batch) -> Tensor:
        """The perturbation to train on, (B, ...)."""
        run, loop = session.run, session.loop
        epsilon, alpha = self.radius(loop.fraction)
        carried = session.state.get("carried")
        with run.precision.autocast(), batch_norm_mode(session.model, self.attack_bn):
            delta = perturb(
                session.model,
                batch.inputs,
                batch.targets,
                norm=self.norm,
                epsilon=epsilon,
                alpha=alpha,
                steps=self.steps,
                start="zero" if carried else self.start,
                init_box="none" if carried else self.init_box,
                freeze=self.freeze,
                clip_ball=self.clip_ball,
                noise=carried.take(batch) if carried else self._noise(session, batch, epsilon),
            )
        if carried:
            carried.put(delta)
        return delta

    def _noise(self, session: Session, batch: Batch, epsilon: float) -> Tensor:
        # Drawn for the joined batch on every process and cut there, so that the number of processes does not matter.
        run = session.run
        generator = run.generator("attack", session.loop.step)
        done = session.loop.position * self.batch_size
        count = min(self.batch_size, session.loop.loader.size - done)
        joined = batch.inputs.new_zeros(()).expand(count, *batch.inputs.shape[1:])
        return run.distributed.local(Ball(joined, self.norm, epsilon, box=None).start(self.start, generator))

    def radius(self, time: float) -> tuple[float, float]:
        """(epsilon, alpha) at a time in epochs."""
        alpha = self.alpha
        for epoch, value in sorted(self.alpha_schedule.items()):
            alpha = value if time >= epoch else alpha
        grown = 1.0 if not self.epsilon_ramp else min(1.0, time / (self.epsilon_ramp * self.epochs))
        return self.epsilon * grown, alpha * grown

    def epoch_end(self, session: Session, epoch: int) -> dict[str, float]:
        figures = super().epoch_end(session, epoch)
        if self.early_stop:
            detector = session.state["collapse"]
            figures["probe_accuracy"] = found = detector.probe(session, self)
            if detector.collapsed(found):
                session.model.load_state_dict(detector.weights)
                session.loop.stop_early()
            else:
                detector.keep(found, session.model)
        return figures


class CarriedPerturbation:
    """One perturbation a slot of the batch (not an example), carried from batch to batch; initially zero."""

    def __init__(self, batch_size: int, session: Session):
        shape = (batch_size, *session.task.spec.input_shape)
        self.slots = torch.zeros(shape, device=session.run.device)

    def take(self, batch: Batch) -> Tensor:
        """The start for a batch; a short one uses the first slots."""
        return self.slots[: len(batch.targets)]

    def put(self, delta: Tensor) -> None:
        """Keep perturbations (B, ...) for the next batch."""
        self.slots[: len(delta)] = delta

    def state_dict(self) -> dict[str, Tensor]:
        """For a checkpoint."""
        return {"slots": self.slots}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from a checkpoint."""
        self.slots.copy_(state["slots"])


class CollapseDetector:
    """Early stopping against catastrophic overfitting: a short PGD on one training batch after each epoch.

    Training accuracy under the training attack looks perfect when a model collapses; PGD-5 on the epoch's first
    batch does not (arXiv 2001.03994, section 5.4). Batch statistics are used, running statistics left alone.
    """

    def __init__(self, drop: float):
        self.drop = drop
        self.previous = 0.0
        self.weights: dict[str, Tensor] = {}
        self.batch: Batch | None = None

    def probe(self, session: Session, trainer: Adversarial) -> float:
        """PGD-5 accuracy on the epoch's first batch."""
        run, model = session.run, session.model
        if self.batch is None:  # resumed in mid-epoch: the same batch again
            self.batch = next(iter(session.loop.loader.epoch(session.loop.epoch)))
        model.train()
        with batch_norm_mode(model, "frozen"):
            result = pgd(
                model,
                self.batch.inputs,
                self.batch.targets,
                norm=trainer.norm,
                epsilon=trainer.epsilon,
                alpha=trainer.epsilon / 4,
                steps=5,
                keep_mode=True,
                generator=run.generator("probe", session.loop.epoch),
            )
        model.eval()
        self.batch = None
        right = run.distributed.all_reduce_sum((~result.success).sum().double())
        return float(right / run.distributed.all_reduce_sum(right.new_tensor(len(result.success))))

    def collapsed(self, found: float) -> bool:
        """Whether the accuracy fell by more than `drop` since the epoch before."""
        return found - self.previous < -self.drop

    def keep(self, found: float, model: torch.nn.Module) -> None:
        """Remember an epoch that held: its probe accuracy and its weights."""
        self.previous = found
        self.weights = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}

    def state_dict(self) -> dict[str, Any]:
        return {"previous": self.previous, "weights": self.weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.previous, self.weights = float(state["previous"]), state["weights"]


@trainers.register("free")
class Free(Supervised):
    """Free adversarial training: each batch is replayed `replays` times, and one pass serves both updates.

    Args:
        norm, epsilon: the threat model; the step of the perturbation is epsilon itself.
        replays: m; `epochs` counts passes over the data, so the paper's epochs are epochs * replays.
    """

    def __init__(
        self,
        *,
        norm: Literal["linf", "l2"] = "linf",
        epsilon: NonNegative = 8 / 255,
        replays: PositiveInt = 8,
        **common,
    ):
        super().__init__(**common)
        self.norm, self.epsilon, self.updates_per_batch = norm, epsilon, replays

    def prepare(self, session: Session) -> None:
        session.state["carried"] = CarriedPerturbation(self.batch_size, session)

    def step(self, session: Session, batch: Batch) -> dict[str, Tensor]:
        carried = session.state["carried"]
        ball = Ball(batch.inputs, self.norm, self.epsilon)
        delta = carried.take(batch)
        for replay in range(self.updates_per_batch):
            self.advance(session, replay)
            points = (batch.inputs + delta).requires_grad_()
            with session.run.precision.autocast():
                logits = session.model(points)
                loss = F.cross_entropy(logits.float(), batch.targets)
            self.minimize(session, loss)
            delta = ball.step(delta, points.grad, self.epsilon)
        carried.put(delta)
        return {"loss": loss.detach(), "train_accuracy": accuracy(logits.detach(), batch.targets)}
