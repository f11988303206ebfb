"""Training a virtual sensor: ordinarily, against an adversary, or on a proven bound (arXiv 2007.00147).

All three minimise an error of the interval of predictions that noise within the tolerances can cause. They differ
in which interval: the prediction itself, what an attack reaches, or what a certificate cannot exclude.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from robustrun.errors import ConfigError
from robustrun.methods.bounds import (
    Ball,
    Bounds,
    Box,
    Network,
    Region,
    attained_range,
    crown_bounds,
    dual_bounds,
    interval_bounds,
    interval_weights,
    trace,
    worst_relative_error,
)
from robustrun.numbers import NonNegative, NonNegativeInt, Number, PositiveInt, Probability
from robustrun.registry import trainers
from robustrun.roles import Batch, Fitted, SensorTask, Trainer
from robustrun.runtime import Run, TrainingLoop
from robustrun.trainers.recipe import Optimizer, Schedule


class Regression(Trainer):
    """The epoch loop; a subclass says which interval of predictions counts.

    Args:
        epochs, batch_size, optimizer, schedule: the recipe.
        clip_norm: of the gradient; none if null.
        loss: of the interval [l, u] against the quantity y: max(u - y, y - l) over y (relative) or alone
            (absolute), or its square.
        floor: quantities below it count as this much in a relative error.
        interval: quantities at which training aims; all if null.
        outside: weight of the others; 1 is the same as no interval, to the last bit.
        norm, epsilon: the noise, in units of the task's tolerances.
        validate_every: epochs; the state "best" has the least validation error at full epsilon. 0: never.
    """

    def __init__(
        self,
        *,
        epochs: PositiveInt = 40,
        batch_size: PositiveInt = 256,
        optimizer: Optimizer = Optimizer(),  # noqa: B008
        schedule: Schedule = Schedule(),  # noqa: B008
        clip_norm: NonNegative | None = None,
        loss: Literal["relative", "squared", "absolute"] = "relative",
        floor: NonNegative = 0.0,
        interval: tuple[Number, Number] | None = None,
        outside: NonNegative = 0.02,
        norm: Literal["linf", "l2"] = "linf",
        epsilon: NonNegative = 1.0,
        validate_every: NonNegativeInt = 1,
    ):
        if interval is not None and interval[0] >= interval[1]:
            raise ConfigError(f"trainer.interval {list(interval)} is empty: its first end must be the smaller one")
        self.epochs, self.batch_size, self.optimizer, self.schedule = epochs, batch_size, optimizer, schedule
        self.clip_norm, self.loss, self.floor = clip_norm, loss, floor
        self.interval, self.outside = interval, outside
        self.norm, self.epsilon, self.validate_every = norm, epsilon, validate_every

    def fit(self, task: SensorTask, model: nn.Module, run: Run) -> Fitted:
        optimizer = self.optimizer.build(model)
        network = trace(model, task.spec.input_shape)
        loader = task.loader("train", self.batch_size, run, train=True)
        loop = TrainingLoop(
            run, model=model, optimizer=optimizer, loader=loader, epochs=self.epochs, checkpoint_every=60
        )
        for epoch in loop:
            for batch in loop.batches():
                self.schedule.apply(optimizer, self.optimizer, loop.fraction, self.epochs)
                region = self.region(task, batch.inputs, self.epsilon * self.grown(loop.fraction))
                predicted = self.range(network, region, batch, run.generator("noise", loop.step))
                loss = self.mean_error(predicted, batch.targets)
                loop.minimize(loss, clip_norm=self.clip_norm)
                loop.log(loss=loss.detach())
            model.eval()
            if self.validate_every and (epoch + 1) % self.validate_every == 0:
                loop.end_epoch(valid_error=self.validate(task, network, run))
                if loop.is_best("valid_error"):
                    loop.save_state("best")
        model.eval()
        extra = {"train_seconds": loop.train_seconds, "updates": loop.step}
        return Fitted(model, loop.states(), loop.history, extra)

    def region(self, task: SensorTask, inputs: Tensor, epsilon: float) -> Region:
        """The readings that noise of `epsilon` times the tolerances can make of these."""
        shape = Box if self.norm == "linf" else Ball
        return shape.around(inputs, epsilon * task.tolerance(inputs))

    def grown(self, time: float) -> float:
        """The fraction of epsilon in force at a time in epochs."""
        return 1.0

    def range(self, network: Network, region: Region, batch: Batch, generator: torch.Generator) -> Bounds:
        """The interval of predictions (B, 1) that the loss judges, differentiable in the weights."""
        raise NotImplementedError

    def mean_error(self, predicted: Bounds, targets: Tensor) -> Tensor:
        """The weighted mean of the examples' losses."""
        lower, upper = predicted
        if self.loss == "relative":
            errors = worst_relative_error(lower, upper, targets, self.floor)
        else:
            errors = torch.maximum(upper - targets, targets - lower)
            errors = errors.square() if self.loss == "squared" else errors
        weights = torch.ones_like(targets)
        if self.interval is not None:
            weights = interval_weights(targets, *self.interval, self.outside)
        # a batch may have nothing inside an interval whose outside weighs nothing
        return (weights * errors).sum() / weights.sum().clamp(min=1e-6)

    def validate(self, task: SensorTask, network: Network, run: Run) -> float | None:
        """The validation loss at full epsilon."""
        size = task.size("valid")
        if not size:
            return None
        batch = next(task.loader("valid", size, run).epoch(0))
        with torch.no_grad():
            region = self.region(task, batch.inputs, self.epsilon)
            predicted = self.range(network, region, batch, run.generator("validation"))
            return self.mean_error(predicted, batch.targets).item()


