"""The polytope of label marginals and the exact Euclidean projection onto it, batched.

A distribution over 0/1 vectors of length n is summarised by its level marginals
P[k - 1, i] = Pr(y_i = 1 and sum(y) = k), k = 1..n: one row a level, one column a sample. The realisable ones are

    Delta = { P >= 0,  P[k, i] <= r_k,  sum_k r_k <= 1 },      r_k = (1/k) sum_i P[k, i] = Pr(sum(y) = k):

row k is r_k times the convex hull of the vectors with k ones (Fathony and Kolter, arXiv 1912.00965). Levels lie
in rows so that what belongs together is contiguous.

The projection of A is P_k = clamp(A_k + t_k - s/k, 0, r_k): s >= 0 is the multiplier of sum_k r_k <= 1 and
t_k >= 0 that of the caps of row k. Given which entries are capped (m of them) and which positive (N), the three
follow from a 2 x 2 system a row and one sum over rows; so a Newton step on the active sets is closed-form.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Multipliers(NamedTuple):
    """What fixes a projection: P = clamp(A + lift - shift / k, 0, cap). A warm start for the next one."""

    lift: Tensor  # (..., n): t_k
    cap: Tensor  # (..., n): r_k
    shift: Tensor  # (..., 1): s


def project(
    points: Tensor, start: Multipliers | None = None, *, rounds: int = 60, exact: bool = True
) -> tuple[Tensor, Multipliers]:
    """Euclidean projection of (..., n, n) points onto Delta, row k - 1 holding level k.

    Newton on the active sets, from the multipliers of a nearby point if given: exact as soon as the sets repeat,
    in 1-3 rounds then and in about 10 from nothing. The rare cycle is ended by bisection on s.

    Args:
        points: to project.
        start: the multipliers of the projection of similar points.
        rounds: of Newton's iteration, at most.
        exact: false stops after the rounds as it is: near the projection, if the start was.

    Returns:
        the projection, and its multipliers.
    """
    rows = _SortedRows(points)
    current, ended = rows.newton(_untouched(points) if start is None else start, rounds)
    if exact and not ended:
        current = rows.bisect()
    offset = current.lift - current.shift / rows.levels
    projection = (points + offset.unsqueeze(-1)).clamp_(min=0.0)
    return torch.minimum(projection, current.cap.unsqueeze(-1), out=projection), current


def _untouched(points: Tensor) -> Multipliers:
    """The multipliers of a point inside: nothing capped, nothing moved."""
    zeros = points.new_zeros(points.shape[:-1])
    return Multipliers(zeros, torch.full_like(zeros, torch.inf), zeros[..., :1])


class _SortedRows:
    """The rows of the points, sorted once: a uniform offset keeps their order, so active sets are two numbers."""

    def __init__(self, points: Tensor):
        n = points.shape[-1]
        self.levels = torch.arange(1, n + 1, dtype=points.dtype, device=points.device)
        self.negated = sorted_rows(points.neg())
        self.top_sums = torch.nn.functional.pad(self.negated.cumsum(-1).neg_(), (1, 0))
        # Entries within rounding of a bound count as not beyond it, or ties would flip for ever.
        ends = torch.maximum(self.negated[..., 0].abs(), self.negated[..., -1].abs())
        self.slack = 1e-13 * ends.amax(-1, keepdim=True)
        # At most k - 1 entries of row k are capped: with k of them at r_k the row's sum is used up.
        counts = torch.stack((self.levels - 1, torch.full_like(self.levels, n)), -1)
        self.most = counts.to(torch.int64)

    def active_sets(self, at: Multipliers) -> Tensor:
        """(..., n, 2): how many entries of each row are capped and how many positive."""
        offset = at.lift - at.shift / self.levels - self.slack
        thresholds = torch.stack((offset - at.cap, offset), -1)
        return torch.searchsorted(self.negated, thresholds).minimum(self.most)

    def solve(self, counts: Tensor, shift: Tensor | None = None) -> Multipliers:
        """The multipliers that active sets imply; `shift` is solved for as well unless it is given."""
        sum_capped, sum_positive = self.top_sums.gather(-1, counts).unbind(-1)
        capped, positive = counts.to(self.levels.dtype).unbind(-1)
        free, inner = self.levels - capped, positive - capped
        sum_inner = sum_positive - sum_capped
        det = free * free + capped * inner
        cap = (inner * sum_capped + free * sum_inner) / det
        lift = (free * sum_capped - capped * sum_inner) / det
        slope = inner / det  # -d cap / d shift
        if shift is None:
            surplus = cap.sum(-1, keepdim=True) - 1.0
            shift = (surplus / slope.sum(-1, keepdim=True).clamp(min=1e-300)).clamp_(min=0.0)
        cap = (cap - shift * slope).clamp_(min=0.0)
        lift = (lift - shift * capped * (self.levels - positive) / (det * self.levels)).clamp_(min=0.0)
        return Multipliers(lift, cap, shift)

    def newton(self, current: Multipliers, rounds: int, shift: Tensor | None = None) -> tuple[Multipliers, bool]:
        """Solve for the active sets of the solution until they repeat; whether they did within `rounds`.

        A joint step may cycle; after a few rounds, s moves only when the rows have settled for it.
        """
        seen, moved = None, True
        for i in range(rounds):
            found = self.active_sets(current)
            settled = seen is not None and torch.equal(found, seen)
            if settled and moved:
                return current, True
            seen, moved = found, i < 8 or settled or shift is not None
            before, current = current, self.solve(found, shift if moved else current.shift)
            if i >= 8 and moved and self._unchanged(before, current):  # sets that flip within rounding
                return current, True
        return current, False

    def _unchanged(self, before: Multipliers, after: Multipliers) -> bool:
        offsets = (m.lift - m.shift / self.levels for m in (before, after))
        moves = torch.stack([next(offsets) - next(offsets), before.cap - after.cap]).abs()
        return bool((moves <= 100 * self.slack).all())

    def bisect(self) -> Multipliers:
        """The same solution by bisection on s: sum_k r_k falls in s, and the rows of a given s are Newton's."""
        low = torch.zeros_like(self.slack)
        high = (self.negated[..., 0].neg().clamp(min=0.0) * self.levels).amax(-1, keepdim=True)
        high = torch.where(self._rows_at(low).cap.sum(-1, keepdim=True) > 1.0, high, low)
        for _ in range(100):
            middle = (low + high) / 2
            surplus = self._rows_at(middle).cap.sum(-1, keepdim=True) > 1.0
            low, high = torch.where(surplus, middle, low), torch.where(surplus, high, middle)
        return self._rows_at(high)

    def _rows_at(self, shift: Tensor) -> Multipliers:
        start = _untouched(self.negated)._replace(shift=shift)
        return self.newton(start, 2 * self.levels.numel() + 2, shift)[0]


def sorted_rows(values: Tensor) -> Tensor:
    """Rows (..., n) in ascending order. NumPy's vectorised sort is several times faster than torch's on a CPU."""
    if values.device.type == "cpu":
        return torch.from_numpy(np.sort(values.numpy(), axis=-1))
    return values.sort(-1).values
