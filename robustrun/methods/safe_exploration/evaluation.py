"""What an agent did, against the true MDP: optimal safe values, sub-optimal decisions, and what may be concluded."""

import numpy as np

from robustrun.methods.safe_exploration.mdp import TabularMDP


def safe_optimal_q(mdp: TabularMDP, *, gamma: float, horizon: int) -> np.ndarray:
    """(S, A) Q* after `horizon` sweeps from V = 0, where a failure is worth -infinity.

    Pairs of unsafe states are -infinity, and with them every pair that cannot avoid some chance of failing.
    """
    reward = np.where(mdp.unsafe, -np.inf, mdp.reward)[:, None]
    possible = mdp.probabilities > 0
    values = np.zeros(mdp.n_states)
    q = np.zeros((mdp.n_states, mdp.n_actions))
    for _ in range(horizon):
        reached = values[mdp.successors]
        doomed = (possible & np.isneginf(reached)).any(axis=2)
        expected = (mdp.probabilities * np.where(np.isneginf(reached), 0, reached)).sum(axis=2)
        expected[doomed] = -np.inf
        q = reward + np.where(mdp.terminal[:, None], 0, gamma * expected)
        values = q.max(axis=1)
    return q


def suboptimal(q: np.ndarray, epsilon: float) -> np.ndarray:
    """(S, A) bool: actions worth less than the best one minus epsilon; none where every action may fail."""
    best = q.max(axis=1, keepdims=True)
    return (q < best - epsilon) & ~np.isneginf(best)


def policy_values(mdp: TabularMDP, policy: np.ndarray, *, gamma: float, horizon: int) -> np.ndarray:
    """(S,) value of a stationary policy (S,) over `horizon` decisions."""
    states = np.arange(mdp.n_states)
    successors, probabilities = mdp.successors[states, policy], mdp.probabilities[states, policy]
    values = np.zeros(mdp.n_states)
    for _ in range(horizon):
        values = mdp.reward + np.where(mdp.terminal, 0, gamma * (probabilities * values[successors]).sum(axis=1))
    return values


def failure_probability_bound(relied: np.ndarray, witness: np.ndarray, samples: np.ndarray, smallest: float) -> float:
    """Union bound on the probability that some support was closed too early, so that an unsafe pair may seem safe.

    A pair whose support was closed after n samples has at most 1 / p outcomes of probability p or more, each missed
    with probability (1 - p)^n at most; data shared by analogy count once. All arrays are (N,), by pair.

    relied    bool, pairs of the safe set that had to be learnt: others put nobody at risk
    witness   the pair on whose data the support was closed (-1: not closed)
    samples   how many data that were
    smallest  p, a lower bound on the transition probabilities that are not 0
    """
    relied = relied & (witness >= 0)
    fewest = np.full(len(samples), np.inf)  # of several sizes of one owner's data the smallest is the riskiest
    np.minimum.at(fewest, witness[relied], samples[relied])
    return float(min(1.0, np.floor(1 / smallest) * ((1 - smallest) ** fewest).sum()))


def regret(mdp: TabularMDP, q: np.ndarray) -> np.ndarray:
    """(S, A) value lost by one action before going on optimally, a chance of failing counted as the reward -1."""
    finite = np.maximum(q, -1.0)
    return np.where(mdp.terminal[:, None], 0.0, finite.max(axis=1, keepdims=True) - finite)


def pac_samples(n_states: int, n_actions: int, tau: float) -> float:
    """m, up to its constant: samples of a pair after which it is known.

    |S| / tau^2 + ln(|S| |A| / tau^2) / tau^2, where `tau` stands for the smaller of the paper's tau and accuracy terms
    (Roderick et al. 2021, theorem 1).
    """
    return n_states / tau**2 + np.log(n_states * n_actions / tau**2) / tau**2


def pac_sample_complexity(
    n_states: int, n_actions: int, *, tau: float, epsilon: float, delta: float, gamma: float, horizon: int
) -> float:
    """Order of the number of epsilon-sub-optimal decisions with probability 1 - delta, its constant taken as 1.

    H m |S| |A| ln(1 / delta) / (epsilon (1 - gamma)) (Roderick et al. 2021, theorem 1).
    """
    m = pac_samples(n_states, n_actions, tau)
    return horizon * m * n_states * n_actions * np.log(1 / delta) / (epsilon * (1 - gamma))
