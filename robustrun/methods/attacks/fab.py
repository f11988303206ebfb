"""FAB: the fast adaptive boundary attack looks for the nearest misclassified point (arXiv 1907.02044)."""

import torch
from torch import Tensor

from robustrun.methods.attacks.apgd import likeliest_wrong
from robustrun.methods.attacks.balls import Ball, Box, Norm, Radius, norms, over_examples
from robustrun.methods.attacks.gradients import Network, Oracle, evaluation_mode, frozen_parameters
from robustrun.methods.attacks.pgd import AttackResult

_ALPHA_MAX = 0.1  # largest weight of the original point
_OVERSHOOT = 1.05  # past the linearised boundary
_BACKWARD = 0.9  # from a misclassified point back towards the original
_NEWTON_STEPS = 40


def fab_targeted(
    model: Network,
    inputs: Tensor,
    labels: Tensor,
    *,
    norm: Norm = "linf",
    epsilon: Radius,
    steps: int = 100,
    targets: int = 9,
    box: Box = (0.0, 1.0),
) -> AttackResult:
    """FAB-T: towards each of the `targets` most likely wrong classes, from the input itself.

    It minimises the norm and does not depend on the radius, except that an example leaves the batch as soon
    as it is broken within it. Nothing about it is random.

    Args:
        model: maps inputs in natural units (B, ...) to logits (B, classes).
        inputs: (B, ...), inside the box.
        labels: (B,).
        norm, epsilon, box: the threat, see `Ball`.
        steps: for each target class, two forward passes and a backward pass each.
        targets: how many classes.

    Returns:
        Perturbations of norm at most epsilon where it was successful, else 0; `loss` is the smallest norm of
        a misclassified point (inf if none was found).
    """
    ball, oracle = Ball(inputs, norm, epsilon, box), Oracle(model)
    delta, success = torch.zeros_like(inputs), torch.zeros_like(labels, dtype=torch.bool)
    nearest = inputs.new_full(labels.shape, torch.inf)
    goals = likeliest_wrong(model, inputs, labels, targets)
    oracle.forwards += len(inputs)
    with evaluation_mode(model), frozen_parameters(model):
        for goal in goals:
            left = (~success).nonzero()[:, 0]
            if not len(left):
                break
            found, distance = _descend(oracle, ball.select(left), labels[left], goal[left], steps)
            nearest[left] = torch.minimum(nearest[left], distance)
            inside = distance <= _radius(ball.select(left), distance)
            delta[left[inside]], success[left] = found[inside], inside
    return AttackResult(delta, success, nearest, oracle.forwards, oracle.backwards)


def _radius(ball: Ball, like: Tensor) -> Tensor:
    radius = ball.epsilon
    return radius.flatten().to(like) if isinstance(radius, Tensor) else torch.full_like(like, radius)


def _gap(logits: Tensor, goals: Tensor) -> Tensor:
    """z_label - z_target, positive on the label's side; goals (B, 2) holds label and target."""
    pair = logits.gather(1, goals)
    return pair[:, 0] - pair[:, 1]


def _descend(oracle: Oracle, ball: Ball, labels: Tensor, target: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """(delta, norm) of the nearest misclassified point found; norm inf where there is none."""
    final, nearest = torch.zeros_like(ball.inputs), ball.inputs.new_full(labels.shape, torch.inf)
    rows, goals = torch.arange(len(labels), device=labels.device), torch.stack([labels, target], 1)
    delta = torch.zeros_like(ball.inputs)
    for step in range(steps + 1):
        broken = oracle.logits(ball.inputs + delta).argmax(1) != goals[:, 0]
        length = norms(delta, ball.norm).to(nearest)
        better = broken & (length < nearest[rows])
        nearest[rows] = torch.where(better, length, nearest[rows])
        final[rows] = torch.where(over_examples(better, delta), delta, final[rows])
        stays = (nearest[rows] > _radius(ball, length)).nonzero()[:, 0]
        if step == steps or not len(stays):
            break
        if len(stays) < len(rows):
            rows, goals, ball = rows[stays], goals[stays], ball.select(stays)
            delta, broken = delta[stays], broken[stays]
        # A misclassified point is pulled towards the original, and the boundary linearised there instead.
        delta = torch.where(over_examples(broken, delta), _BACKWARD * delta, delta)
        logits, gradient = oracle.gradient(ball.inputs + delta, goals, _gap)
        delta = _towards_boundary(ball, delta, gradient, _gap(logits, goals).to(delta))
    return final, nearest


def _towards_boundary(ball: Ball, delta: Tensor, gradient: Tensor, gap: Tensor) -> Tensor:
    """The next iterate: a mean of the projections of point and original onto the linearised boundary."""
    flat, normal = delta.flatten(1), gradient.flatten(1)
    # Unlike the plane, the squares below would change with the gradient's scale: they would underflow.
    scale = normal.abs().amax(1, keepdim=True).clamp_min(torch.finfo(normal.dtype).tiny)
    normal, gap = normal / scale, gap / scale[:, 0]
    low = high = None
    if ball.box is not None:
        low, high = (limit.flatten(1) for limit in ball.box_limits())
        low, high = torch.cat([low - flat, low]), torch.cat([high - flat, high])
    value = torch.cat([-gap, (normal * flat).sum(1) - gap])
    shift = to_plane(torch.cat([normal, normal]), value, ball.norm, low, high)
    from_point, from_original = shift.chunk(2)
    a, b = norms(from_point, ball.norm), norms(from_original, ball.norm)
    weight = (a / (a + b).clamp_min(torch.finfo(a.dtype).tiny)).clamp_max(_ALPHA_MAX).to(flat)[:, None]
    moved = (1 - weight) * (flat + _OVERSHOOT * from_point) + weight * _OVERSHOOT * from_original
    return ball.to_box(moved.view_as(delta))


def to_plane(normal: Tensor, value: Tensor, norm: Norm, low: Tensor | None, high: Tensor | None) -> Tensor:
    """The shortest d with <normal, d> = value and low <= d <= high, row by row.

    Coordinate i moves towards the plane by min(t q_i, room_i) with q = 1 (l_inf) or |normal| (l_2) (arXiv
    1907.02044). The inner product is concave and piecewise linear in t, so Newton's method from the left ends at
    the root after finitely many steps, a handful in practice, and never oversteps it. Where the plane does not
    meet the box, d is the corner nearest to it.

    Args:
        normal: (B, d).
        value: (B,).
        low, high: (B, d), low <= 0 <= high; None without a box.
    """
    tiny = torch.finfo(normal.dtype).tiny
    size = normal.abs()
    direction = normal.sign() * value.sign()[:, None]
    speed = torch.ones_like(size) if norm == "linf" else size
    weight, value = size * speed, value.abs()[:, None]
    t = value / weight.sum(1, keepdim=True).clamp_min(tiny)
    if low is None:
        return direction * t * speed
    room = torch.where(direction > 0, high, -low).clamp_min(0)
    knots, spent = room / speed.clamp_min(tiny), size * room
    for _ in range(_NEWTON_STEPS):
        moving = (knots > t) & (size > 0)
        slope = (weight * moving).sum(1, keepdim=True)
        root = (value - (spent * ~moving).sum(1, keepdim=True)) / slope.clamp_min(tiny)
        root = torch.where(slope > 0, root, t)  # all have stopped: out of reach
        if (root <= t).all():
            break
        t = torch.maximum(t, root)
    return direction * torch.minimum(t * speed, room)
