"""Exact solutions of the game: a closed form for metrics that separate over samples, and linear programs."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import scipy
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from robustrun.errors import JobFailed
from robustrun.methods.adversarial_prediction.game import Constraints, Game, game_of
from robustrun.methods.adversarial_prediction.metric import Metric

CPU = torch.device("cpu")


@lru_cache(maxsize=256)
def separable_form(metric: Metric, n: int) -> tuple[float, float, float, float] | None:
    """(alpha, beta, gamma, c) if the metric is alpha TP + beta PP + gamma AP + c on n samples, else None.

    Accuracy and every other utility that is linear in the confusion matrix are of this kind, and their game
    falls apart into one 2 x 2 game a sample.
    """
    if metric.constraints:
        return None
    a, b = metric.coefficients(n)
    alpha, c = a[-1, -1], b[0, 0]
    beta, gamma = b[1, 0] - c, b[0, 1] - c
    k, l = np.ogrid[: n + 1, : n + 1]
    tp = np.minimum(k, l) // 2 + np.maximum(0, k + l - n)  # any two TP values decide an affine function
    for hits in (np.maximum(0, k + l - n), np.minimum(k, l), np.clip(tp, np.maximum(0, k + l - n), np.minimum(k, l))):
        if not np.allclose(a * hits + b, alpha * hits + beta * k + gamma * l + c, rtol=0, atol=1e-12):
            return None
    return float(alpha), float(beta), float(gamma), float(c)


def solve_separable(scores: Tensor, form: tuple[float, float, float, float]) -> tuple[Tensor, Tensor]:
    """(q, v) of a separable metric at scores (..., n): every sample's adversary equalises or plays pure."""
    alpha, beta, gamma, c = form
    crossing = min(max(-beta / alpha, 0.0), 1.0) if alpha else 0.0
    plays = scores.new_tensor([crossing, 0.0, 1.0])
    tilt = gamma - scores.unsqueeze(-1)
    values = torch.maximum(plays * tilt, beta + plays * (alpha + tilt))
    value, which = values.min(-1)
    return plays[which], value.sum(-1) + c


def solve_lp(scores: ArrayLike, labels: ArrayLike, metric: Metric) -> tuple[NDArray[np.float64], float]:
    """(q, v) of one batch, exactly, by the linear program of the marginal game (HiGHS).

    The predictor's best response, a maximum of top-k sums, is written with one threshold t_k a level:
    u >= k t_k + sum_i max(Z[k, i] - t_k, 0). About a second at n = 25.

    Args:
        scores: psi, (n,).
        labels: y, (n,), needed for the constraints only.

    Returns:
        an optimal adversary's marginals (not always unique) and the value of the game.

    Raises:
        JobFailed: the LP solver gave up.
    """
    scores = np.asarray(scores, dtype=np.float64)
    n = scores.size
    game = game_of(metric, n, CPU)
    constraints = Constraints.of(metric, torch.as_tensor(np.asarray(labels)).reshape(1, n))
    count = 0 if constraints is None else constraints.base.shape[-1]
    level = np.arange(1, n + 1)
    sp = scipy.sparse  # scipy loads its parts when they are first used: a job without a program pays for none
    eye, ones = sp.identity(n), np.ones((n, n))

    # variables: Q (l, i), t (k), S (k, i), u, multipliers
    cost = np.concatenate(
        [
            (game.adversary_bonus.numpy()[:, None] - scores).ravel(),
            np.zeros(n + n * n),
            [1.0],
            np.zeros(0) if constraints is None else constraints.slack_at_zero[0].numpy(),
        ]
    )
    payoff = sp.kron(game.joint.numpy().T, eye) + sp.kron(game.totals.numpy().T, ones)
    gains = np.zeros((n * n, 0)) if constraints is None else constraints.gains[0].numpy().reshape(count, -1).T
    above_threshold = sp.hstack(
        [payoff, -sp.kron(eye, np.ones((n, 1))), -sp.identity(n * n), np.zeros((n * n, 1)), gains]
    )
    best_response = sp.hstack(
        [
            sp.csr_array((n, n * n)),
            sp.diags_array(level.astype(float)),
            sp.kron(eye, np.ones((1, n))),
            -np.ones((n, 1)),
            np.zeros((n, count)),
        ]
    )
    rest = n + n * n + 1 + count
    caps = sp.hstack([sp.identity(n * n) - sp.kron(sp.diags_array(1.0 / level), ones), sp.csr_array((n * n, rest))])
    total = sp.hstack([np.repeat(1.0 / level, n)[None], sp.csr_array((1, rest))])
    limits = np.concatenate([-np.repeat(game.predictor_bonus.numpy(), n), np.zeros(n), np.zeros(n * n), [1.0]])
    bounds = [(0, None)] * (n * n) + [(None, None)] * n + [(0, None)] * (n * n + 1 + count)
    matrix = sp.vstack([above_threshold, best_response, caps, total], format="csr")
    result = scipy.optimize.linprog(cost, A_ub=matrix, b_ub=limits, bounds=bounds, method="highs")
    if result.status != 0:
        raise JobFailed(f"the linear program of '{metric}' at n = {n} was not solved: {result.message}")
    return result.x[: n * n].reshape(n, n).sum(0).clip(0, 1), float(result.fun + game.constant)


def solve_cvxpy(scores: ArrayLike, labels: ArrayLike, metric: Metric, **options: object) -> float:
    """The value of one batch's game, stated as directly as cvxpy allows: a reference for small n."""
    import cvxpy as cp

    scores = np.asarray(scores, dtype=np.float64)
    n = scores.size
    game: Game = game_of(metric, n, CPU)
    constraints = Constraints.of(metric, torch.as_tensor(np.asarray(labels)).reshape(1, n))
    adversary = cp.Variable((n, n), nonneg=True)
    sums = cp.sum(adversary, axis=1)
    payoffs = game.joint.numpy().T @ adversary
    payoffs = payoffs + cp.reshape(game.totals.numpy().T @ sums + game.predictor_bonus.numpy(), (n, 1), order="C")
    value = cp.sum(cp.multiply(game.adversary_bonus.numpy()[:, None] - scores, adversary)) + game.constant
    for j in range(0 if constraints is None else constraints.base.shape[-1]):
        multiplier = cp.Variable(nonneg=True)
        payoffs = payoffs + multiplier * constraints.gains[0, j].numpy()
        value = value + multiplier * float(constraints.slack_at_zero[0, j])
    best = cp.maximum(0, *(cp.sum_largest(payoffs[k - 1], k) for k in range(1, n + 1)))
    probabilities = cp.multiply(1 / np.arange(1, n + 1), sums)
    in_delta = [cp.sum(probabilities) <= 1, *(adversary[k] <= probabilities[k] for k in range(n))]
    problem = cp.Problem(cp.Minimize(best + value), in_delta)
    problem.solve(**options)
    return float(problem.value)
