"""Auto-PGD: projected gradient ascent with momentum that finds its own step size (arXiv 2003.01690)."""

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from robustrun.methods.attacks.balls import Ball, Box, Norm, Radius, norms, over_examples, steepest
from robustrun.methods.attacks.gradients import Network, Oracle, evaluation_mode, frozen_parameters
from robustrun.methods.attacks.losses import Loss, LossName, dlr_targeted, get_loss
from robustrun.methods.attacks.pgd import AttackResult

_MOMENTUM = 0.75
_SUCCESSES = 0.75  # the share of steps that must have raised the loss, or the step is halved


def apgd(
    model: Network,
    inputs: Tensor,
    labels: Tensor,
    *,
    norm: Norm = "linf",
    epsilon: Radius,
    steps: int = 100,
    restarts: int = 1,
    loss: LossName | Loss = "cross_entropy",
    box: Box = (0.0, 1.0),
    generator: torch.Generator | None = None,
) -> AttackResult:
    """APGD (arXiv 2003.01690, Algorithm 1) in evaluation mode; examples leave the batch once they are broken.

    Args:
        model: maps inputs in natural units (B, ...) to logits (B, classes).
        inputs: (B, ...), inside the box.
        labels: (B,).
        norm, epsilon, box: the threat, see `Ball`.
        steps: of each restart, one forward and backward pass each.
        restarts: random starts on the boundary of the ball, for examples that are not broken yet.
        loss: ascended; a name, or logits, labels -> (B,).
        generator: of the random starts.

    Returns:
        The first perturbation that broke an example, or else the one of the largest loss.
    """
    ball = Ball(inputs, norm, epsilon, box)
    return _restarted(model, ball, labels, [labels] * restarts, get_loss(loss), steps, generator)


def apgd_targeted(
    model: Network,
    inputs: Tensor,
    labels: Tensor,
    *,
    norm: Norm = "linf",
    epsilon: Radius,
    steps: int = 100,
    targets: int = 9,
    box: Box = (0.0, 1.0),
    generator: torch.Generator | None = None,
) -> AttackResult:
    """APGD-T: one restart with the targeted DLR loss for each of the `targets` most likely wrong classes.

    Arguments and result as those of `apgd`.

    Raises:
        ValueError: the model has fewer than four classes.
    """
    goals = [torch.stack([labels, goal], 1) for goal in likeliest_wrong(model, inputs, labels, targets)]

    def loss(logits: Tensor, goals: Tensor) -> Tensor:
        return dlr_targeted(logits, goals[:, 0], goals[:, 1])

    return _restarted(model, Ball(inputs, norm, epsilon, box), labels, goals, loss, steps, generator)


def likeliest_wrong(model: Network, inputs: Tensor, labels: Tensor, count: int) -> Tensor:
    """The `count` most likely wrong classes of each input, or all there are, likeliest first: (count, B)."""
    with evaluation_mode(model):
        logits = Oracle(model).logits(inputs)
    wrong = logits.scatter(1, labels[:, None], -torch.inf)
    return wrong.topk(min(count, logits.shape[1] - 1), dim=1).indices.T


def checkpoints(steps: int) -> list[int]:
    """The steps after which the step size is reconsidered (arXiv 2003.01690, section 3.1)."""
    shares = [0.0, 0.22]
    while shares[-1] < 1:
        shares.append(shares[-1] + max(shares[-1] - shares[-2] - 0.03, 0.06))
    return sorted({math.ceil(share * steps - 1e-9) for share in shares[1:] if share <= 1})


def _restarted(
    model: Network,
    ball: Ball,
    labels: Tensor,
    goals: list[Tensor],
    loss: Loss,
    steps: int,
    generator: torch.Generator | None,
) -> AttackResult:
    """One ascent after the other, on what is not broken yet; `goals` are what the loss gets beside logits."""
    inputs, oracle = ball.inputs, Oracle(model)
    delta, success = torch.zeros_like(inputs), torch.zeros_like(labels, dtype=torch.bool)
    value = inputs.new_full(labels.shape, -torch.inf)
    with evaluation_mode(model), frozen_parameters(model):
        for goal in goals:
            begin = _boundary(ball, generator)
            left = (~success).nonzero()[:, 0]
            if not len(left):
                break
            found = _ascend(oracle, ball.select(left), labels[left], goal[left], loss, begin[left], steps)
            better = found[1] | ~(found[2] < value[left])
            kept = left[better]
            delta[kept], success[kept], value[kept] = (part[better] for part in found)
    return AttackResult(delta, success, value, oracle.forwards, oracle.backwards)


