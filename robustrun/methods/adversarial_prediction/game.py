"""The marginal game of a metric on batches of n samples: payoffs, constraints and certificates.

With P (predictor) and Q (adversary) level marginals as in `polytope`, the expected metric is

    E[metric] = <P, Z(Q)> + <Q, E> + c,        Z(Q)[k, i] = sum_l C[l, k] Q[l, i] + sum_l B[l, k] sum_j Q[l, j] + D[k]

(Fathony and Kolter, arXiv 1912.00965, in the coefficients a TP + b of the metric), and the training loss needs

    v(psi) = min_{Q in Delta} max_{P in Delta} E[metric] - sum_i psi_i sum_l Q[l, i].
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from robustrun.methods.adversarial_prediction.metric import Metric
from robustrun.methods.adversarial_prediction.polytope import sorted_rows


@dataclass(frozen=True, eq=False)
class Game:
    """What depends on the metric and n alone; float64 on one device. Get it from `game_of`, which caches it.

    Shapes: `joint` C and `totals` B (n, n) over (l, k); `predictor_bonus` D (n,) over k; `adversary_bonus` E (n,)
    over l; `constant` c. `left`, `scale`, `right` is the thin singular value decomposition of C: the coefficients
    of the usual metrics are smooth functions of (k, l), so its numerical rank is 1 to about 20 whatever n is,
    and a product with C costs that many rows instead of n. `level_inverse` is ((nB + C)(nB + C)^T + I)^-1.
    """

    metric: Metric
    n: int
    joint: Tensor
    totals: Tensor
    predictor_bonus: Tensor
    adversary_bonus: Tensor
    constant: float
    left: Tensor
    scale: Tensor
    right: Tensor
    level_inverse: Tensor

    def payoffs(self, adversary: Tensor) -> Tensor:
        """Z(Q): (..., n, n) over (k, i), what predicting i at level k earns against adversary Q (..., n, n)."""
        return self.apply(adversary) + self.predictor_bonus.unsqueeze(-1)

    def apply(self, adversary: Tensor) -> Tensor:
        """The linear part of Z: (..., n, n) over (l, i) to (k, i)."""
        joint = self.right @ (self.scale.unsqueeze(-1) * (self.left.T @ adversary))
        return joint + (adversary.sum(-1) @ self.totals).unsqueeze(-1)

    def adjoint(self, predictor: Tensor) -> Tensor:
        """The transpose of `apply`: (..., n, n) over (k, i) to (l, i)."""
        joint = self.left @ (self.scale.unsqueeze(-1) * (self.right.T @ predictor))
        return joint + (predictor.sum(-1) @ self.totals.T).unsqueeze(-1)

    def upper(self, adversary: Tensor, scores: Tensor, constraints: Constraints | None = None) -> Tensor:
        """An upper bound of v(psi), (...,), from any adversary in Delta: the best response of the predictor.

        Args:
            adversary: Q, (..., n, n).
            scores: psi, (..., n).
            constraints: with their multipliers, if the metric has any.
        """
        payoffs = self.payoffs(adversary)
        value = (adversary * (self.adversary_bonus.unsqueeze(-1) - scores.unsqueeze(-2))).sum((-1, -2)) + self.constant
        if constraints is not None:
            payoffs = payoffs + constraints.weighted()
            value = value + (constraints.multipliers * constraints.slack_at_zero).sum(-1)
        return value + _best_level(payoffs)

    def lower(self, predictor: Tensor, scores: Tensor) -> Tensor:
        """A lower bound of v(psi), (...,), from any predictor P in Delta that meets the constraints."""
        costs = self.adjoint(predictor) + (self.adversary_bonus.unsqueeze(-1) - scores.unsqueeze(-2))
        bonus = (predictor.sum(-1) * self.predictor_bonus).sum(-1)
        return self.constant + bonus - _best_level(-costs)


def _best_level(gains: Tensor) -> Tensor:
    """max over P in Delta of <P, gains>: the best k of the k largest entries of row k, or nothing at all."""
    sums = sorted_rows(-gains).cumsum(-1).diagonal(dim1=-2, dim2=-1)
    return sums.amin(-1).clamp(max=0.0).neg()


@lru_cache(maxsize=256)
def game_of(metric: Metric, n: int, device: torch.device) -> Game:
    """The game of a metric on batches of n samples."""
    a, b = metric.unconstrained().coefficients(n)
    level = np.arange(1, n + 1, dtype=np.float64)
    joint = a[1:, 1:].T
    totals = ((b[1:, 1:] - b[:1, 1:] - b[1:, :1] + b[0, 0]) / np.outer(level, level)).T
    left, scale, right = np.linalg.svd(joint)
    rank = int((scale > 1e-15 * scale[0]).sum())
    joined = n * totals + joint
    arrays = (
        joint,
        totals,
        (b[1:, 0] - b[0, 0]) / level,
        (b[0, 1:] - b[0, 0]) / level,
        left[:, :rank],
        scale[:rank],
        right[:rank].T,
        np.linalg.inv(joined @ joined.T + np.eye(n)),
    )
    c, t, d, e, u, s, v, inverse = (torch.tensor(np.ascontiguousarray(x), device=device) for x in arrays)
    return Game(metric, n, c, t, d, e, float(b[0, 0]), u, s, v, inverse)


@dataclass
class Constraints:
    """The metric's constraints on the labels of given batches: E_P[m_j] = <gains_j, P> + base_j >= threshold_j.

    Shapes: `gains` (G, J, n, n) over (k, i); `base`, `threshold`, `at_labels` (the value of predicting the labels
    themselves) and `multipliers` (the current ones) (G, J); `labels` (G, n).
    """

    gains: Tensor
    base: Tensor
    threshold: Tensor
    at_labels: Tensor
    labels: Tensor
    multipliers: Tensor

    @staticmethod
    def of(metric: Metric, labels: Tensor) -> Constraints | None:
        """The constraints of a metric on 0/1 labels (G, n); None if it has none."""
        if not metric.constraints:
            return None
        n = labels.shape[-1]
        labels = labels.to(torch.float64)
        positives = labels.sum(-1).long()
        level = torch.arange(1, n + 1, dtype=torch.float64, device=labels.device)
        gains, base, at_labels = [], [], []
        for constraint in metric.constraints:
            coefficients = constraint.metric.coefficients(n)
            a, b = (torch.tensor(x, device=labels.device)[:, positives] for x in coefficients)  # (n + 1, G)
            spread = ((b[1:] - b[0]).T / level).unsqueeze(-1)
            gains.append(a[1:].T.unsqueeze(-1) * labels.unsqueeze(-2) + spread)
            base.append(b[0])
            own = positives.unsqueeze(0)
            at_labels.append((a.gather(0, own) * own + b.gather(0, own))[0])
        threshold = torch.tensor([c.threshold for c in metric.constraints], dtype=torch.float64, device=labels.device)
        base_values = torch.stack(base, -1)
        return Constraints(
            torch.stack(gains, 1),
            base_values,
            threshold.expand_as(base_values),
            torch.stack(at_labels, -1),
            labels,
            torch.zeros_like(base_values),
        )

    @property
    def slack_at_zero(self) -> Tensor:
        """(G, J): by how much predicting nothing exceeds the thresholds."""
        return self.base - self.threshold

    def weighted(self) -> Tensor:
        """(G, n, n): the gains weighted by the multipliers."""
        return (self.multipliers[..., None, None] * self.gains).sum(1)

    def values(self, predictor: Tensor) -> Tensor:
        """(G, J): the expected value of every constraint's metric under predictor P (G, n, n)."""
        return (self.gains * predictor.unsqueeze(1)).sum((-1, -2)) + self.base

    def repaired(self, predictor: Tensor) -> Tensor:
        """The predictor mixed with just enough of the labels themselves to meet every constraint."""
        values = self.values(predictor)
        missing = (self.threshold - values).clamp(min=0.0)
        share = (missing / (self.at_labels - values).clamp(min=1e-300)).clamp(max=1.0).amax(-1)
        share = share[:, None, None]
        return (1 - share) * predictor + share * label_marginals(self.labels)

    def of_games(self, games: Tensor) -> Constraints:
        """The constraints of some of the games."""
        fields = (self.gains, self.base, self.threshold, self.at_labels, self.labels, self.multipliers)
        return Constraints(*(x[games] for x in fields))


def label_marginals(labels: Tensor) -> Tensor:
    """The level marginals (..., n, n) of fixed 0/1 vectors (..., n): the vector itself in the row of its sum."""
    n = labels.shape[-1]
    level = torch.arange(1, n + 1, device=labels.device)
    return (labels.sum(-1, keepdim=True) == level).unsqueeze(-1) * labels.unsqueeze(-2).to(torch.float64)
