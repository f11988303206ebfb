"""Fitting dynamics to data: by derivatives or next states, by trajectories; and video models.

Source: Manek and Kolter (arXiv 2001.06116).
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from robustrun.errors import ConfigError
from robustrun.methods.dynamics import (
    LatentVideo,
    StateMap,
    VectorField,
    integrator,
    latent_loss,
    rollout,
    sample_latent,
)
from robustrun.methods.lyapunov import StableDynamics
from robustrun.numbers import NonNegative, Positive, PositiveInt
from robustrun.registry import trainers
from robustrun.roles import Batch, DynamicsTask, Fitted, Loader, Trainer, VideoTask
from robustrun.runtime import Run, TrainingLoop


class Passes:
    """Several passes over a loader as one epoch: what is recorded and saved once an epoch is rarer than a pass."""

    def __init__(self, loader: Loader, passes: int):
        self.loader, self.passes, self.batch_size = loader, passes, loader.batch_size

    def __len__(self) -> int:
        return self.passes * len(self.loader)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of several passes, from step `start` on."""
        first, start = divmod(start, len(self.loader))
        for k in range(first, self.passes):
            yield from self.loader.epoch(epoch * self.passes + k, start if k == first else 0)


class _Gradient(Trainer):
    """Adam without schedule or weight decay on a loss of batches; f and V are trained as one.

    Args:
        epochs: passes over the training split.
        batch_size: examples a step, over all processes.
        lr: Adam's learning rate.
        record_every: passes between two records and checkpoints; divides `epochs`.
        clip_norm: largest norm of the joined gradient; null: no clipping.
    """

    def __init__(
        self,
        *,
        epochs: PositiveInt = 1000,
        batch_size: PositiveInt = 2000,
        lr: Positive = 1e-3,
        record_every: PositiveInt = 50,
        clip_norm: Positive | None = None,
    ):
        self.record_every = min(record_every, epochs)
        if epochs % self.record_every:
            raise ConfigError(f"trainer.record_every={record_every} must divide trainer.epochs={epochs}")
        self.epochs, self.batch_size, self.lr, self.clip_norm = epochs, batch_size, lr, clip_norm

    def minimize(self, model: torch.nn.Module, loader: Loader, run: Run, loss_of: Any) -> Fitted:
        """Train on `loss_of(batch, loop)` -> (loss, means to log)."""
        if not any(p.requires_grad for p in model.parameters()):
            raise ConfigError("this model has no parameters to train: use trainer=none")
        optimizer = torch.optim.Adam(model.parameters(), lr=self.lr, fused=run.device.type in ("cpu", "cuda"))
        loop = TrainingLoop(
            run,
            model=model,
            optimizer=optimizer,
            loader=Passes(loader, self.record_every),
            epochs=self.epochs // self.record_every,
        )
        for _ in loop:
            for batch in loop.batches():
                loss, means = loss_of(batch, loop)
                loop.minimize(loss, clip_norm=self.clip_norm)
                loop.log(**means)
        model.eval()
        extra = {"train_seconds": loop.train_seconds, "updates": loop.step}
        return Fitted(model, loop.states(), loop.history, extra)


@trainers.register("one_step")
class OneStep(_Gradient):
    """Mean squared error of the derivative (of the next state, for maps), over batch and dimensions.

    `rise_penalty` weighs the mean of relu(V(x + 0.01 x') - V(x)), a penalty that is in the published code but
    zero in its runs.
    """

    def __init__(self, *, rise_penalty: NonNegative = 0.0, **common):
        super().__init__(**common)
        self.rise_penalty = rise_penalty

    def fit(self, task: DynamicsTask, model: VectorField | StateMap, run: Run) -> Fitted:
        horizon = 1 if isinstance(model, StateMap) else 0
        loader = task.loader("train", self.batch_size, run, train=True, horizon=horizon)

        def loss_of(batch: Batch, loop: TrainingLoop) -> tuple[Tensor, dict[str, Tensor]]:
            targets = batch.targets.flatten(1)
            predicted = model(batch.inputs)
            error = (predicted - targets).square().mean()
            loss = error
            if self.rise_penalty and isinstance(model, StableDynamics):
                value = model.lyapunov(batch.inputs)
                rise = model.lyapunov(batch.inputs + 0.01 * targets) - value
                loss = error + self.rise_penalty * torch.relu(rise).mean()
            return loss, {"loss": error.detach()}

        return self.minimize(model, loader, run, loss_of)


@trainers.register("trajectory")
class Trajectory(_Gradient):
    """Mean squared error along roll-outs of `horizon` steps from true states: no derivatives are needed.

    A vector field is integrated by one Runge-Kutta step an interval, a map applied.
    """

    def __init__(self, *, horizon: PositiveInt = 10, **common):
        super().__init__(**common)
        self.horizon = horizon

    def fit(self, task: DynamicsTask, model: VectorField | StateMap, run: Run) -> Fitted:
        loader = task.loader("train", self.batch_size, run, train=True, horizon=self.horizon)

        def loss_of(batch: Batch, loop: TrainingLoop) -> tuple[Tensor, dict[str, Tensor]]:
            step = model.step() if isinstance(model, StateMap) else integrator(model.field(), task.spec.dt)
            states = rollout(step, batch.inputs, self.horizon)[1:]
            loss = (states.transpose(0, 1) - batch.targets).square().mean()
            return loss, {"loss": loss.detach()}

        return self.minimize(model, loader, run, loss_of)


@trainers.register("latent_video")
class LatentVideoTrainer(_Gradient):
    """Reconstruction of a frame, divergence from the prior, and prediction of the next frame, in one loss.

    Args:
        reconstruction_weight, prediction_weight: of the summed squared errors; the divergence has weight 1.
    """

    def __init__(self, *, reconstruction_weight: NonNegative = 1.0, prediction_weight: NonNegative = 1.0, **common):
        super().__init__(**common)
        self.weights = reconstruction_weight, prediction_weight

    def fit(self, task: VideoTask, model: LatentVideo, run: Run) -> Fitted:
        loader = task.loader("train", self.batch_size, run, train=True)

        def loss_of(batch: Batch, loop: TrainingLoop) -> tuple[Tensor, dict[str, Tensor]]:
            with run.precision.autocast():
                mean, log_variance = (moment.float() for moment in model.encode(batch.inputs))
                z = sample_latent(mean, log_variance, run.generator("latent", loop.step))
                # Both frames in one call of the decoder.
                decoded, following = model.decode(torch.cat([z, model.advance()(z)])).float().chunk(2)
            terms = latent_loss(mean, log_variance, decoded, batch.inputs, following, batch.targets)
            loss = terms.total(*self.weights)
            return loss, {"loss": loss.detach(), **{k: v.detach() for k, v in terms._asdict().items()}}

        return self.minimize(model, loader, run, loss_of)
