r"""Multi-class votes over noisy labels: for each rival class a Chernoff bound on beating the predicted class.

A label keeps its class with probability 1 - q and moves to each other class with probability g = q / (C - 1).
With z = t a_i and t >= 0 the factor of label i in E exp(t (score_c - score_A)) is one plus

- own (label A):    g (e^z - 1) + (1 - q)(e^-z - 1)
- rival (label c):  (1 - q)(e^z - 1) + g (e^-z - 1)
- other:            g (e^z - 1) + g (e^-z - 1)

Source: Rosenfeld et al. (ICML 2020), section 4.3.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from robustrun.methods.smoothing.label_chernoff import (
    Compressed,
    LogMoment,
    by_rows,
    compress,
    group_by_label,
    group_sums,
    minimise,
)


@dataclass(frozen=True)
class RivalVotes:
    """`prediction` (b,); `log_rivals` (b, C - 1), upper bounds on log P(rival's score >= the predicted class's),
    in class order without the predicted class; `t` (b,) the tilt of the strongest rival's bound."""

    prediction: Tensor
    log_rivals: Tensor
    t: Tensor


def rival_votes(
    alpha: Tensor,
    labels: Tensor,
    classes: int,
    q: float,
    *,
    compressed: Compressed | None = None,
    tilts: int = 1,
    tolerance: float = 0.05,
) -> RivalVotes:
    """Bounds for all rivals of all rows of `alpha` (b, n), for training labels (n,) below `classes` = C.

    The prediction is the class of the largest summed alpha, the unsmoothed one. The `tilts` strongest rivals get
    their own best t; the exact bounds of all rivals are then taken at these few t, since every t is sound and the
    rest hardly matters to the union bound (`tilts = C - 1` optimises all). An error of K matters to the second
    order only in the choice of t. Points whose compressed K is off by
    `tolerance` nats or more are optimised over all labels. `compressed` is
    `compress(*group_by_label(alpha, labels, C))`, if the caller has it for several q.
    """
    if classes < 2 or not 0 < q < (classes - 1) / classes:
        raise ValueError(f"q must lie in (0, 1 - 1/classes), got q={q} with {classes} classes")
    alpha, sizes = group_by_label(alpha, labels, classes)
    if compressed is None:
        compressed = compress(alpha, sizes)
    prediction = group_sums(alpha, sizes).argmax(1)
    rivals = _rivals_of(prediction, classes)
    t, guess = _compressed_optima(compressed, rivals, prediction, q)
    leading = guess.topk(min(tilts, classes - 1), dim=1).indices
    t = t.gather(1, leading)
    log_rivals = alpha.new_zeros(len(alpha), classes - 1)  # t = 0 always gives the bound 1
    best_t = alpha.new_zeros(len(alpha))
    for own in prediction.unique().tolist():
        rows = (prediction == own).nonzero().squeeze(1)
        part = alpha if len(rows) == len(alpha) else alpha[rows]
        strongest, tilt = leading[rows], t[rows]
        bounds = _bounds_at(part, sizes, own, tilt, q)
        # where the compression was too coarse for a point, so may be its t: take the optimum over all n labels
        exact = bounds.gather(1, strongest[..., None].expand_as(bounds[:, : strongest.shape[1]]))
        error = exact.diagonal(dim1=1, dim2=2) - guess[rows].gather(1, strongest)
        coarse = (error.abs() >= tolerance).any(1).nonzero().squeeze(1)
        if len(coarse):
            pairs = rivals[rows].gather(1, strongest)[coarse]
            tilt[coarse] = _exact_optima(part[coarse], sizes, own, pairs, tilt[coarse], q)
            bounds[coarse] = _bounds_at(part[coarse], sizes, own, tilt[coarse], q)
        log_rivals[rows], at = bounds.clamp_max(0.0).min(-1)
        best_t[rows] = tilt.gather(1, at).gather(1, log_rivals[rows].argmax(1, keepdim=True)).squeeze(1)
    # a query whose score no label moves: class 0 whatever the labels
    silent = (alpha == 0).all(1)
    return RivalVotes(prediction, log_rivals.masked_fill(silent[:, None], -math.inf), best_t)


