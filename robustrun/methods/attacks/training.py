"""The inner loop of adversarial training: a few projected steps, with no host synchronisation."""

from typing import Literal

import torch
from torch import Tensor

from robustrun.methods.attacks.balls import Ball, Box, Norm, Radius, Start, over_examples
from robustrun.methods.attacks.gradients import Network, frozen_parameters, input_gradient
from robustrun.methods.attacks.losses import Loss, LossName, get_loss

InitBox = Literal["none", "project", "clamp_forward"]


def perturb(
    model: Network,
    inputs: Tensor,
    targets: Tensor,
    *,
    norm: Norm = "linf",
    epsilon: Radius,
    alpha: Radius,
    steps: int = 1,
    start: Start = "uniform",
    init_box: InitBox = "project",
    loss: LossName | Loss = "cross_entropy",
    freeze: bool = False,
    clip_ball: bool = True,
    box: Box = (0.0, 1.0),
    generator: torch.Generator | None = None,
    noise: Tensor | None = None,
) -> Tensor:
    """Adversarial perturbation for a training step: FGSM with any start, PGD-K, N-FGSM, R+FGSM.

    The model is used in the mode that it is in (batch normalisation's running statistics move in training
    mode; see `batch_norm_mode`), its parameters get no gradient, and autocast may be on.

    Args:
        model: maps inputs in natural units (B, ...) to logits (B, classes).
        inputs: (B, ...), inside the box.
        targets: labels (B,), handed to the loss.
        norm, epsilon, box: the threat, see `Ball`.
        alpha: step length in input units, a number or one an example.
        steps: how many steps; each costs one forward and one backward pass to the inputs.
        start: see `Ball.start`.
        init_box: what happens to a start outside the box: `none`, it stays there until the first step
            (MNIST in arXiv 2001.03994); `project`, onto the box first (CIFAR there); `clamp_forward`, the
            network sees the clamped input, coordinates outside get no gradient, and iterates are held in the
            ball alone until the end (ImageNet there).
        loss: ascended; a name, or logits, targets -> (B,).
        freeze: examples that are misclassified already do not move.
        clip_ball: off for N-FGSM, whose result is held in the box alone.
        generator: of the random start.
        noise: the start itself (B, ...), instead of `start`: the carried perturbation of `previous` and free
            adversarial training, for instance.

    Returns:
        delta (B, ...), detached, inside the ball (if `clip_ball`) and the box.

    Raises:
        ValueError: `init_box` is unknown.
    """
    if init_box not in ("none", "project", "clamp_forward"):
        raise ValueError(f"unknown init_box '{init_box}': it is none, project or clamp_forward")
    clamp_forward = init_box == "clamp_forward" and box is not None
    ball = Ball(inputs, norm, epsilon, box)
    held_in = Ball(inputs, norm, epsilon, box=None) if clamp_forward else ball
    loss = get_loss(loss)
    delta = (ball.start(start, generator) if noise is None else noise).detach()
    if init_box == "project":
        delta = ball.to_box(delta)
    with frozen_parameters(model):
        for _ in range(steps):
            points = inputs + delta
            seen = points.clamp(*box) if clamp_forward else points
            logits, gradient = input_gradient(model, seen, targets, loss)
            if clamp_forward:
                gradient = gradient * (points == seen)
            moved = held_in.step(delta, gradient, alpha, clip_ball)
            if freeze:
                moved = torch.where(over_examples(logits.argmax(1) == targets, inputs), moved, delta)
            delta = moved
    # A step ends in the box; only points that took none, or were held in the ball alone, may lie outside.
    return delta if steps and not (clamp_forward or freeze) else ball.to_box(delta)
