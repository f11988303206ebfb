"""Which pairs are certainly safe: known, closed under their successors, and with a way back."""

import numpy as np

from robustrun.methods.safe_exploration.model import Model, Support


def safe_set(safe: np.ndarray, known: np.ndarray, model: Model, support: Support) -> np.ndarray:
    """Extend a safe set by all known pairs that are reachable from it, can return to it, and never leave it.

    safe   (S, A) bool, Z_safe so far
    known  (S, A) bool, pairs whose support is known
    Returns the new Z_safe, (S, A) bool, a superset of `safe`. Pairs of goal states belong to it: an episode ends
    there, so nothing has to return. The result does not depend on any order.

    Source: Roderick et al. 2021, algorithm 2 (safe set computation).
    """
    knowledge = support.knowledge
    goal, failure = knowledge.goal, knowledge.unsafe
    in_safe, in_known = safe.ravel()[model.pairs], known.ravel()[model.pairs]
    state = model.pairs // knowledge.n_actions
    goal_row = goal[state]
    successors, possible = model.successors, model.probability > 0

    owner = safe.any(axis=1)
    entered = _states(successors[:, in_safe], possible[:, in_safe], len(owner)) | owner
    blank = safe.ravel().copy()  # safe pairs without data lead wherever they may
    blank[model.pairs] = False
    anywhere = support.outcomes[:, np.unique(support.context[blank])]
    entered[anywhere[anywhere >= 0]] = True
    # Only candidates can change anything; pairs of goal states are candidates for ever.
    rows = np.flatnonzero(~in_safe & (in_known | goal_row))
    successors, possible, state, goal_row = successors[:, rows], possible[:, rows], state[rows], goal_row[rows]
    fails = (possible & failure[successors]).any(axis=0)
    candidate = in_known[rows]
    while True:
        reached = _reachable(candidate, entered & ~failure, state, successors, possible, failure)
        kept = _returning(reached | goal_row, owner | goal, state, successors, possible & ~failure[successors])
        kept = _closed(kept & ~fails, goal_row, owner | goal, state, successors, possible)
        if (kept == candidate).all():
            break
        # Closing can cut the only way back of a pair that passed the test before: look again at what is left.
        candidate = kept

    result = safe | goal[:, None]
    result.reshape(-1)[model.pairs[rows[kept]]] = True
    return result


def _states(successors: np.ndarray, possible: np.ndarray, n_states: int) -> np.ndarray:
    hit = np.zeros(n_states, dtype=bool)
    hit[successors[possible]] = True
    return hit


def _reachable(candidate, entered, state, successors, possible, failure) -> np.ndarray:
    """Candidates in states that the safe set, or another such candidate, leads to."""
    while True:
        reached = candidate & entered[state]
        hit = _states(successors[:, reached], possible[:, reached], len(entered)) & ~failure
        if not (hit & ~entered).any():
            return reached
        entered = entered | hit


def _returning(candidate, owner, state, successors, possible) -> np.ndarray:
    """Candidates with some successor that owns a pair of the safe set, or of these."""
    while True:
        kept = candidate & (possible & owner[successors]).any(axis=0)
        grown = owner.copy()
        grown[state[kept]] = True
        if (grown == owner).all():
            return kept
        owner = grown


def _closed(kept, goal_row, owner, state, successors, possible) -> np.ndarray:
    """Drop pairs with any successor that owns no pair, until none is left."""
    kept = kept | goal_row
    while True:
        holds = owner.copy()
        holds[state[kept]] = True
        still = kept & (goal_row | (holds[successors] | ~possible).all(axis=0))
        if (still == kept).all():
            return kept
        kept = still
