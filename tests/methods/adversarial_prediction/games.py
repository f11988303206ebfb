"""The game in its original form: a matrix over all pairs of 0/1 vectors, for small n."""

import itertools

import numpy as np
from scipy.optimize import linprog


def vectors(n):
    return np.array(list(itertools.product((0, 1), repeat=n)))


def brute_force_value(scores, labels, metric):
    """v(psi) by the linear program over the adversary's distribution on all 2^n label vectors."""
    scores = np.asarray(scores)
    everything = vectors(scores.size)
    payoff = np.array([[metric(guess, truth) for truth in everything] for guess in everything])
    payoff = payoff - everything @ scores
    size = len(everything)
    # min u + sum lam (-slack) s.t. for every guess: payoff q + sum_j lam_j (m_j(guess, y) - tau_j) <= u
    gains = np.array([[c.metric(g, labels) - c.threshold for c in metric.constraints] for g in everything])
    gains = gains.reshape(size, len(metric.constraints))
    cost = np.concatenate([np.zeros(size), np.zeros(gains.shape[1]), [1.0]])
    rows = np.hstack([payoff, gains, -np.ones((size, 1))])
    total = np.concatenate([np.ones(size), np.zeros(gains.shape[1] + 1)])[None]
    bounds = [(0, None)] * (size + gains.shape[1]) + [(None, None)]
    result = linprog(cost, A_ub=rows, b_ub=np.zeros(size), A_eq=total, b_eq=[1.0], bounds=bounds, method="highs")
    assert result.status == 0
    return result.fun
