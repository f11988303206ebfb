"""Square Attack: random search over square patches, which asks for logits alone (arXiv 1912.00049)."""

import math

import torch
from torch import Tensor

from robustrun.methods.attacks.balls import Ball, Box, Norm, Radius, norms, over_examples, random_like
from robustrun.methods.attacks.gradients import Network, Oracle, evaluation_mode
from robustrun.methods.attacks.losses import margin
from robustrun.methods.attacks.pgd import AttackResult

_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # of the patch's area, in 10,000 queries


def square(
    model: Network,
    inputs: Tensor,
    labels: Tensor,
    *,
    norm: Norm = "linf",
    epsilon: Radius,
    queries: int = 5000,
    area: float = 0.8,
    box: Box = (0.0, 1.0),
    generator: torch.Generator | None = None,
) -> AttackResult:
    """Square Attack (arXiv 1912.00049, Algorithms 1 to 3) on the margin; broken examples leave the batch.

    In l_2, what the box cuts off a proposal goes to its other pixels (`_filled`), where the paper's stays short of
    the radius: on MNIST at radius 2 this breaks half as many again.

    Args:
        model: maps images (B, C, H, W) in natural units to logits (B, classes). No gradient is asked for.
        inputs: (B, C, H, W), inside the box.
        labels: (B,).
        norm, epsilon, box: the threat, see `Ball`.
        queries: forward passes at most.
        area: share of the image that the first patches cover.
        generator: of all draws; they are made for the whole batch, so compaction changes nothing.

    Returns:
        The perturbation of the largest margin that was found.

    Raises:
        ValueError: the inputs are not images.
    """
    if inputs.ndim != 4:
        raise ValueError(f"the square attack perturbs images (B, C, H, W), not inputs of {tuple(inputs.shape)}")
    ball, oracle = Ball(inputs, norm, epsilon, box), Oracle(model)
    propose = _linf_patch if norm == "linf" else _l2_patches
    draw = _Draw(inputs, generator)
    with evaluation_mode(model):
        value = margin(oracle.logits(inputs), labels).to(inputs)
        final, everything = torch.zeros_like(inputs), torch.arange(len(inputs), device=inputs.device)
        rows = everything[value <= 0]
        start = ball.project(_stripes(ball, draw)) if norm == "linf" else _filled(ball, _tiles(ball, draw))
        ball, labels, delta = ball.select(rows), labels[rows], torch.zeros_like(inputs[rows])
        for query in range(1, queries):
            if not len(rows):
                break
            if query == 1:
                proposed = start[rows]
            else:
                side = patch_side(area, query - 2, queries, inputs.shape[-2:])
                proposed = propose(ball, delta, side, draw, rows)
            found = margin(oracle.logits(ball.inputs + proposed), labels).to(value)
            better = (found > value[rows]) if query > 1 else torch.ones_like(found, dtype=torch.bool)
            delta = torch.where(over_examples(better, delta), proposed, delta)
            value[rows] = torch.where(better, found, value[rows])
            if (stays := (value[rows] <= 0).nonzero()[:, 0]).numel() < len(rows):
                final[rows] = delta
                rows, labels, delta, ball = rows[stays], labels[stays], delta[stays], ball.select(stays)
        final[rows] = delta
    return AttackResult(final, value > 0, value, oracle.forwards, 0)


def patch_side(area: float, query: int, queries: int, size: tuple[int, int]) -> int:
    """The side of the patch at a query: its area is halved along a fixed schedule."""
    position = query * 10_000 // queries
    share = area / 2 ** sum(position > mark for mark in _HALVINGS)
    return min(max(round(math.sqrt(share * size[0] * size[1])), 1), min(size))


