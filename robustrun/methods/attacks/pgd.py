"""Projected gradient descent with restarts, for evaluation, and the one-step attack FGSM."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from robustrun.methods.attacks.balls import Ball, Box, Norm, Radius, Start, over_examples, pick
from robustrun.methods.attacks.gradients import (
    Network,
    Oracle,
    evaluation_mode,
    frozen_parameters,
)
from robustrun.methods.attacks.losses import Loss, LossName, get_loss


@dataclass(frozen=True)
class AttackResult:
    """What an attack found for a batch of B examples, and what it cost.

    Attributes:
        delta: the perturbations (B, ...), in the ball and the box.
        success: (B,) bool: `inputs + delta` is misclassified (targeted: gets the target class).
        loss: (B,) the attack's loss there.
        forwards, backwards: examples that were passed through the network, summed over all passes.
        broken_after: (B,) the steps, of all restarts one after another, after which an example was broken first; -1 if
            it never was. Of PGD alone, and exact where broken examples are frozen: else the end of the restart.
    """

    delta: Tensor
    success: Tensor
    loss: Tensor
    forwards: int
    backwards: int
    broken_after: Tensor | None = None


def pgd(
    model: Network,
    inputs: Tensor,
    targets: Tensor,
    *,
    norm: Norm = "linf",
    epsilon: Radius,
    alpha: Radius,
    steps: int,
    restarts: int = 1,
    loss: LossName | Loss = "cross_entropy",
    start: Start = "uniform",
    freeze: bool = True,
    select: Literal["max_loss", "any_break"] = "max_loss",
    box: Box = (0.0, 1.0),
    targeted: bool = False,
    keep_mode: bool = False,
    generator: torch.Generator | None = None,
    noise: Tensor | Callable[[int], Tensor] | None = None,
) -> AttackResult:
    """PGD-`steps`-`restarts` in evaluation mode (arXiv 1706.06083; variants of 2001.03994 and 2002.11569).

    With `freeze` an example that is broken stops moving, and leaves the batch: no work is spent on it. With
    `select="any_break"` it is not restarted either, and one that the model gets wrong unperturbed is not
    attacked at all.

    Args:
        model: maps inputs in natural units (B, ...) to logits (B, classes).
        inputs: (B, ...), inside the box.
        targets: the labels (B,), or the classes to reach if `targeted`.
        norm, epsilon, box: the threat, see `Ball`; epsilon may be one an example (B,).
        alpha: step length in input units, a number or one an example (B,).
        loss: ascended (descended if `targeted`); a name, or logits, targets -> (B,).
        start: see `Ball.start`; projected onto ball and box.
        freeze: see above; without it every example takes all the steps.
        select: which restart counts: `max_loss`, that of the largest final loss, as the papers do, which can
            prefer one that does not break the example; `any_break`, one that breaks it if there is any.
        keep_mode: use the model in the mode that it is in (batch statistics if training), without compaction.
        generator: of the random starts; they are drawn for the whole batch, so compaction changes nothing.
        noise: the starts instead of `start`: (restarts, B, ...), or a function from the restart's number.

    Returns:
        The kept perturbations. Parameters, their gradients and the model's mode are as before.

    Raises:
        ValueError: `select` is unknown, or there are no restarts or fewer than zero steps.
    """
    if select not in ("max_loss", "any_break"):
        raise ValueError(f"unknown select '{select}': it is max_loss or any_break")
    if restarts < 1 or steps < 0:
        raise ValueError(f"an attack has at least one restart and zero steps, not {restarts} and {steps}")
    ball, alpha = Ball(inputs, norm, epsilon, box), over_examples(alpha, inputs)
    climb = _Climb(Oracle(model), get_loss(loss), targeted, steps, freeze, compact=freeze and not keep_mode)
    skip_broken = select == "any_break" and not keep_mode
    with nullcontext() if keep_mode else evaluation_mode(model), frozen_parameters(model):
        delta, success = torch.zeros_like(inputs), torch.zeros_like(targets, dtype=torch.bool)
        value = inputs.new_full(targets.shape, -torch.inf)
        after = torch.full_like(targets, -1)
        if select == "any_break":
            success, value = climb.look(inputs, targets)
            after[success] = 0
        for restart in range(restarts):
            if noise is None:
                begin = ball.start(start, generator)
            else:
                begin = noise(restart) if callable(noise) else noise[restart]
            begin = ball.project(begin.detach())
            left = (~(success & skip_broken)).nonzero()[:, 0]
            if not len(left):
                break
            found = climb(ball.select(left), targets[left], begin[left], pick(alpha, left))
            *found, taken = found
            first = found[1] & (after[left] < 0)
            after[left[first]] = restart * steps + taken[first]
            better = ~(found[2] < value[left])
            if select == "any_break":
                better = ~success[left] & (found[1] | better)
            kept = left[better]
            delta[kept], success[kept], value[kept] = (part[better] for part in found)
    return AttackResult(delta, success, value, climb.oracle.forwards, climb.oracle.backwards, after)


@dataclass
class _Climb:
    """One restart: `steps` steps of ascent from given starts. Calls return (delta, success, loss, steps taken)."""

    oracle: Oracle
    loss: Loss
    targeted: bool
    steps: int
    freeze: bool
    compact: bool

    def __call__(self, ball: Ball, targets: Tensor, delta: Tensor, alpha: Radius) -> tuple[Tensor, ...]:
        taken = torch.full_like(targets, self.steps)
        final, success = delta.clone(), torch.zeros_like(targets, dtype=torch.bool)
        value = delta.new_empty(len(delta))
        rows = torch.arange(len(delta), device=delta.device)  # of the examples that are still in the batch
        for step in range(self.steps):
            logits, gradient = self.oracle.gradient(ball.inputs + delta, targets, self.ascended)
            broken = self.broken(logits, targets)
            moved = ball.step(delta, gradient, alpha)
            if not self.compact:
                if self.freeze:
                    delta = torch.where(over_examples(broken, delta), delta, moved)
                    taken = torch.where(broken, taken.clamp(max=step), taken)
                else:
                    delta = moved
                continue
            stays = (~broken).nonzero()[:, 0]
            if len(stays) == len(rows):
                delta = moved
                continue
            out = rows[broken]
            final[out], success[out], taken[out] = delta[broken], True, step
            value[out] = self.ascended(logits, targets)[broken].to(value)
            rows, delta = rows[stays], moved[stays]
            ball, targets, alpha = ball.select(stays), targets[stays], pick(alpha, stays)
            if not len(rows):
                return final, success, value, taken
        final[rows] = delta
        success[rows], value[rows] = self.look(ball.inputs + delta, targets)
        return final, success, value, taken

    def look(self, points: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Whether `points` break the network, and the loss there."""
        logits = self.oracle.logits(points)
        return self.broken(logits, targets), self.ascended(logits, targets).to(points.dtype)

    def broken(self, logits: Tensor, targets: Tensor) -> Tensor:
        return (logits.argmax(1) == targets) == self.targeted

    def ascended(self, logits: Tensor, targets: Tensor) -> Tensor:
        return -self.loss(logits, targets) if self.targeted else self.loss(logits, targets)


def fgsm(
    model: Network,
    inputs: Tensor,
    targets: Tensor,
    *,
    norm: Norm = "linf",
    epsilon: Radius,
    alpha: Radius | None = None,
    start: Start = "zero",
    box: Box = (0.0, 1.0),
    loss: LossName | Loss = "cross_entropy",
    targeted: bool = False,
    generator: torch.Generator | None = None,
) -> AttackResult:
    """The fast gradient sign method (arXiv 1412.6572): one step of length `alpha` (the radius, unless given).

    Arguments and result as those of `pgd`.
    """
    return pgd(
        model,
        inputs,
        targets,
        norm=norm,
        epsilon=epsilon,
        alpha=epsilon if alpha is None else alpha,
        steps=1,
        loss=loss,
        start=start,
        freeze=False,
        box=box,
        targeted=targeted,
        generator=generator,
    )
