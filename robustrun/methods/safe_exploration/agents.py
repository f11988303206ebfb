"""Agents for tabular MDPs: ASE and the baselines of the paper, all told the same beforehand.

An agent is driven by two calls: `act(state, coin, pick)` with two uniform numbers of which only randomised agents make
use, and `observe(state, action, successor)` after every transition, those into terminal states included.

Source: Roderick et al. 2021; R-MAX: Brafman & Tennenholtz 2002; MBIE: Strehl & Littman 2008.
"""

from collections.abc import Mapping

import numpy as np

from robustrun.methods.safe_exploration.confidence import Evidence, Radius
from robustrun.methods.safe_exploration.goals import choose_target
from robustrun.methods.safe_exploration.mdp import Knowledge
from robustrun.methods.safe_exploration.model import Model, Support, nominal_model
from robustrun.methods.safe_exploration.planning import Plan, Planner
from robustrun.methods.safe_exploration.safe_set import safe_set

FAILURE_REWARD = -100.0  # what unsafe agents count for a failure, so that the best they can learn is safe


class Agent:
    """What all agents share: evidence, the schedule of planning, the safe set, and a policy for every state.

    knowledge         what is known beforehand
    start             state in which episodes start
    gamma, horizon    discount, and sweeps of value iteration
    tau               lower bound on the transition probabilities that are not 0
    radius            L1 radius as a function of the number of samples
    update_frequency  transitions between two planning calls
    pooling           add up the counts of analogous pairs (True), or use the best single pair's (False, the paper)

    `safe` (S, A) is Z_safe, `entered` (S, A) the number of transitions seen when a pair joined it (-1: not yet, 0:
    initially), `policy` (S,) the greedy action of each state.
    """

    shielded = False  # acts within the safe set only
    optimism = 0

    def __init__(
        self,
        knowledge: Knowledge,
        start: int,
        *,
        gamma: float,
        horizon: int,
        tau: float,
        radius: Radius,
        update_frequency: int,
        pooling: bool = False,
        tolerance: float = 0.0,
    ):
        self.knowledge, self.start = knowledge, start
        self.tau, self.update_frequency = tau, update_frequency
        self.evidence = Evidence(knowledge, radius, pooling=pooling)
        self.support = Support(knowledge)
        self.planner = Planner(self.support, gamma=gamma, horizon=horizon, tolerance=tolerance)
        self.safe = knowledge.initial_safe.copy()
        self.entered = np.where(self.safe, 0, -1)
        self.policy = self.safe.argmax(axis=1) if self.shielded else np.zeros(len(self.safe), dtype=np.int64)
        self.observed = 0

    def act(self, state: int, coin: float, pick: float) -> int:
        """The action taken in a state; `coin` and `pick`, uniform in [0, 1), are all the chance there is."""
        return int(self.policy[state])

    def observe(self, state: int, action: int, successor: int) -> None:
        """Learn from a transition; plan again when it is due."""
        self.evidence.observe(state, action, successor)
        due = self._planning_is_due()
        self.observed += 1
        if due:
            self.plan()

    def plan(self) -> None:
        """Update the safe set and the policy from all evidence so far."""
        model = nominal_model(self.evidence, self.support, self.tau)
        if self.shielded:
            self.safe = safe_set(self.safe, self.known, model, self.support)
            self.entered[self.safe & (self.entered < 0)] = self.observed
        self.policy = self._policy(model)

    @property
    def known(self) -> np.ndarray:
        """(S, A) bool: pairs whose support is known."""
        return (self.evidence.radius < self.tau).reshape(self.safe.shape)

    def state(self) -> dict[str, np.ndarray]:
        """Everything that changes while the agent learns."""
        arrays = {f"evidence.{name}": getattr(self.evidence, name) for name in _EVIDENCE}
        arrays |= {f"support.{name}": getattr(self.support, name) for name in _SUPPORT}
        return arrays | {name: np.asarray(getattr(self, name)) for name in self._changing()}

    def load_state(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Take over what `state` returned."""
        for key, value in arrays.items():
            owner, _, name = key.rpartition(".")
            value = np.array(value)
            setattr(getattr(self, owner) if owner else self, name, value if value.ndim else value.item())

    def _changing(self) -> tuple[str, ...]:
        return ("safe", "entered", "policy", "observed")

    def _planning_is_due(self) -> bool:
        return self.observed % self.update_frequency == 0

    def _policy(self, model: Model) -> np.ndarray:
        return self._greedy(self._plan(model).q)

    def _plan(self, model: Model, **kwargs) -> Plan:
        reward = self.knowledge.reward
        if not self.shielded:
            reward = np.where(self.knowledge.unsafe, FAILURE_REWARD, reward)
        allowed = self.safe if self.shielded else None
        return self.planner.solve(model, reward[:, None], allowed=allowed, optimism=self.optimism, **kwargs)

    def _greedy(self, q: np.ndarray) -> np.ndarray:
        """First best action among the safe ones; among all where no action is safe (only after a wrong analogy)."""
        if not self.shielded:
            return q.argmax(axis=1)
        return np.where(self.safe | ~self.safe.any(axis=1)[:, None], q, -np.inf).argmax(axis=1)


_EVIDENCE = ("labels", "counts", "visits", "bias", "radius", "source")
_SUPPORT = ("possible", "witness", "samples")


class ASE(Agent):
    """Analogous Safe-state Exploration: never leaves the safe set, and extends it where the task leads.

    With `directed=False` it extends the safe set wherever it can (Undirected ASE). `goal` and `explore` (S, A) are
    the goal and the exploration set of the last planning call.
    """

    shielded = True
    optimism = 1

    def __init__(self, knowledge: Knowledge, start: int, *, directed: bool = True, **settings):
        super().__init__(knowledge, start, **settings)
        self.directed = directed
        self.avoided = np.broadcast_to(knowledge.unsafe[:, None], self.safe.shape).copy()
        self.goal = np.zeros_like(self.safe)
        self.explore = np.zeros_like(self.safe)

    def _changing(self) -> tuple[str, ...]:
        return (*super()._changing(), "avoided", "goal", "explore")

    def _policy(self, model: Model) -> np.ndarray:
        target = choose_target(
            self.planner,
            model,
            self.evidence,
            self.safe,
            self.avoided,
            self.start,
            tau=self.tau,
            directed=self.directed,
        )
        self.goal, self.explore, self.avoided = target.goal, target.explore, target.avoided
        if self.explore.any():
            return self._greedy(self.planner.solve(model, self.explore, allowed=self.safe).q)
        back = self.planner.solve(model, self.goal, allowed=self.safe).q
        on_the_way = self.goal.any(axis=1)[:, None]
        return self._greedy(np.where(on_the_way, target.plan.q, back))


class MBIE(Agent):
    """Model-based interval estimation: optimism alone, no safety."""

    optimism = 1


class RMax(Agent):
    """R-MAX: unknown pairs, and pairs that could teach one, are worth as much as the goal."""

    def _policy(self, model: Model) -> np.ndarray:
        unknown = self.evidence.radius >= self.tau
        lively = np.broadcast_to(~self.knowledge.terminal[:, None], self.safe.shape).ravel()
        promising = unknown | self.knowledge.analogies.any_member(unknown & lively)
        best = self.knowledge.reward.max()  # rewards are paid once, on the way out
        return self._greedy(self._plan(model, fixed=promising.reshape(self.safe.shape), fixed_value=best).q)


class SafeRMax(RMax):
    """R-MAX within the safe set."""

    shielded = True


class EpsilonGreedy(Agent):
    """Greedy on the nominal model, but for a random action with a probability that falls to `epsilon`.

    The probability is epsilon + (1 - epsilon) * max(0, 1 - k / annealing_time) at decision k. Planning follows the
    count of decisions, to which every terminal state adds one.

    action_weights  (A,) probabilities of random actions; uniform if None
    """

    def __init__(
        self,
        knowledge: Knowledge,
        start: int,
        *,
        epsilon: float,
        annealing_time: int,
        action_weights: np.ndarray | None = None,
        **settings,
    ):
        super().__init__(knowledge, start, **settings)
        self.epsilon, self.annealing_time = epsilon, annealing_time
        self.action_weights = np.ones(knowledge.n_actions) if action_weights is None else action_weights
        self.decisions = 0

    def act(self, state: int, coin: float, pick: float) -> int:
        remaining = max(0.0, 1 - self.decisions / self.annealing_time)
        self.decisions += 1
        if coin >= self.epsilon + (1 - self.epsilon) * remaining:
            return super().act(state, coin, pick)
        weights = self.action_weights
        if self.shielded and self.safe[state].any():
            weights = weights * self.safe[state]
        cumulative = np.cumsum(weights)
        return int(np.searchsorted(cumulative, pick * cumulative[-1], side="right"))

    def observe(self, state: int, action: int, successor: int) -> None:
        super().observe(state, action, successor)
        self.decisions += int(self.knowledge.terminal[successor])

    def _changing(self) -> tuple[str, ...]:
        return (*super()._changing(), "decisions")

    def _planning_is_due(self) -> bool:
        return self.decisions % self.update_frequency == 0


class SafeEpsilonGreedy(EpsilonGreedy):
    """Epsilon-greedy within the safe set."""

    shielded = True
