r"""From a bound on the minority vote to the number of training labels that may be changed.

Only two facts enter, whatever the classifier: how far one changed label moves the law of the noisy labels, and
how improbable the vote for any other class is. Log-domain throughout: a bound such as e^-600 is an ordinary one.
Sources: Rosenfeld et al. (ICML 2020), section 4 (Kullback-Leibler form); Lee et al., "Tight certificates of
adversarial robustness for randomly smoothed classifiers" (NeurIPS 2019), for the exact form.
"""

import math

import numpy as np
import torch
from torch import Tensor

_ROUNDING = 1e-12  # relative; far above the error of the few operations of a radius
_NEGLIGIBLE = 1e-290  # probability: mass below it is dropped, which only shortens a radius


def flip_divergence(q: float, classes: int = 2) -> float:
    r"""Kullback-Leibler divergence, in nats, that one changed label adds between the two laws of noisy labels.

    $(1 - qC/(C-1)) \log((1-q)(C-1)/q)$ for C classes, where a label is replaced with probability q by one of the
    others. Raises ValueError unless 0 < q < (C-1)/C.
    """
    if classes < 2 or not 0 < q < (classes - 1) / classes:
        raise ValueError(f"q must lie in (0, 1 - 1/classes), got q={q} with {classes} classes")
    return (1 - q * classes / (classes - 1)) * math.log((1 - q) * (classes - 1) / q)


def _log1mexp(x: Tensor) -> Tensor:
    """log(1 - e^x) for x <= 0."""
    return torch.where(x > -math.log(2), torch.log(-torch.expm1(x)), torch.log1p(-torch.exp(x)))


def _whole_below(nats: Tensor, divergence: float, n: int) -> Tensor:
    """Largest integer r, at most n, with r * divergence strictly below `nats`; 0 where there is none."""
    flips = torch.ceil(nats * (1 - _ROUNDING) / divergence) - 1
    return flips.nan_to_num(nan=0.0, posinf=n, neginf=0.0).clamp(0, n).long()


def binary_nats(log_bound: Tensor) -> Tensor:
    """-log(4 p (1 - p)) / 2 with 1 - p = exp(log_bound): what ties a vote, elementwise; 0 where p <= 1/2."""
    valid = log_bound < -math.log(2)
    safe = torch.where(valid, log_bound, -1.0)
    return torch.where(valid, -(math.log(4) + safe + _log1mexp(safe)) / 2, 0.0)


def kl_radius(log_bound: Tensor, q: float, n: int, classes: int = 2) -> Tensor:
    """Flips that cannot change the vote, from `log_bound` >= log P(any other class), both (b,).

    The paper's analytic certificate, and its one-vs-rest form for more classes. A bound of -inf (no labelling
    changes the base classifier) gives n.
    """
    return _whole_below(binary_nats(log_bound), flip_divergence(q, classes), n)


def pair_nats(log_rivals: Tensor) -> Tensor:
    r"""Divergence needed to tie the predicted class with a rival, from log P(rival beats it) of each (b, C - 1).

    $-\log(1 - (\sqrt{p_A} - \sqrt{p_B})^2)$ with $p_A = 1 - \sum_c u_c$ and $p_B = \max_c u_c$: the least
    Kullback-Leibler divergence to a law under which both are equally likely. 0 where p_A <= p_B.
    """
    largest, index = log_rivals.max(1)
    log_sum = log_rivals.logsumexp(1)
    rest = log_rivals.scatter(1, index[:, None], -math.inf).logsumexp(1)  # log(sum - largest)
    log_winner = _log1mexp(log_sum.clamp_max(-1e-300))
    # 1 - (sqrt pA - sqrt pB)^2 = (1 - pA - pB) + 2 sqrt(pA pB), and 1 - pA - pB is the rest
    log_overlap = torch.logaddexp(rest, math.log(2) + (log_winner + largest) / 2)
    valid = (log_sum < 0) & (log_winner > largest)
    return torch.where(valid, -log_overlap, 0.0).clamp_min(0.0)


