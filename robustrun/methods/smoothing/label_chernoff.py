r"""Chernoff bounds on a vote over random labels, minimised for all test points at once.

A linear classifier's vote over noisy labels is decided by the sign of a weighted sum of independent terms, so

$$\log P \le K(t) = \mathrm{slope} \cdot t + \sum_i \log(1 + u_i (e^{t a_i} - 1) + v_i (e^{-t a_i} - 1))$$

for every t: any t gives a sound bound, and the best one is found by a safeguarded Newton iteration. It runs on
a compression of each point's n weights to a few Chebyshev nodes, which is so accurate that a single pass over the n
weights remains: the one that makes the bound exact. Source: Rosenfeld et al. (ICML 2020), section 4.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from robustrun.methods.smoothing.label_compress import (
    Compressed,
    by_rows,
    compress,
    group_by_label,
    group_sums,
    log_products,
)

_LARGEST_EXPONENT = 600.0  # |t a_i| beyond this tilts a label by e^600: never useful, and exp would overflow


@dataclass(frozen=True)
class LogMoment:
    """K(t) for b rows of n terms: `values` a (b, n); `up` u and `down` v broadcastable to it (`up` None: zero).

    `weights` (b, n) repeats terms (compressed rows); None counts each once.
    """

    values: Tensor
    down: Tensor
    up: Tensor | None = None
    weights: Tensor | None = None
    slope: float = 0.0

    def rows(self, index: Tensor | slice) -> "LogMoment":
        """The same function for a subset of the rows."""

        def pick(x: Tensor | None) -> Tensor | None:
            return x if x is None or x.ndim < 2 else x[index]

        return replace(
            self,
            values=self.values[index],
            down=pick(self.down),
            up=pick(self.up),
            weights=pick(self.weights),
        )

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """K(t), rounded up, with its first and second derivative; each (b,) for t (b,)."""
        return by_rows(lambda rows: self.rows(rows)._evaluate(t[rows]), self.values)

    def _evaluate(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        a = self.values
        z = t[:, None] * a
        down = torch.expm1(-z)
        x = self.down * down
        minus = self.down * down.add_(1)
        plus = None
        if self.up is not None:
            up = torch.expm1(z)
            x.addcmul_(self.up, up)
            plus = self.up * up.add_(1)
        log = torch.log1p(x)
        inverse = x.add_(1).reciprocal_()
        minus.mul_(inverse)
        drift = minus.neg() if plus is None else plus.mul_(inverse) - minus
        spread = minus if plus is None else minus.add_(plus)
        spread.addcmul_(drift, drift, value=-1)
        if self.weights is not None:
            log, drift, spread = log * self.weights, drift * self.weights, spread * self.weights
        # (n + 8) eps sum |term| bounds the rounding of the sum in any order, and of the few operations a term
        size = log.abs().sum(1) + abs(self.slope) * t.abs()
        slack = (a.shape[1] + 8) * torch.finfo(a.dtype).eps * size
        value = log.sum(1) + self.slope * t + slack
        drift.mul_(a)
        return value, drift.sum(1) + self.slope, spread.mul_(a).mul_(a).sum(1)


def minimise(
    function: LogMoment,
    start: Tensor,
    side: Tensor,
    *,
    tolerance: float = 1e-9,
    max_iterations: int = 80,
) -> tuple[Tensor, Tensor]:
    """argmin and min of K over `side * t >= 0`, row by row; every value returned was evaluated, so it is sound.

    `start` (b,) is any point on the right side, `side` (b,) is +1 or -1, the sign of the minimiser. A row stops
    once Newton's predicted gain is below `tolerance` (nats). Returns (t, K), each (b,).
    """
    limit = _LARGEST_EXPONENT / function.values.abs().amax(1).clamp_min(1e-300)
    tau = torch.where(start * side > 0, start.abs(), torch.ones_like(start)).minimum(limit)
    best_t, best = torch.zeros_like(start), torch.zeros_like(start)  # K(0) = 0
    low, high = torch.zeros_like(tau), torch.full_like(tau, math.inf)
    active = torch.arange(len(tau), device=tau.device)
    current = function
    for _ in range(max_iterations):
        value, first, second = current(side[active] * tau)
        first = first * side[active]
        better = value < best[active]
        best[active[better]], best_t[active[better]] = value[better], (side[active] * tau)[better]
        step = -first / second
        low, high = torch.where(first < 0, tau, low), torch.where(first > 0, tau, high)
        # convergence is judged before the bracket: a last step of rounding size must not be bisected away
        gain = (first * step).abs()
        done = (gain < tolerance) & (second > 0) | (first == 0) | (tau >= limit) & (first < 0)
        proposal = tau + step
        # inside the bracket a step is Newton's; otherwise, or where K is not convex, halve or double
        inside = (proposal > low) & (proposal < high) & (second > 0)
        fallback = torch.where(high.isinf(), 2 * tau, (low + high) / 2)
        tau = torch.where(inside, proposal, fallback).minimum(4 * tau).minimum(limit)
        if done.any():
            keep = (~done).nonzero().squeeze(1)
            if not len(keep):
                break
            active, tau, low, high, limit = active[keep], tau[keep], low[keep], high[keep], limit[keep]
            current = current.rows(keep)
    return best_t, best


@dataclass(frozen=True)
class BinaryVote:
    """`prediction` (b,) 0 or 1; `log_bound` (b,) upper bound on log P(the other class); `t` (b,) its minimiser.

    `log_bound` is -inf, and t is -inf, where no labelling whatever gives the other class.
    """

    prediction: Tensor
    log_bound: Tensor
    t: Tensor


def binary_vote(
    alpha: Tensor,
    labels: Tensor,
    q: float,
    *,
    compressed: Compressed | None = None,
    tolerance: float = 1e-7,
) -> BinaryVote:
    """Chernoff bound on the minority vote of `1{alpha . y >= 1/2}` under labels flipped with probability q.

    `alpha` (b, n) float64, `labels` (n,) 0 or 1, 0 < q < 1/2. `compressed`, if the caller has it for several q,
    is `compress(*group_by_label(alpha, labels, 2))`. The prediction is the class of the mean score, which is the
    majority vote whenever the bound is below one half. Source: Rosenfeld et al. (ICML 2020), section 4.1.

    Raises:
        ValueError: q is not in (0, 1/2).
    """
    if not 0 < q < 0.5:
        raise ValueError(f"q must lie in (0, 1/2), got {q}")
    alpha, sizes = group_by_label(alpha, labels, 2)
    if compressed is None:
        compressed = compress(alpha, sizes)
    rate = alpha.new_tensor([q, 1 - q])  # of a noisy label 1, by the true label
    mean = compressed.sums @ rate
    side = torch.where(mean >= 0.5, 1.0, -1.0).to(alpha)
    gaussian = (mean - 0.5) / (q * (1 - q) * compressed.total(torch.square)).clamp_min(1e-300)
    surrogate = LogMoment(
        compressed.nodes.repeat(1, 2),
        rate.repeat_interleave(compressed.nodes.shape[1]),
        weights=compressed.weights.flatten(1),
        slope=0.5,
    )
    start, _ = minimise(surrogate, gaussian, side, tolerance=1e-16)
    start = torch.where(start * side > 0, start, gaussian)
    limit = _LARGEST_EXPONENT / compressed.largest.clamp_min(1e-300)
    start = torch.maximum(torch.minimum(start, limit), -limit)
    value, first = _binary_bound(alpha, sizes, start, rate, compressed.largest)
    _, _, second = surrogate(start)
    log_bound, t = value.clamp_max(0.0), torch.where(value < 0, start, 0.0)  # t = 0 gives the bound 1
    # where the compression was too coarse for a point, so is its t: take the optimum over all n labels
    coarse = (~(first.square() < tolerance * second)).nonzero().squeeze(1)
    if len(coarse):
        moment = LogMoment(alpha[coarse], rate[labels.sort().values], slope=0.5)
        t[coarse], log_bound[coarse] = minimise(moment, start[coarse], side[coarse], tolerance=tolerance)

    # no labelling reaches 1/2: the infimum over t < 0 is -inf, and not attained
    settled = torch.zeros_like(side, dtype=torch.bool)
    low = (compressed.sums.sum(1) < 0.6).nonzero().squeeze(1)  # the positive ones add up to no less
    room = 1 + (alpha.shape[1] + 8) * torch.finfo(alpha.dtype).eps
    settled[low] = alpha[low].clamp_min(0).sum(1) * room < 0.5
    prediction = torch.where(settled, 0, (side > 0).long())
    return BinaryVote(
        prediction,
        log_bound.masked_fill(settled, -math.inf),
        t.masked_fill(settled, -math.inf),
    )


def _binary_bound(alpha: Tensor, sizes: list[int], t: Tensor, rate: Tensor, largest: Tensor) -> tuple[Tensor, Tensor]:
    """K(t), rounded up, and K'(t) of each row of `alpha` (b, n), grouped by label; in one pass."""
    n, eps = alpha.shape[1], torch.finfo(alpha.dtype).eps
    one, keep = rate.repeat_interleave(torch.tensor(sizes, device=rate.device)), 1 - rate

    def part(rows: slice) -> tuple[Tensor, Tensor]:
        a, exponent = alpha[rows], t[rows].abs() * largest[rows]
        factors = (a * -t[rows, None]).exp_().mul_(one).add_(1 - one)
        # d log(factor) / dt = -a (1 - keep / factor)
        first = 0.5 - a.sum(1) + group_sums(a / factors, sizes) @ keep
        # each factor lies between 1 and e^(-ta)
        value, error = log_products(factors, [n], float(exponent.amax()))
        slack = error.squeeze(1) + eps * (n * (exponent / 2 + 4) + t[rows].abs())
        return value.squeeze(1) + 0.5 * t[rows] + slack, first

    return by_rows(part, alpha)
