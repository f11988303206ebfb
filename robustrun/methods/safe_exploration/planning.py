"""Value iteration on a learnt model: optimistic, nominal or pessimistic within the confidence intervals.

The optimistic backup of one pair, with nominal row t, radius e, possible successors M and values V, is

    max T'V   over rows T' with ||T' - t||_1 <= e and T'(s) <= t(s) outside M:

up to e/2 of mass moves from the worst successors to the best state of M (Strehl & Littman 2008, section 3.2). Rows have
few observed successors, so there is no sort: the mass that lies before slot k in ascending order of V is a sum over
pairs of slots, ties in ascending order of state id.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from robustrun.methods.safe_exploration.model import Model, Support

MASKED = -100.0  # the value of a forbidden action: finite, so that a state without actions has an argmax
NEGLIGIBLE = 1e-6  # mass below this is rounding, not a transition
_PAIRWISE_SLOTS = 6  # up to this many slots, comparing them pairwise beats sorting


def moved_mass(values: np.ndarray, probability: np.ndarray, budget: np.ndarray) -> np.ndarray:
    """Mass taken from each slot when `budget` of it leaves the slots of lowest value first; arrays are (J, R).

    m_k = clip(budget - sum of the mass of the slots before k, 0, t_k).
    """
    n_slots = len(values)
    if n_slots > _PAIRWISE_SLOTS:
        order = np.argsort(values, axis=0, kind="stable")
        ascending = np.take_along_axis(probability, order, axis=0)
        before = np.empty_like(probability)
        np.put_along_axis(before, order, np.cumsum(ascending, axis=0) - ascending, axis=0)
    else:
        before = np.zeros_like(probability)
        for k in range(n_slots):
            for j in range(k):
                first = values[j] <= values[k]
                before[k] += probability[j] * first
                before[j] += probability[k] * ~first
    return np.minimum(np.maximum(budget - before, 0), probability)


@dataclass(frozen=True)
class Plan:
    """Values (S, A) after the last sweep, and the state values that this sweep started from."""

    q: np.ndarray
    last_values: np.ndarray
    sweeps: int

    @cached_property
    def policy(self) -> np.ndarray:
        """(S,) the first best action."""
        return self.q.argmax(axis=1)


class Planner:
    """Finite-horizon value iteration from V = 0 for one support and discount.

    gamma, horizon  discount, and the number of sweeps
    tolerance       sweeps end early once V moves by no more than this in one of them; 0 (bitwise still) is exact
    dtype           of all arithmetic
    """

    def __init__(
        self,
        support: Support,
        *,
        gamma: float,
        horizon: int,
        tolerance: float = 0.0,
        dtype: type = np.float32,
    ):
        self.support = support
        self.gamma = dtype(gamma)
        self.horizon = horizon
        self.tolerance = tolerance
        self.dtype = dtype
        self.terminal = support.knowledge.terminal
        self.shape = support.knowledge.context.shape
        n_states, n_contexts = self.shape[0], support.outcomes.shape[1]
        # Extended values: V, then the best of every context, then 0 for contexts in which nothing is possible.
        # Missing outcomes point at a slot that never wins.
        self._lookup = np.where(support.outcomes >= 0, support.outcomes, n_states)
        self._best = np.where(support.empty, n_states + n_contexts, n_states + np.arange(n_contexts))

    def solve(
        self,
        model: Model,
        reward: np.ndarray,
        *,
        allowed: np.ndarray | None = None,
        optimism: int = 1,
        fixed: np.ndarray | None = None,
        fixed_value: float = 0.0,
    ) -> Plan:
        """Q after `horizon` sweeps of Q = r + gamma * backup and V = max_a Q; terminal states do not bootstrap.

        reward       broadcasts to (S, A)
        allowed      (S, A) bool; other pairs have Q = -100
        optimism     1: best transitions in the interval, 0: nominal (uniform over the possible where there are no
                     data), -1: worst
        fixed        (S, A) bool; allowed pairs of non-terminal states there keep Q = `fixed_value`
        """
        n_states = self.shape[0]
        reward = np.broadcast_to(np.asarray(reward, dtype=self.dtype), self.shape)
        q = np.array(reward, order="F")  # actions outermost in memory: sweeps and maxima run along states
        live = np.broadcast_to(~self.terminal[:, None], self.shape).copy()
        if fixed is not None:
            q[fixed & live] = fixed_value
            live &= ~fixed
        if allowed is not None:
            q[~allowed] = MASKED
            live &= allowed
        rows = _Rows(self, model, reward, live, optimism)
        flat = q.T.reshape(-1)  # a view

        values = np.zeros(n_states, dtype=self.dtype)
        previous = values
        sweeps = 0
        for sweeps in range(1, self.horizon + 1):  # noqa: B007
            previous = values
            rows.sweep(values, flat)
            values = q.max(axis=1)
            if np.abs(values - previous).max() <= self.tolerance:
                break
        return Plan(q, previous, sweeps)

    def extended(self, values: np.ndarray, *, average: bool = False) -> np.ndarray:
        """Values of states, followed by the best (or average) over the possible outcomes of every context, and 0."""
        n_states = len(values)
        padded = np.append(values, 0.0 if average else -np.inf)
        if average:
            inside = padded.astype(np.float64).take(self._lookup)
            contexts = inside.sum(axis=0) / np.maximum((self._lookup < n_states).sum(axis=0), 1)
        else:
            contexts = padded.astype(self.dtype).take(self._lookup).max(axis=0)
        return np.concatenate([values, contexts, [0.0]]).astype(self.dtype)

    def optimistic_successors(self, model: Model, plan: Plan) -> np.ndarray:
        """(S, J + 1) successors of positive probability, -1 elsewhere, under the first best action of each state.

        The transitions are the optimistic ones of the last sweep. Mass moves to the largest id among equally good
        states, and all of it where there are no data.
        """
        n_states, n_actions = self.shape
        values = plan.last_values
        pairs = np.arange(n_states) * n_actions + plan.policy
        best, best_value = self._best_state(pairs, values)
        result = np.full((n_states, len(model.successors) + 1), -1)
        result[:, -1] = best

        row = np.searchsorted(model.pairs, pairs)
        has_data = np.take(np.append(model.pairs, -1), row) == pairs
        state, row = np.flatnonzero(has_data), row[has_data]
        successors, probability = model.successors[:, row], model.probability[:, row]
        slot_values = values[successors]
        inside = np.where(model.possible[:, row], slot_values, -np.inf)
        top = np.where(model.closed[row], inside.max(axis=0, initial=-np.inf), best_value[state])
        own = np.where(model.possible[:, row] & (inside == top), successors, -1).max(axis=0, initial=-1)
        best = np.where(model.closed[row], own, best[state])
        moved = moved_mass(slot_values, probability, model.radius[row] / 2) * (slot_values < top)
        result[state, -1] = np.where(moved.sum(axis=0) > NEGLIGIBLE, best, -1)
        result[state, :-1] = np.where(probability - moved > NEGLIGIBLE, successors, -1).T
        result[self.terminal] = -1
        return result

    def _best_state(self, pairs: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        outcomes = self._lookup[:, self.support.context[pairs]]
        reached = np.append(values, -np.inf).astype(self.dtype)[outcomes]
        top = reached.max(axis=0)
        best = np.where((reached == top) & (outcomes < len(values)), outcomes, -1).max(axis=0)
        return best, top


class _Rows:
    """The pairs that one call of value iteration has to back up, laid out for its sweeps."""

    def __init__(self, planner: Planner, model: Model, reward: np.ndarray, live: np.ndarray, optimism: int):
        self.planner, self.optimism = planner, optimism
        live = live.ravel()
        with_data = live[model.pairs]
        closed = np.flatnonzero(with_data & model.closed)
        order = np.concatenate([closed, np.flatnonzero(with_data & ~model.closed)])
        self.n_closed = len(closed)
        self.successors = model.successors[:, order]
        self.probability = model.probability[:, order].astype(planner.dtype)
        self.budget = model.radius[order].astype(planner.dtype) / 2
        possible = model.possible[:, closed]
        self.penalty = np.where(possible, 0, -np.inf).astype(planner.dtype)

        live[model.pairs] = False
        blank = np.flatnonzero(live)
        pairs = np.concatenate([model.pairs[order], blank])
        n_states, n_actions = planner.shape
        self.n_data = len(order)
        self.place = pairs % n_actions * n_states + pairs // n_actions
        self.reward = reward.ravel()[pairs]
        self.context = planner._best[planner.support.context[pairs]]

    def sweep(self, values: np.ndarray, q: np.ndarray) -> None:
        """Write the backed-up values into `q`, flat with actions outermost."""
        sign = self.planner.dtype(self.optimism or 1)
        nominal = self.optimism == 0
        extended = self.planner.extended(values * sign, average=nominal)
        context = extended.take(self.context)  # of all rows; those without data need no more
        backup = context
        if self.n_data:
            reached = extended.take(self.successors)
            expected = self.probability[0] * reached[0]
            for probability, value in zip(self.probability[1:], reached[1:], strict=True):
                expected += probability * value
            if not nominal:
                best = context[: self.n_data].copy()
                best[: self.n_closed] = (reached[:, : self.n_closed] + self.penalty).max(axis=0)
                moved = moved_mass(reached, self.probability, self.budget)
                for mass, value in zip(moved, reached, strict=True):
                    expected += mass * np.maximum(best - value, 0)
            backup[: self.n_data] = expected
        q[self.place] = self.reward + self.planner.gamma * (backup * sign)