def kl_radius_multiclass(log_rivals: Tensor, q: float, n: int) -> Tensor:
    """The larger of the pair form and the one-vs-rest form; `log_rivals` (b, C - 1) as in `pair_nats`.

    Source: Rosenfeld et al. (ICML 2020), section 4.3.
    """
    nats = torch.maximum(pair_nats(log_rivals), binary_nats(log_rivals.logsumexp(1)))
    return _whole_below(nats, flip_divergence(q, log_rivals.shape[1] + 1), n)


def kl_thresholds(q: float, largest: int, *, classes: int = 2) -> Tensor:
    """log of the largest P(any other class), (largest,), at which r = 1, 2, ... flips are certified by `kl_radius`.

    The solution B of -1/2 log(4 B (1 - B)) = r `flip_divergence`, decreasing in r.
    """
    nats = torch.arange(1, largest + 1, dtype=torch.float64) * flip_divergence(q, classes)
    # (1 - s) / 2 = (1 - s^2) / (2 (1 + s)), with 1 - s^2 = e^(-2 nats)
    return -2 * nats - torch.log(2 * (1 + (-torch.expm1(-2 * nats)).sqrt()))


def np_thresholds(q: float, largest: int, *, classes: int = 2, smallest_log_bound: float = -math.inf) -> Tensor:
    """log Bmax(r) for r = 1, 2, ..., decreasing: r flips are certified iff log P(any other class) < log Bmax(r).

    Neyman-Pearson: among all classifiers whose other classes have probability B, the one that r flips hurt most
    answers the predicted class on the labellings that are likeliest under the true labels against the flipped
    ones. Only the r differing labels matter, through the sum of r independent steps in {+1, 0, -1}. Stops at
    `largest`, or once no bound as low as `smallest_log_bound` needs more. Rounded down.
    """
    flip_divergence(q, classes)
    step = np.array([1 - q, q - q / (classes - 1), q / (classes - 1)])  # P(-1), P(0), P(+1) under flipped labels
    log_ratio = math.log(1 - q) - math.log(q / (classes - 1))
    law, lowest = np.ones(1), 0  # law[j]: probability of the sum lowest + j under the flipped labels
    thresholds = []
    for r in range(1, largest + 1):
        law, lowest = np.convolve(law, step), lowest - 1
        kept = np.flatnonzero(law > _NEGLIGIBLE)
        law, lowest = law[kept[0] : kept[-1] + 1], lowest + int(kept[0])
        tail = np.cumsum(law[::-1])[::-1]  # P(sum >= lowest + j)
        cut = int(np.searchsorted(-tail, -0.5, side="right")) - 1  # the last j with a tail of at least 1/2
        if cut < 0:
            break
        rounding = (r + len(law) + 8) * 4 * np.finfo(float).eps
        left_out = min(max((tail[cut] - 0.5 - rounding) / law[cut], 0.0), 1.0)  # 1 - gamma
        # under the true labels a sum s is e^(s log_ratio) times as likely
        with np.errstate(divide="ignore"):
            log_law = np.log(law[: cut + 1]) + (lowest + np.arange(cut + 1)) * log_ratio
            log_law[cut] += np.log(left_out)
        thresholds.append(np.logaddexp.reduce(log_law) - rounding * (1 + abs(lowest) * log_ratio))
        if thresholds[-1] <= smallest_log_bound:
            break
    return torch.tensor(thresholds, dtype=torch.float64)


def np_radius(log_bound: Tensor, q: float, n: int, classes: int = 2) -> Tensor:
    """The tight counterpart of `kl_radius`: no larger radius follows from the vote's probability alone."""
    finite = log_bound[log_bound.isfinite()]
    smallest = float(finite.min()) if len(finite) else 0.0
    thresholds = np_thresholds(q, n, classes=classes, smallest_log_bound=smallest).to(log_bound.device)
    radius = torch.searchsorted(-thresholds, -log_bound.contiguous(), side="left")
    return torch.where(log_bound == -math.inf, n, radius)