def _rivals_of(prediction: Tensor, classes: int) -> Tensor:
    """(b, C - 1) the classes other than the predicted one, ascending."""
    rivals = torch.arange(classes - 1, device=prediction.device).expand(len(prediction), -1)
    return rivals + (rivals >= prediction[:, None])


def _factors(q: float, classes: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """`up` and `down` of a label of class d for the predicted class a and a rival c: two (C, C, C) tables [a, c, d]."""
    g = q / (classes - 1)
    identity = torch.eye(classes, dtype=like.dtype, device=like.device)
    up = g + (1 - q - g) * identity[None, :, :].expand(classes, -1, -1)
    down = g + (1 - q - g) * identity[:, None, :].expand(-1, classes, -1)
    return up, down


def _compressed_optima(compressed: Compressed, rivals: Tensor, prediction: Tensor, q: float) -> tuple[Tensor, Tensor]:
    """(t, log bound) of every pair on the compressed rows, each (b, C - 1)."""
    nodes, weights = compressed.nodes, compressed.weights
    (b, groups, count), others = weights.shape, rivals.shape[1]
    up, down = (table[prediction[:, None], rivals] for table in _factors(q, groups, nodes))  # (b, C-1, C)

    def spread(table: Tensor) -> Tensor:
        return table[..., None].expand(-1, -1, -1, count).reshape(b * others, groups * count)

    pairs = LogMoment(
        nodes[:, None, None, :].expand(-1, others, groups, -1).reshape(b * others, groups * count),
        spread(down),
        spread(up),
        weights[:, None].expand(-1, others, -1, -1).reshape(b * others, groups * count),
    )
    # Gaussian start: at t = 0 Newton's step is -K'(0) / K''(0)
    _, first, second = pairs(nodes.new_zeros(b * others))
    start = (-first / second.clamp_min(1e-300)).clamp_min(0.0)
    t, value = minimise(pairs, start, torch.ones_like(start), tolerance=1e-9)
    return t.view(b, others), value.view(b, others)


def _exact_optima(alpha: Tensor, sizes: list[int], own: int, pair: Tensor, t: Tensor, q: float) -> Tensor:
    """Best t (b, J) of the pairs (own, pair[:, j]) over all n labels."""
    up, down = _factors(q, len(sizes), alpha)
    labels = torch.arange(len(sizes), device=alpha.device).repeat_interleave(torch.tensor(sizes, device=alpha.device))
    columns = []
    for rival, start in zip(pair.unbind(1), t.unbind(1), strict=True):
        function = LogMoment(alpha, down[own, 0][labels], up[own][rival][:, labels])
        columns.append(minimise(function, start, torch.ones_like(start))[0])
    return torch.stack(columns, 1)


def _bounds_at(alpha: Tensor, sizes: list[int], own: int, t: Tensor, q: float) -> Tensor:
    """Log bounds of all rivals of class `own` at each of the tilts `t` (b, J): (b, C - 1, J), rounded up."""
    g = q / (len(sizes) - 1)
    mine = slice(sum(sizes[:own]), sum(sizes[: own + 1]))
    rest = torch.arange(len(sizes), device=alpha.device) != own
    slack = 2 * (alpha.shape[1] + 8) * torch.finfo(alpha.dtype).eps

    def at(chunk: Tensor, t: Tensor) -> Tensor:
        z = t[:, None] * chunk
        up, down = torch.expm1(z), torch.expm1(z.neg_())
        own_terms = torch.log1p(g * up[:, mine] + (1 - q) * down[:, mine])
        other_terms = torch.log1p_((up + down).mul_(g))
        rival_terms = torch.log1p_(up.mul_(1 - q).add_(down, alpha=g))
        other, rival = group_sums(other_terms, sizes)[:, rest], group_sums(rival_terms, sizes)[:, rest]
        size = own_terms.abs().sum(1) + other.sum(1) + rival_terms.abs_().sum(1)
        value = own_terms.sum(1, keepdim=True) + (other.sum(1, keepdim=True) - other) + rival
        return value + slack * size[:, None]

    def part(rows: slice) -> tuple[Tensor]:
        return (torch.stack([at(alpha[rows], column) for column in t[rows].unbind(1)], -1),)

    return by_rows(part, alpha)[0]
