r"""The exact worst case of a classifier that is linear in its training labels, without any smoothing.

Changing label i moves a score by a known amount, so the most harmful r changes are the r largest ones: sorting
gives the least number of flips that changes a prediction, which is both a certificate that cannot be improved
and the optimal attack. It holds for ridge and kernel ridge regression, Gaussian-process means, and weighted
neighbours.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from robustrun.methods.smoothing.label_compress import by_rows

_FIRST_SORTED = 2048  # the largest influences looked at first: few points need more


@dataclass(frozen=True)
class ExactFlips:
    """`prediction` (b,); `radius` (b,) label changes that can never change it, n if none can; `fractional` (b,)
    the radius plus the part of the next change that reaches the boundary."""

    prediction: Tensor
    radius: Tensor
    fractional: Tensor


def exact_flips(alpha: Tensor, labels: Tensor) -> ExactFlips:
    """Exact radius of `1{alpha . y >= 1/2}` for `alpha` (b, n) and labels (n,) in {0, 1}."""
    y = labels.to(alpha.dtype)
    score = alpha @ y
    prediction = (score >= 0.5).long()

    def part(rows: slice) -> tuple[Tensor, Tensor]:
        side = 2.0 * prediction[rows, None] - 1
        harm = (alpha[rows] * (2 * y - 1) * side).clamp_min(0.0)
        # a score of exactly 1/2 is class 1: leaving class 1 takes more than the margin, leaving 0 all of it
        return _least_count(harm, (score[rows] - 0.5).abs(), prediction[rows] == 1)

    return ExactFlips(prediction, *by_rows(part, alpha))


def exact_flips_multiclass(alpha: Tensor, targets: Tensor) -> ExactFlips:
    """Exact radius of `argmax(alpha @ targets)` for one-hot `targets` (n, C); any label may become any other.

    Against rival c, the change of label i that harms most moves the difference of the two scores by
    |a_i| + s_i a_i, where s_i is +1 for labels of the predicted class, -1 for the rival's and 0 for the others.
    Ties go to the smaller class.
    """
    scores = alpha @ targets
    prediction = scores.argmax(1)
    classes = torch.arange(targets.shape[1], device=alpha.device)

    def part(rows: slice) -> tuple[Tensor, Tensor]:
        chunk, own = alpha[rows], prediction[rows]
        top = scores[rows].gather(1, own[:, None])
        size, mine = chunk.abs(), targets.T[own]
        radius = torch.full_like(own, len(targets))
        fractional = torch.full_like(chunk[:, 0], float(len(targets)))
        for rival in classes:
            harm = (size + chunk * (mine - targets[:, rival])).clamp_min(0.0)
            count, partial = _least_count(harm, top[:, 0] - scores[rows, rival], own < rival)
            other = own != rival
            radius = torch.where(other, radius.minimum(count), radius)
            fractional = torch.where(other, fractional.minimum(partial), fractional)
        return radius, fractional

    return ExactFlips(prediction, *by_rows(part, alpha))


def _least_count(harm: Tensor, margin: Tensor, strict: Tensor) -> tuple[Tensor, Tensor]:
    """How many of the largest `harm` (b, n) together never exceed (`strict`) or reach `margin`; all (b,) else.

    Returns the whole count, n where all of them do not suffice, and the count with the used part of the next.
    """
    n = harm.shape[1]
    radius = torch.full_like(margin, n, dtype=torch.long)
    fractional = torch.full_like(margin, float(n))
    rows, width = torch.arange(len(harm), device=harm.device), min(_FIRST_SORTED, n)
    while len(rows):
        largest = harm[rows].topk(width, dim=1).values
        total = largest.cumsum(1)
        bar = margin[rows, None]
        enough = torch.where(strict[rows, None], total > bar, total >= bar)
        found = enough[:, -1]
        at = enough[found].long().argmax(1, keepdim=True)
        used = (bar[found] - total[found].gather(1, at)) / largest[found].gather(1, at).clamp_min(1e-300) + 1
        radius[rows[found]] = at.squeeze(1)
        fractional[rows[found]] = (at + used.clamp(0, 1)).squeeze(1)
        if width == n:
            break
        rows, width = rows[~found], min(4 * width, n)
    return radius, fractional
