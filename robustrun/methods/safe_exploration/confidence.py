"""Confidence intervals on unknown transition probabilities, and how analogies tighten them."""

from collections.abc import Callable

import numpy as np

from robustrun.methods.safe_exploration.mdp import Knowledge

Radius = Callable[[np.ndarray], np.ndarray]  # number of samples -> L1 radius in [0, 2]


def weissman_radius(n: np.ndarray, n_outcomes: int, delta: float) -> np.ndarray:
    """L1 radius, elementwise, around n samples' frequencies that holds the distribution with probability 1 - delta.

    sqrt(2 (ln(2^K - 2) - ln delta) / n), at most 2, for K = n_outcomes (Weissman et al. 2003, theorem 2.1).
    """
    if n_outcomes < 2:
        return np.where(np.asarray(n) > 0, 0.0, 2.0)
    # 2^K - 2 = 2^K (1 - 2^(1-K)), so that large K does not overflow
    log_count = n_outcomes * np.log(2.0) + np.log1p(-(2.0 ** (1 - n_outcomes)))
    return _per_root(n, np.sqrt(2 * (log_count - np.log(delta))))


def scaled_radius(n: np.ndarray, beta: float) -> np.ndarray:
    """min(2, beta / sqrt(n)), elementwise: the radius of the paper's experiments, in place of the Weissman bound."""
    return _per_root(n, beta)


def _per_root(n: np.ndarray, scale: float) -> np.ndarray:
    n = np.asarray(n, dtype=float)
    return np.minimum(2.0, np.divide(scale, np.sqrt(n), out=np.full(n.shape, 2.0), where=n > 0))


def samples_to_know_support(tau: float, delta: float) -> int:
    """Samples after which an outcome of probability at least tau has been seen with probability 1 - delta.

    The smallest n with (1 - tau)^n <= delta: all that safety needs, and less than an L1 interval asks for.
    """
    return int(np.ceil(np.log(delta) / np.log1p(-tau)))


class Evidence:
    """Observed outcomes of every pair, and the tightest interval that analogies allow.

    With `pooling=False` (the paper's rule) a pair uses the counts of the one analogous pair (possibly itself) whose
    radius plus Delta is smallest. Those counts only ever grow while they are the best, so a pointer to their owner
    (`source`) is enough, and nothing is copied. With `pooling=True` a pair uses the sum of the counts of all pairs
    analogous to it: radius of the sum, plus the average Delta of the samples.

    All arrays are by pair, `p = s * A + a`:
        labels, counts  (N, J) outcomes seen and how often, -1 and 0 where unused; J grows as needed
        visits          (N,) samples in a pair's counts
        radius          (N,) L1 radius of the interval in use (2: nothing known)
        source          (N,) whose counts are in use
    """

    def __init__(self, knowledge: Knowledge, radius: Radius, *, pooling: bool = False):
        n_pairs = knowledge.context.size
        self.knowledge = knowledge
        self.radius_of = radius
        self.pooling = pooling
        self.labels = np.full((n_pairs, 2), -1, dtype=np.int32)
        self.counts = np.zeros((n_pairs, 2), dtype=np.int32)
        self.visits = np.zeros(n_pairs, dtype=np.int64)
        self.bias = np.zeros(n_pairs)  # sum of Delta over pooled samples
        self.radius = np.full(n_pairs, 2.0)
        self.source = np.arange(n_pairs)

    def observe(self, state: int, action: int, successor: int) -> None:
        """Record one transition. Raises ValueError if it was said to be impossible."""
        pair = state * self.knowledge.n_actions + action
        label = self.knowledge.outcome(state, action, successor)
        members, delta = self.knowledge.analogies.of(pair)
        if self.pooling:
            self._count(members, label)
            self.bias[members] += delta
            visits = self.visits[members]
            self.radius[members] = np.minimum(2.0, self.radius_of(visits) + self.bias[members] / visits)
            return
        self._count(np.array([pair]), label)
        radius = self.radius_of(self.visits[pair]) + delta
        better = radius < self.radius[members]
        winners = members[better]
        self.radius[winners] = radius if np.ndim(radius) == 0 else radius[better]
        self.source[winners] = pair

    def _count(self, pairs: np.ndarray, label: int) -> None:
        labels = self.labels[pairs]
        slot = ((labels == label) | (labels < 0)).argmax(axis=1)
        full = (labels[np.arange(len(pairs)), slot] != label) & (labels[np.arange(len(pairs)), slot] >= 0)
        if full.any():  # argmax found neither the label nor a free slot: one more column, and again
            pad = ((0, 0), (0, 1))
            self.labels = np.pad(self.labels, pad, constant_values=-1)
            self.counts = np.pad(self.counts, pad)
            return self._count(pairs, label)
        self.labels[pairs, slot] = label
        self.counts[pairs, slot] += 1
        self.visits[pairs] += 1
        return None