def _boundary(ball: Ball, generator: torch.Generator | None) -> Tensor:
    """A random point of norm epsilon, then projected onto the box."""
    if ball.norm == "linf":
        draw = ball.start("uniform", generator)
        largest = over_examples(norms(draw, "linf"), draw).clamp_min(torch.finfo(draw.dtype).tiny)
        return ball.project(draw / largest * ball.epsilon)
    return ball.project(steepest(ball.start("gaussian", generator), "l2") * ball.epsilon)


@dataclass
class _State:
    """What the ascent remembers of each example that is still in the batch; every field has B rows."""

    rows: Tensor  # which examples they are
    labels: Tensor
    goal: Tensor
    delta: Tensor
    previous: Tensor
    gradient: Tensor
    value: Tensor
    best_delta: Tensor
    best_gradient: Tensor
    best: Tensor
    step: Tensor  # in radii
    rises: Tensor  # of the loss since the last checkpoint
    best_before: Tensor  # at the last checkpoint
    halved_before: Tensor

    def select(self, index: Tensor) -> "_State":
        return _State(*(getattr(self, field.name)[index] for field in fields(self)))

    def move(self, ball: Ball, momentum: float) -> None:
        alpha = over_examples(self.step, self.delta) * ball.epsilon
        ahead = ball.step(self.delta, self.gradient, alpha)
        mixed = momentum * (ahead - self.delta) + (1 - momentum) * (self.delta - self.previous)
        self.previous, self.delta = self.delta, ball.project(self.delta + mixed)

    def remember(self, value: Tensor) -> None:
        self.rises = self.rises + (value > self.value)
        self.value = value
        better = value > self.best
        self.best = torch.where(better, value, self.best)
        self.best_delta = torch.where(over_examples(better, self.delta), self.delta, self.best_delta)
        self.best_gradient = torch.where(over_examples(better, self.delta), self.gradient, self.best_gradient)

    def reconsider(self, period: int) -> None:
        """Halve the step and go back to the best point where the last `period` steps led nowhere."""
        halve = (self.rises < _SUCCESSES * period) | (~self.halved_before & (self.best <= self.best_before))
        self.step = torch.where(halve, self.step / 2, self.step)
        self.delta = torch.where(over_examples(halve, self.delta), self.best_delta, self.delta)
        self.gradient = torch.where(over_examples(halve, self.delta), self.best_gradient, self.gradient)
        self.value = torch.where(halve, self.best, self.value)
        self.halved_before, self.best_before, self.rises = halve, self.best, torch.zeros_like(self.rises)


def _ascend(
    oracle: Oracle, ball: Ball, labels: Tensor, goal: Tensor, loss: Loss, start: Tensor, steps: int
) -> tuple[Tensor, Tensor, Tensor]:
    """(delta, success, value) of one run from `start`."""
    logits, gradient = oracle.gradient(ball.inputs + start, goal, loss)
    value = loss(logits, goal).to(start)
    final, final_value, success = start.clone(), value.clone(), logits.argmax(1) != labels
    state = _State(
        rows=torch.arange(len(labels), device=labels.device),
        labels=labels,
        goal=goal,
        delta=start,
        previous=start,
        gradient=gradient,
        value=value,
        best_delta=start,
        best_gradient=gradient,
        best=value,
        step=torch.full_like(value, 2.0),
        rises=torch.zeros_like(value),
        best_before=value,
        halved_before=torch.ones_like(success),
    )
    broken, last, marks = success, 0, set(checkpoints(steps))
    for step in range(1, steps + 1):
        if (stays := (~broken).nonzero()[:, 0]).numel() < len(broken):
            state, ball = state.select(stays), ball.select(stays)
        if not len(stays):
            break
        state.move(ball, _MOMENTUM if step > 1 else 1.0)
        logits, state.gradient = oracle.gradient(ball.inputs + state.delta, state.goal, loss)
        state.remember(loss(logits, state.goal).to(value))
        broken = logits.argmax(1) != state.labels
        success[state.rows] = broken
        kept = over_examples(broken, state.delta)
        final[state.rows] = torch.where(kept, state.delta, state.best_delta)
        final_value[state.rows] = torch.where(broken, state.value, state.best)
        if step in marks:
            state.reconsider(step - last)
            last = step
    return final, success, final_value