@trainers.register("regression")
class Standard(Regression):
    """Ordinary training on the readings as they are; `norm` and `epsilon` play no part."""

    def range(self, network: Network, region: Region, batch: Batch, generator: torch.Generator) -> Bounds:
        predicted = network(batch.inputs)
        return Bounds(predicted, predicted)


@trainers.register("noisy_regression")
class Noisy(Regression):
    """Ordinary training on readings with uniform noise of the threat's size."""

    def range(self, network: Network, region: Region, batch: Batch, generator: torch.Generator) -> Bounds:
        predicted = network(region.sample(1, generator)[0])
        return Bounds(predicted, predicted)


@trainers.register("adversarial_regression")
class Adversarial(Regression):
    """Training on readings moved within their tolerances so as to raise the error.

    Args:
        steps: of projected gradient ascent on the loss, from a random start.
        step_size: as a fraction of epsilon.
        epsilon_ramp: epsilon grows from zero over this fraction of training.
    """

    def __init__(
        self, *, steps: PositiveInt = 7, step_size: NonNegative = 0.25, epsilon_ramp: Probability = 0.0, **common
    ):
        super().__init__(**common)
        self.steps, self.step_size, self.epsilon_ramp = steps, step_size, epsilon_ramp

    def grown(self, time: float) -> float:
        return min(1.0, time / (self.epsilon_ramp * self.epochs)) if self.epsilon_ramp else 1.0

    def range(self, network: Network, region: Region, batch: Batch, generator: torch.Generator) -> Bounds:
        if not torch.is_grad_enabled():  # validation looks at both sides
            return self._both_sides(network, region, generator)
        points = region.sample(1, generator)[0]
        for _ in range(self.steps):
            points = points.detach().requires_grad_()
            error = (network(points) - batch.targets).abs().sum()
            (gradient,) = torch.autograd.grad(error, points)
            points = region.project(points.detach() + self.step_size * region.step(gradient))
        predicted = network(points)
        return Bounds(predicted, predicted)

    def _both_sides(self, network: Network, region: Region, generator: torch.Generator) -> Bounds:
        found = attained_range(
            network, region, steps=self.steps, restarts=1, step_size=self.step_size, generator=generator
        )
        return Bounds(found.lower.unsqueeze(1), found.upper.unsqueeze(1))


@trainers.register("provable_regression")
class Provable(Regression):
    """Training on a certificate: the worst error that the bound cannot exclude (Wong et al. 2020).

    Args:
        bound: "dual" is the paper's convex outer bound; "interval" trains fastest; "crown".
        clean: how far the judged interval is drawn in towards the prediction: 0 is the certificate, 1 the
            ordinary loss.
        epsilon_ramp: epsilon grows from zero over this fraction of training. Full epsilon from the start lets
            the network die to a constant.
    """

    def __init__(
        self,
        *,
        bound: Literal["dual", "interval", "crown"] = "dual",
        clean: Probability = 0.0,
        epsilon_ramp: Probability = 0.5,
        **common,
    ):
        super().__init__(**common)
        self.bound, self.clean, self.epsilon_ramp = bound, clean, epsilon_ramp

    def grown(self, time: float) -> float:
        return min(1.0, time / (self.epsilon_ramp * self.epochs)) if self.epsilon_ramp else 1.0

    def range(self, network: Network, region: Region, batch: Batch, generator: torch.Generator) -> Bounds:
        bound = {"dual": dual_bounds, "interval": interval_bounds, "crown": crown_bounds}[self.bound]
        # training wants the formula; rounding outwards is for certificates
        lower, upper = bound(network, region, outward=False)
        if self.clean and torch.is_grad_enabled():
            predicted = network(batch.inputs)
            lower, upper = (torch.lerp(side, predicted, self.clean) for side in (lower, upper))
        return Bounds(lower, upper)
