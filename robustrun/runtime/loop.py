"""The epoch-and-step loop that gradient trainers share.

    loop = TrainingLoop(run, model=model, optimizer=optimizer, loader=loader, epochs=30)
    for epoch in loop:
        for batch in loop.batches():
            loss = ...
            loop.minimize(loss)
            loop.log(loss=loss)
        loop.end_epoch(valid_error=...)
        if loop.is_best("valid_error"):
            loop.save_state("best")
    return Fitted(model, states=loop.states(), history=loop.history)

It resumes, saves, stops on a signal, notices divergence, shows progress, and keeps the ranks together.
None of this waits for the device within an epoch but for a look at the running means every few seconds.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from robustrun.errors import DataError, Diverged
from robustrun.runtime.means import RunningMeans
from robustrun.runtime.run import Run
from robustrun.runtime.seeds import global_state, restore_global_state

LOOK_EVERY = 2.0  # seconds between two looks at the running means
AGREE_EVERY = 10  # steps between two agreements of the ranks on stopping


class TrainingLoop:
    """See the module. `state` holds whatever else must survive a resume: anything with `state_dict` and
    `load_state_dict`, or a tensor, which is restored in place. `checkpoint_every` is in seconds; the end of
    every epoch saves as well.

    Attributes:
        epoch: the current epoch, from 0.
        step: the number of the current step over all epochs, from 0: `run.generator("attack", loop.step)`.
        history: one dict an epoch: the means of what was logged, and what `end_epoch` was given.
        train_seconds: time spent in `batches`, over all resumes, saving excluded.
    """

    def __init__(
        self,
        run: Run,
        *,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None,
        loader: Any,
        epochs: int,
        state: Mapping[str, Any] | None = None,
        checkpoint_every: float = 300.0,
    ) -> None:
        self.run, self.loader, self.epochs = run, loader, epochs
        self.model = run.distributed.prepare(model)
        self.optimizer = optimizer
        self.epoch = self.step = 0
        self.history: list[dict[str, float]] = []
        self.train_seconds = 0.0
        self._state = dict(state or {})
        self._checkpoint_every = checkpoint_every
        self._position = 0  # steps done in this epoch
        self._means = RunningMeans(run.device, run.distributed)
        self._named: list[str] = []
        self._stopped_early = self._epoch_ended = self._gradients_averaged = False
        self._weight = 0
        self._started: float | None = None
        self._global_state: dict[str, Any] | None = None
        if optimizer is not None and run.distributed.world_size > 1:
            optimizer.register_step_pre_hook(lambda *_: self.average_gradients())
            optimizer.register_step_post_hook(lambda *_: self._next_gradients())
        if "last" in run.checkpoints:
            self._restore()

    # ------------------------------------------------------------------------------------ the loop itself

    def __len__(self) -> int:
        """Steps an epoch."""
        return len(self.loader)

    @property
    def fraction(self) -> float:
        """The number of epochs done, as a float: what a learning-rate schedule is a function of."""
        return self.epoch + self._position / max(len(self), 1)

    @property
    def position(self) -> int:
        """The number of the current step in this epoch, from 0."""
        return self._position

    def __iter__(self) -> Iterator[int]:
        if self._global_state is not None:
            restore_global_state(self._global_state)
        run = self.run
        self._saved = self._looked = time.monotonic()
        done = self.epoch * len(self) + self._position
        run.stop.deferred = True
        try:
            with run.display.progress(self.epochs * len(self), "training", "step", done) as self._bar:
                while self.epoch < self.epochs and not self._stopped_early:
                    self._epoch_ended = False
                    yield self.epoch
                    if not self._epoch_ended:
                        self.end_epoch()
                    self.epoch, self._position = self.epoch + 1, 0
                    self.save()
                    if run.distributed.any(run.stop.requested):
                        self._leave()
        finally:
            run.stop.deferred = False

    def batches(self) -> Iterator[Any]:
        """The batches of this epoch that are still to do."""
        if self._position >= len(self):
            return
        if isinstance(self.model, nn.Module):
            self.model.train()
        self._start_clock()
        try:
            for batch in self.loader.epoch(self.epoch, self._position):
                self._weight = _batch_size(batch)
                self.run.distributed.share_statistics(self.model)
                yield batch
                self._position += 1
                self.step += 1
                self._step_boundary()
        finally:
            self._stop_clock()

    def minimize(self, loss: Tensor, *, clip_norm: float | None = None) -> None:
        """One optimizer step on this rank's mean loss, with loss scaling and clipping where asked."""
        scaler = self.run.precision.scaler
        for parameter in self._parameters():  # as `zero_grad` does, without its book-keeping: a small network feels it
            parameter.grad = None
        scaler.scale(loss).backward()
        self.average_gradients()
        if clip_norm is not None:
            scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self._parameters(), clip_norm)
        scaler.step(self.optimizer)
        scaler.update()
        self._next_gradients()

    def average_gradients(self) -> None:
        """Average the gradients over the ranks, once a step; `optimizer.step()` does it if nobody did."""
        if not self._gradients_averaged:
            self.run.distributed.average_gradients(self._parameters(), self._weight)
        self._gradients_averaged = True

    def _next_gradients(self) -> None:
        self._gradients_averaged = False

    def log(self, *, weight: float | None = None, **values: Any) -> None:
        """Add to this epoch's running means, weighted by the batch size, without waiting for the device."""
        self._means.add(self._weight if weight is None else weight, values)

    def end_epoch(self, **metrics: Any) -> dict[str, float]:
        """Close the epoch's record with further metrics (None is left out).

        The checkpoint is written as soon as the loop's body is done.

        Raises:
            Diverged: a mean or a metric is NaN or infinite; the last good checkpoint is kept.
        """
        row = self._means.joined()
        row.update({name: float(value) for name, value in metrics.items() if value is not None})
        if row:  # one history for all ranks, so that they all decide alike
            values = self.run.distributed.broadcast(torch.tensor(list(row.values()), dtype=torch.float64))
            row = dict(zip(row, values.tolist(), strict=True))
        self._check_finite(row)
        self.history.append(row)
        self.run.tracker.log({**row, "train_seconds": self.train_seconds}, step=self.epoch)
        self._means.clear()
        self._epoch_ended = True
        return row

    def is_best(self, metric: str) -> bool:
        """Whether the last epoch's metric, an error or a loss, is strictly less than in all epochs before."""
        *before, last = [row[metric] for row in self.history if metric in row]
        return all(last < value for value in before)

    def stop_early(self) -> None:
        """Let this epoch be the last."""
        self._stopped_early = True

    # ------------------------------------------------------------------------------------ named states

    def save_state(self, name: str, model: nn.Module | None = None) -> None:
        """Keep a copy of the model's weights (or of those of `model`, an average say) as a named state."""
        weights = (self.model if model is None else model).state_dict()
        self.run.checkpoints.save(name, {"model": weights, "epoch": self.epoch})
        if name not in self._named:
            self._named.append(name)

    def states(self) -> dict[str, dict[str, Tensor]]:
        """Copies of the named states and of "last", on the CPU."""
        last = {name: value.detach().to("cpu", copy=True) for name, value in self.model.state_dict().items()}
        return {**{name: self.run.checkpoints.load(name)["model"] for name in self._named}, "last": last}

    # ------------------------------------------------------------------------------------ saving, resuming

    def save(self) -> None:
        """Write the checkpoint from which the loop resumes.

        Raises:
            Diverged: a parameter is NaN or infinite; the last good checkpoint is kept.
        """
        self._check_parameters()
        self.run.checkpoints.save(
            "last",
            {
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict() if self.optimizer is not None else None,
                "scaler": self.run.precision.scaler.state_dict(),
                "state": {k: v if isinstance(v, Tensor) else v.state_dict() for k, v in self._state.items()},
                "loop": {
                    "epoch": self.epoch,
                    "position": self._position,
                    "step": self.step,
                    "train_seconds": self._seconds(),
                    "stopped_early": self._stopped_early,
                    "named": self._named,
                    "means": self._means.state_dict(),
                },
                "history": self.history,
                "random": global_state(),
                "tracker": self.run.tracker.state_dict(),
            },
            keep_previous=True,
        )
        self._saved = time.monotonic()

    def _restore(self) -> None:
        saved = self.run.checkpoints.load("last")
        try:
            self.model.load_state_dict(saved["model"])
            if self.optimizer is not None:
                self.optimizer.load_state_dict(saved["optimizer"])
            self.run.precision.scaler.load_state_dict(saved["scaler"])
            for name, holder in self._state.items():
                value = saved["state"][name]
                if isinstance(holder, Tensor):
                    with torch.no_grad():
                        holder.copy_(value)
                else:
                    holder.load_state_dict(value)
            place = saved["loop"]
            self.epoch, self._position, self.step = place["epoch"], place["position"], place["step"]
            self.train_seconds, self._stopped_early = place["train_seconds"], place["stopped_early"]
            self._named, self.history = place["named"], saved["history"]
            self._means.load_state_dict(place["means"])
            self._global_state = saved["random"]
            self.run.tracker.load_state_dict(saved["tracker"])
        except (KeyError, ValueError, TypeError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[0]
            raise DataError(
                f"the checkpoint {self.run.checkpoints.path('last')} does not belong to this job "
                f"({reason}): delete it to start from the beginning"
            ) from error
        if self.epoch < self.epochs and not self._stopped_early:
            self.run.logger.info("resuming at epoch %d of %d, step %d", self.epoch + 1, self.epochs, self._position)

    # ------------------------------------------------------------------------------------ between two steps

    def _step_boundary(self) -> None:
        distributed, now = self.run.distributed, time.monotonic()
        bad: str | None = None
        if now - self._looked >= LOOK_EVERY:
            self._looked = now
            means = self._means.local()
            bad = next((name for name, value in means.items() if not _finite(value)), None)
            description = f"training {self.epoch + 1}/{self.epochs}"
            self._bar.update(self.step, description=description, **means)
        else:
            self._bar.update(self.step)
        if distributed.world_size > 1 and self.step % AGREE_EVERY:
            if bad:  # the others see it at their next look
                self._looked = 0.0
            return
        due = now - self._saved >= self._checkpoint_every
        diverged, stop, save = distributed.agree(bad is not None, self.run.stop.requested, due)
        if diverged:
            raise self._diverged(bad or "the loss on another rank")
        if stop or save:
            self._stop_clock()
            self.save()
            if stop:
                self._leave()
            self._start_clock()

    def _leave(self) -> None:
        self.run.stop.leave(
            is_main=self.run.distributed.is_main,
            saved=f", saved at epoch {self.epoch + 1} of {self.epochs}, step {self._position}",
        )

    def _parameters(self) -> Sequence[nn.Parameter]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def _check_finite(self, row: Mapping[str, float]) -> None:
        for name, value in row.items():
            if not _finite(value):
                raise self._diverged(f"{name} is {value}")

    def _check_parameters(self) -> None:
        parameters = list(self.model.parameters()) if isinstance(self.model, nn.Module) else []
        if not parameters:
            return
        finite = torch.stack([p.detach().isfinite().all() for p in parameters]).all().item()
        if self.run.distributed.any(not finite):
            raise self._diverged("a parameter is NaN or infinite")

    def _diverged(self, what: str) -> Diverged:
        path = self.run.checkpoints.path("last")
        kept = f"the last good checkpoint is kept in {path}" if path.exists() else "no checkpoint was written yet"
        return Diverged(
            f"training diverged in epoch {self.epoch + 1} at step {self.step}: {what}; a lower learning "
            f"rate, gradient clipping or runtime.precision=float32 usually helps ({kept})"
        )

    # ------------------------------------------------------------------------------------ the clock

    def _start_clock(self) -> None:
        self._started = time.monotonic()

    def _stop_clock(self) -> None:
        if self._started is not None:
            if self.run.device.type == "cuda":
                torch.cuda.synchronize(self.run.device)  # the steps that are still queued belong to the epoch
            self.train_seconds = self._seconds()
            self._started = None

    def _seconds(self) -> float:
        return self.train_seconds + (time.monotonic() - self._started if self._started is not None else 0.0)


def _finite(value: float) -> bool:
    return value - value == 0.0


def _batch_size(batch: Any) -> int:
    """The number of examples of a batch: the length of its first tensor."""
    if isinstance(batch, Tensor):
        return len(batch)
    if isinstance(batch, Mapping):
        batch = list(batch.values())
    return next(len(part) for part in batch if isinstance(part, Tensor))
