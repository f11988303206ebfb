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

from robustrun.methods.smoothing.label_chernoff import LogMoment, minimise
from robustrun.methods.smoothing.label_compress import (
    Compressed,
    by_rows,
    compress,
    group_by_label,
    log_products,
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

    Raises:
        ValueError: q is not in (0, 1 - 1/classes).
    """
    if classes < 2 or not 0 < q < (classes - 1) / classes:
        raise ValueError(f"q must lie in (0, 1 - 1/classes), got q={q} with {classes} classes")
    alpha, sizes = group_by_label(alpha, labels, classes)
    if compressed is None:
        compressed = compress(alpha, sizes)
    prediction = compressed.sums.argmax(1)
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
        bounds = _bounds_at(part, sizes, own, tilt, q, compressed.largest[rows])
        # where the compression was too coarse for a point, so may be its t: take the optimum over all n labels
        exact = bounds.gather(1, strongest[..., None].expand_as(bounds[:, : strongest.shape[1]]))
        error = exact.diagonal(dim1=1, dim2=2) - guess[rows].gather(1, strongest)
        coarse = (error.abs() >= tolerance).any(1).nonzero().squeeze(1)
        if len(coarse):
            pairs = rivals[rows].gather(1, strongest)[coarse]
            tilt[coarse] = _exact_optima(part[coarse], sizes, own, pairs, tilt[coarse], q)
            largest = compressed.largest[rows][coarse]
            bounds[coarse] = _bounds_at(part[coarse], sizes, own, tilt[coarse], q, largest)
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
    (b, classes, count), others = weights.shape, rivals.shape[1]
    g = q / (classes - 1)
    # to a pair there are three kinds of labels: its own, the rival's, and all others
    own = weights[torch.arange(b, device=nodes.device), prediction][:, None].expand(-1, others, -1)
    rival = weights.gather(1, rivals[..., None].expand(-1, -1, count))
    rest = weights.sum(1, keepdim=True) - own - rival
    pairs = LogMoment(
        nodes[:, None].expand(-1, others, -1).reshape(b * others, count).repeat(1, 3),
        nodes.new_tensor([1 - q, g, g]).repeat_interleave(count),
        nodes.new_tensor([g, 1 - q, g]).repeat_interleave(count),
        torch.cat([own, rival, rest], -1).view(b * others, 3 * count),
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


def _bounds_at(alpha: Tensor, sizes: list[int], own: int, t: Tensor, q: float, largest: Tensor) -> Tensor:
    """Log bounds of all rivals of class `own` at each of the tilts `t` (b, J): (b, C - 1, J), rounded up."""
    classes, n, eps = len(sizes), alpha.shape[1], torch.finfo(alpha.dtype).eps
    g = q / (classes - 1)
    mine = slice(sum(sizes[:own]), sum(sizes[: own + 1]))
    rest = torch.arange(classes, device=alpha.device) != own

    def at(chunk: Tensor, t: Tensor, largest: Tensor) -> Tensor:
        exponent = t.abs() * largest
        span = float(exponent.amax())
        up = (chunk * t[:, None]).exp_()
        down = up.reciprocal()
        # factors of E exp(t (score_c - score_A)); each is an average of 1, e^z and e^-z
        mine_factors = (g * up[:, mine]).add_(down[:, mine], alpha=1 - q).add_(g * (classes - 2))
        other_factors = (up + down).mul_(g).add_(1 - 2 * g)
        rival_factors = up.mul_(1 - q).add_(down, alpha=g).add_(g * (classes - 2))
        (own_log, own_error), (other, other_error), (rival, rival_error) = (
            log_products(factors, groups, span)
            for factors, groups in (
                (mine_factors, [sizes[own]]),
                (other_factors, sizes),
                (rival_factors, sizes),
            )
        )
        value = own_log + (other[:, rest].sum(1, keepdim=True) - other[:, rest]) + rival[:, rest]
        slack = own_error + other_error.sum(1, keepdim=True) + rival_error[:, rest]
        return value + slack + (eps * n * (exponent / 2 + 6))[:, None]

    def part(rows: slice) -> tuple[Tensor]:
        return (torch.stack([at(alpha[rows], column, largest[rows]) for column in t[rows].unbind(1)], -1),)

    return by_rows(part, alpha)[0]
