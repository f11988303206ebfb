"""Minibatch training of a classifier: one loop for all trainers that differ in what a step does."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, get_swa_multi_avg_fn

from robustrun.errors import ConfigError
from robustrun.methods.attacks import perturb
from robustrun.numbers import NonNegative, Number, PositiveInt, Probability
from robustrun.registry import trainers
from robustrun.roles import Batch, ClassificationTask, Fitted, Trainer
from robustrun.runtime import Run, TrainingLoop
from robustrun.saved import load_fitted
from robustrun.trainers.recipe import Optimizer, Schedule


class Monitor(BaseModel):
    """What is measured after each epoch, and by which split the best weights are kept.

    The state "best" follows the first split; any further split keeps "best_SPLIT".
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    splits: tuple[Literal["valid", "test"], ...] = ()
    every: PositiveInt = 1  # epochs
    examples: PositiveInt | None = None  # the first so many of the split; all if null
    batch_size: PositiveInt = 512
    steps: int = 0  # of PGD with one random restart; 0 measures clean accuracy alone
    norm: Literal["linf", "l2"] = "linf"
    epsilon: NonNegative = 0.0
    alpha: Number | None = None  # null: epsilon / 4


class Average(BaseModel):
    """A running average of the weights, which is what is measured, kept and returned in place of the weights.

    `ema` moves by `1 - decay` towards the weights after every update (arXiv 2010.03593, section 4.4); `swa` is the
    mean over the ends of epochs (arXiv 1803.05407; against robust overfitting: Chen et al., "Robust overfitting may
    be mitigated by properly learned smoothening", ICLR 2021). Normalisation statistics are averaged along.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Literal["none", "ema", "swa"] = "none"
    decay: Probability = 0.999  # of ema
    start: Probability = 0.0  # the fraction of training from which on weights are averaged

    def build(self, model: nn.Module) -> AveragedModel | None:
        """The average's holder, still empty."""
        if self.name == "none":
            return None
        rule = get_ema_multi_avg_fn(self.decay) if self.name == "ema" else get_swa_multi_avg_fn()
        return AveragedModel(model, multi_avg_fn=rule, use_buffers=True)


@dataclass
class Session:
    """What one training has at hand."""

    task: ClassificationTask
    model: nn.Module
    optimizer: torch.optim.Optimizer
    run: Run
    state: dict[str, Any] = field(default_factory=dict)  # further things that a checkpoint must hold
    loop: TrainingLoop | None = None

    @property
    def result(self) -> nn.Module:
        """The model that is measured and kept: the average of the weights once there is one."""
        averaged = self.state.get("average")
        return averaged.module if averaged is not None and averaged.n_averaged > 0 else self.model


