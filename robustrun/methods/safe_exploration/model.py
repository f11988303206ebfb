"""The learnt model that planning works on: nominal transitions, their radii, and what may happen at all."""

from dataclasses import dataclass

import numpy as np

from robustrun.methods.safe_exploration.confidence import Evidence
from robustrun.methods.safe_exploration.mdp import Knowledge


@dataclass(frozen=True)
class Model:
    """Nominal transitions of all pairs that have data, outcome slots first (so that sweeps run along pairs).

    pairs       (R,) pair ids, `s * A + a`, ascending
    successors  (J, R) state ids in ascending order, 0 where a slot is unused
    probability (J, R) float32, 0 where a slot is unused
    radius      (R,) float32, L1 radius around the nominal row
    possible    (J, R) bool, successors that the support mask still allows
    closed      (R,) bool, pairs whose support is known: nothing outside their slots can happen
    """

    pairs: np.ndarray
    successors: np.ndarray
    probability: np.ndarray
    radius: np.ndarray
    possible: np.ndarray
    closed: np.ndarray


class Support:
    """Which outcomes of a pair are possible: at first all of its context, then those seen when it became known.

    `witness` and `samples` (N,) remember on whose counts, and how many, each pair's support was closed (-1: open).
    Pairs of the initial safe set can only lead to states that own a pair of that set, because it is closed: they
    have contexts of their own. `outcomes` (K, C') holds the possible successors of every context, as state ids.

    Source: Roderick et al. 2021, section 3; transitions of probability above tau cannot be missing from a row whose
    interval is narrower than tau.
    """

    def __init__(self, knowledge: Knowledge):
        self.knowledge = knowledge
        owner = knowledge.initial_safe.any(axis=1)
        safe_contexts, place = np.unique(knowledge.context[knowledge.initial_safe], return_inverse=True)
        inside = knowledge.outcomes[safe_contexts]
        inside = np.where((inside >= 0) & owner[inside], inside, -1)
        self.context = knowledge.context.copy()
        self.context[knowledge.initial_safe] = len(knowledge.outcomes) + place
        self.context = self.context.ravel()
        outcomes = np.concatenate([knowledge.outcomes, inside])
        self.outcomes = np.ascontiguousarray(outcomes.T)
        self.empty = (self.outcomes < 0).all(axis=0)
        self.witness = np.full(self.context.size, -1)
        self.samples = np.zeros(self.context.size, dtype=np.int64)
        self.possible = (outcomes >= 0)[self.context]  # (N, K)

    @property
    def closed(self) -> np.ndarray:
        """(N,) bool: pairs whose support is closed."""
        return self.witness >= 0

    def close(self, pairs: np.ndarray, labels: np.ndarray, seen: np.ndarray) -> None:
        """Rule out, for good, all outcomes of `pairs` but `labels` (R, J) where `seen`."""
        rows = pairs[:, None]
        kept = self.possible[rows, labels] & seen
        self.possible[pairs] = False
        self.possible[np.broadcast_to(rows, labels.shape)[kept], labels[kept]] = True

    def allows(self, pairs: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """(R, J) bool: which of the outcomes `labels` (R, J) are possible for the `pairs` (R,)."""
        return self.possible[pairs[:, None], labels]


def nominal_model(evidence: Evidence, support: Support, tau: float) -> Model:
    """The model that the evidence supports now; closes the support of pairs whose radius is below `tau`.

    Outcomes that do not exist where they are carried to are dropped and the rest is renormalised.
    """
    knowledge = evidence.knowledge
    pairs = np.flatnonzero(evidence.visits[evidence.source] > 0)
    labels = evidence.labels[evidence.source[pairs]]
    successors = knowledge.outcomes[knowledge.context.ravel()[pairs, None], labels]
    counts = evidence.counts[evidence.source[pairs]]
    seen = (labels >= 0) & (successors >= 0)
    some = seen.any(axis=1)
    pairs, labels, seen = pairs[some], labels[some], seen[some]
    successors, counts = successors[some], np.where(seen, counts[some], 0)

    known = evidence.radius[pairs] < tau
    support.close(pairs[known], labels[known], seen[known])
    fresh = pairs[known][~support.closed[pairs[known]]]
    support.witness[fresh] = evidence.source[fresh]
    support.samples[fresh] = evidence.visits[evidence.source[fresh]]

    order = np.argsort(np.where(seen, successors, knowledge.n_states), axis=1, kind="stable")
    order = order[:, : seen.sum(axis=1).max(initial=0)]

    def slots(values: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(np.take_along_axis(values, order, axis=1).T)

    probability = counts / counts.sum(axis=1, keepdims=True)
    return Model(
        pairs,
        slots(np.where(seen, successors, 0)),
        slots(probability).astype(np.float32),
        evidence.radius[pairs].astype(np.float32),
        slots(support.allows(pairs, labels) & seen),
        support.closed[pairs],
    )