class _Draw:
    """Random numbers for the rows of a batch, drawn for all of it."""

    def __init__(self, inputs: Tensor, generator: torch.Generator | None):
        self.inputs, self.generator = inputs, generator

    def uniform(self, *shape: int) -> Tensor:
        return random_like(self.inputs.new_empty(len(self.inputs), *shape), "uniform", self.generator)

    def signs(self, *shape: int) -> Tensor:
        return 1 - 2 * (self.uniform(*shape) < 0.5).to(self.inputs)

    def window(self, side: int, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """A square somewhere in each of some images: row (B, H, 1) and column (B, 1, W) within it, and its mask."""
        offsets = []
        for shape, size in (((-1, 1), self.inputs.shape[2]), ((1, -1), self.inputs.shape[3])):
            first = (self.uniform(1, 1)[rows] * (size - side + 1)).long()
            offsets.append(torch.arange(size, device=first.device).view(shape) - first)
        row, column = offsets
        return row, column, (((row >= 0) & (row < side)) & ((column >= 0) & (column < side)))[:, None]


def _stripes(ball: Ball, draw: _Draw) -> Tensor:
    """The l_inf start: vertical stripes of width one, each channel +-epsilon."""
    channels, columns = ball.inputs.shape[1], ball.inputs.shape[3]
    return (draw.signs(channels, 1, columns) * ball.epsilon).expand_as(ball.inputs)


def _linf_patch(ball: Ball, delta: Tensor, side: int, draw: _Draw, rows: Tensor) -> Tensor:
    """Algorithm 2: in one square, every channel becomes +-epsilon."""
    mask, sign = draw.window(side, rows)[2], draw.signs(delta.shape[1], 1, 1)[rows]
    return ball.project(torch.where(mask, sign * ball.epsilon, delta))


def _bump(height: int, width: int) -> Tensor:
    """A pyramid that falls off from its centre (arXiv 1912.00049, eq. 2)."""
    n = height // 2
    levels = (1 / torch.arange(n + 1, 0, -1, dtype=torch.float64) ** 2).cumsum(0)
    row, column = (torch.arange(height) - height // 2).abs(), (torch.arange(width) - width // 2).abs()
    depth = n - torch.maximum(row[:, None], column[None, :])
    return torch.where(depth >= 0, levels[depth.clamp_min(0)], 0)


def _dipole(side: int, like: Tensor) -> Tensor:
    """A positive bump beside a negative one, of unit l_2 norm: (side, side)."""
    half = side // 2
    pair = torch.cat([_bump(side, half), -_bump(side, side - half)], 1)
    return (pair / pair.norm()).to(like)


def _tiles(ball: Ball, draw: _Draw) -> Tensor:
    """The l_2 start: a grid of five by five dipoles of random sign, of norm epsilon."""
    _, channels, height, width = ball.inputs.shape
    count = min(5, height, width)
    side = min(height, width) // count
    signs = draw.signs(channels, count, 1, count, 1)
    grid = signs * _dipole(side, ball.inputs).view(1, 1, 1, side, 1, side)
    size = count * side
    canvas, top, left = torch.zeros_like(ball.inputs), (height - size) // 2, (width - size) // 2
    canvas[:, :, top : top + size, left : left + size] = grid.reshape(-1, channels, size, size)
    return canvas / over_examples(norms(canvas, "l2"), canvas) * ball.epsilon


def _l2_patches(ball: Ball, delta: Tensor, side: int, draw: _Draw, rows: Tensor) -> Tensor:
    """Algorithm 3: what two squares and the rest of the radius hold goes into a dipole in the first."""
    channels, smallest = delta.shape[1], min(delta.shape[2:])
    side = min(max(side, 3) | 1, smallest - 1 + smallest % 2)  # odd
    row, column, first = draw.window(side, rows)
    second = draw.window(side, rows)[2]
    turned, sign = (draw.uniform(1, 1) < 0.5).long()[rows], draw.signs(channels, 1, 1)[rows]
    dipole = _dipole(side, delta)
    dipoles = torch.stack([dipole, dipole.T])
    bump = dipoles[turned, row.clamp(0, side - 1), column.clamp(0, side - 1)][:, None]

    def length(part: Tensor) -> Tensor:
        return part.square().sum((2, 3), keepdim=True).sqrt()

    tiny = torch.finfo(delta.dtype).tiny
    unused = (torch.as_tensor(ball.epsilon) ** 2 - delta.square().sum((1, 2, 3), keepdim=True)).clamp_min(0)
    either = first | second
    available = (length(delta * either) ** 2 + unused / channels).sqrt()
    inside = delta * first
    mixed = (sign * bump + inside / length(inside).clamp_min(tiny)) * first
    spent = mixed / length(mixed).clamp_min(tiny) * available
    return _filled(ball, torch.where(either, spent, delta))


def _filled(ball: Ball, delta: Tensor) -> Tensor:
    """`delta` (B, C, H, W) within ball and box, close to the whole radius long if the box leaves it any way to be."""
    for _ in range(3):
        length = over_examples(norms(delta, "l2"), delta)
        delta = ball.to_box(delta * (ball.epsilon / length.clamp_min(torch.finfo(length.dtype).tiny)))
    return ball.project(delta)