class Supervised(Trainer):
    """The epoch loop; a subclass says what one step does.

    Args:
        epochs: passes over the training split.
        batch_size: examples a step, over all processes.
        optimizer, schedule: see `recipe`.
        l1: c in the penalty c sum |w| over weights (not biases and normalisation).
        mixup: a of Beta(a, a), by which pairs of examples and their labels are mixed (arXiv 1710.09412); 0: not.
        average: a running average of the weights.
        monitor: what is measured after each epoch.
        initial: a finished run whose weights (and optimiser, if it kept it) training starts from.
        keep_optimizer: keep the optimiser's state for a run that goes on from this one.
    """

    def __init__(
        self,
        *,
        epochs: PositiveInt = 10,
        batch_size: PositiveInt = 128,
        optimizer: Optimizer = Optimizer(),  # noqa: B008
        schedule: Schedule = Schedule(),  # noqa: B008
        l1: NonNegative = 0.0,
        mixup: NonNegative = 0.0,
        average: Average = Average(),  # noqa: B008
        monitor: Monitor = Monitor(),  # noqa: B008
        initial: str | None = None,
        keep_optimizer: bool = False,
    ):
        self.epochs = epochs
        self.batch_size = batch_size
        self.optimizer = optimizer
        self.schedule = schedule
        self.l1, self.mixup, self.average = l1, mixup, average
        self.monitor = monitor
        self.initial = initial
        self.keep_optimizer = keep_optimizer

    updates_per_batch = 1

    def fit(self, task: ClassificationTask, model: nn.Module, run: Run) -> Fitted:
        for split in self.monitor.splits:
            if not task.size(split):
                raise ConfigError(
                    f"trainer.monitor.splits has {split}, but the task has no such split (task.validation=1000?)"
                )
        loader = task.loader("train", self.batch_size, run, train=True)
        session = Session(task, model, self.optimizer.build(model), run)
        if self.initial is not None:
            self.start_from(session)
        self.prepare(session)
        if (averaged := self.average.build(model)) is not None:
            session.state["average"] = averaged
        session.loop = TrainingLoop(
            run,
            model=model,
            optimizer=session.optimizer,
            loader=loader,
            epochs=self.epochs,
            state=session.state,
        )
        best = _Best(session.loop.history, self.monitor.splits)
        for epoch in session.loop:
            for batch in session.loop.batches():
                session.loop.log(**self.step(session, self.mixed(session, batch)))
            model.eval()
            if self.average.name == "swa":
                self._follow(session)
            session.loop.end_epoch(**self.epoch_end(session, epoch))
            for name in best.improved(session.loop.history[-1]):
                session.loop.save_state(name, session.result)
        if session.result is not model:
            model.load_state_dict(session.result.state_dict())
        model.eval()
        extra = {
            "train_seconds": session.loop.train_seconds,
            "updates": session.loop.step * self.updates_per_batch,
        }
        if self.keep_optimizer:
            extra["optimizer"] = session.optimizer.state_dict()
        return Fitted(model, session.loop.states(), session.loop.history, extra)

    def start_from(self, session: Session) -> None:
        """Take over the weights, and the optimiser's state if it was kept, of the run `initial`."""
        fitted, _ = load_fitted(self.initial, session.run.device)
        session.model.load_state_dict(fitted.states["last"])
        if "optimizer" in fitted.extra:
            session.optimizer.load_state_dict(fitted.extra["optimizer"])

    def prepare(self, session: Session) -> None:
        """Add to `session.state` what must survive a resume; called once, before the loop is made."""

    def step(self, session: Session, batch: Batch) -> dict[str, Tensor]:
        """Train on one batch; returns the means to log, on the device."""
        raise NotImplementedError

    def epoch_end(self, session: Session, epoch: int) -> dict[str, float]:
        """Measure after an epoch; the model is in evaluation mode."""
        figures = {"lr": session.optimizer.param_groups[0]["lr"]}
        if (epoch + 1) % self.monitor.every == 0 or epoch + 1 == self.epochs:
            for split in self.monitor.splits:
                figures |= {f"{split}_{k}": v for k, v in self.measure(session, split, epoch).items()}
        return figures

    def measure(self, session: Session, split: str, epoch: int) -> dict[str, float]:
        """Clean and PGD accuracy and loss on a split, in evaluation mode."""
        model = session.result.eval()
        monitor, run = self.monitor, session.run
        count = min(monitor.examples or session.task.size(split), session.task.size(split))
        batches = session.task.loader(split, monitor.batch_size, run, indices=range(count)).epoch(0)
        return accuracies(model, batches, monitor, run, ("monitor", split, epoch))

    def advance(self, session: Session, replay: int = 0) -> float:
        """Set the learning rate for the coming update; its time is where the update begins or ends."""
        loop, m = session.loop, self.updates_per_batch
        steps = loop.step * m + replay + (self.schedule.at == "end")
        time = steps / (m * len(loop))
        return self.schedule.apply(session.optimizer, self.optimizer, time, self.epochs)

    def mixed(self, session: Session, batch: Batch) -> Batch:
        """The batch to train on: itself, or mixed with a permutation of itself, its targets then (B, classes)."""
        if not self.mixup:
            return batch
        run, loop = session.run, session.loop
        share = float(np.random.default_rng(run.seed_for("mixup", loop.step)).beta(self.mixup, self.mixup))
        order = torch.randperm(len(batch.targets), generator=run.generator("mixup", loop.step)).to(run.device)
        one_hot = F.one_hot(batch.targets, session.task.spec.classes).to(batch.inputs.dtype)
        inputs, targets = (share * part + (1 - share) * part[order] for part in (batch.inputs, one_hot))
        return Batch(inputs, targets, batch.indices)

    def update(self, session: Session, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """One optimiser step on the cross-entropy; (loss, logits), detached."""
        self.advance(session)
        with session.run.precision.autocast():
            logits = session.model(inputs)
            loss = self.loss(session, logits.float(), targets)
        self.minimize(session, loss)
        return loss.detach(), logits.detach()

    def loss(self, session: Session, logits: Tensor, targets: Tensor) -> Tensor:
        """What is minimised."""
        return F.cross_entropy(logits, targets)

    def right(self, session: Session, logits: Tensor, targets: Tensor) -> Tensor:
        """The fraction that is right."""
        return accuracy(logits, targets)

    def minimize(self, session: Session, loss: Tensor) -> None:
        """One optimiser step on a loss and the penalty; the average follows."""
        if self.l1:
            loss = loss + self.l1 * sum(p.abs().sum() for p in session.model.parameters() if p.ndim > 1)
        session.loop.minimize(loss)
        if self.average.name == "ema":
            self._follow(session)

    def _follow(self, session: Session) -> None:
        if session.loop.fraction >= self.average.start * self.epochs:
            session.state["average"].update_parameters(session.model)


@trainers.register("standard")
class Standard(Supervised):
    """Ordinary training on clean examples with cross-entropy."""

    def step(self, session: Session, batch: Batch) -> dict[str, Tensor]:
        loss, logits = self.update(session, batch.inputs, batch.targets)
        return {"loss": loss, "train_accuracy": self.right(session, logits, batch.targets)}


def accuracy(logits: Tensor, targets: Tensor) -> Tensor:
    """Fraction of rows whose largest logit is the target's, on the device; of mixed targets, the share it has."""
    predicted = logits.argmax(1)
    if targets.ndim > 1:
        return targets.gather(1, predicted[:, None]).mean()
    return (predicted == targets).float().mean()


def accuracies(model: nn.Module, batches: Iterable[Batch], attack: Monitor, run: Run, key: tuple) -> dict[str, float]:
    """Clean and, if `attack.steps`, PGD accuracy and mean loss at its last iterate (one random start, no freezing)."""
    sums: dict[str, Tensor] = {}
    total = 0

    def add(prefix: str, logits: Tensor, targets: Tensor) -> None:
        loss = F.cross_entropy(logits.float(), targets, reduction="sum")
        right = (logits.argmax(1) == targets).sum()
        for name, value in ((f"{prefix}_accuracy", right), (f"{prefix}_loss", loss)):
            sums[name] = sums.get(name, 0.0) + value

    alpha = attack.epsilon / 4 if attack.alpha is None else attack.alpha
    for number, batch in enumerate(batches):
        total += len(batch.targets)
        with torch.no_grad(), run.precision.autocast():
            add("clean", model(batch.inputs), batch.targets)
        if attack.steps:
            with run.precision.autocast():
                delta = perturb(
                    model,
                    batch.inputs,
                    batch.targets,
                    norm=attack.norm,
                    epsilon=attack.epsilon,
                    alpha=alpha,
                    steps=attack.steps,
                    generator=run.generator(*key, number, device=run.device),
                )
                with torch.no_grad():
                    add("robust", model(batch.inputs + delta), batch.targets)
    return {name: float(value) / total for name, value in sums.items()}


class _Best:
    """Which states an epoch improves on, judged by the first of `figures` that is measured."""

    figures = ("robust_accuracy", "clean_accuracy", "miou")

    def __init__(self, history: list[dict[str, float]], splits: tuple[str, ...]):
        self.names = {split: "best" if i == 0 else f"best_{split}" for i, split in enumerate(splits)}
        self.values = dict.fromkeys(splits, -1.0)
        for row in history:
            self.improved(row)

    def improved(self, row: dict[str, float]) -> list[str]:
        better = []
        for split, name in self.names.items():
            measured = (row.get(f"{split}_{figure}") for figure in self.figures)
            value = next((value for value in measured if value is not None), None)
            if value is not None and value > self.values[split]:
                self.values[split] = value
                better.append(name)
        return better
