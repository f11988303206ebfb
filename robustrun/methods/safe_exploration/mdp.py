"""Tabular MDPs, and what an agent is told about one before it starts."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from robustrun.methods.safe_exploration.analogies import Analogies


class _States:
    """What rewards and ends say of S states."""

    reward: np.ndarray
    terminal: np.ndarray

    @property
    def n_states(self) -> int:
        """S."""
        return len(self.reward)

    @property
    def unsafe(self) -> np.ndarray:
        """(S,) bool: states in which no agent should ever act."""
        return self.reward < 0

    @property
    def goal(self) -> np.ndarray:
        """(S,) bool: terminal states that are not failures."""
        return self.terminal & ~self.unsafe


@dataclass(frozen=True)
class TabularMDP(_States):
    """A finite MDP whose rewards belong to states: the truth, which agents do not see.

    successors     (S, A, J) int, state ids; entries of probability 0 may be -1
    probabilities  (S, A, J) float, rows of non-terminal states sum to 1
    reward         (S,), collected on acting in the state; below 0 the state is unsafe (a failure)
    terminal       (S,) bool; an episode ends there and restarts at `start`
    start          state id

    Raises ValueError when the arrays contradict each other.
    """

    successors: np.ndarray
    probabilities: np.ndarray
    reward: np.ndarray
    terminal: np.ndarray
    start: int

    def __post_init__(self):
        n_states = len(self.reward)
        if self.successors.ndim != 3 or self.successors.shape != self.probabilities.shape:
            raise ValueError(
                "successors and probabilities must both be (S, A, J), not "
                f"{self.successors.shape} and {self.probabilities.shape}"
            )
        if len(self.successors) != n_states or self.terminal.shape != (n_states,):
            raise ValueError("successors, reward and terminal disagree about the number of states")
        if not 0 <= self.start < n_states or self.terminal[self.start]:
            raise ValueError(f"the start state {self.start} does not exist or is terminal")
        positive = self.probabilities > 0
        if (self.probabilities < 0).any() or (self.successors[positive] < 0).any():
            raise ValueError("probabilities must be non-negative, and zero where there is no successor")
        if self.successors.max() >= n_states:
            raise ValueError(f"successor {self.successors.max()} is not one of the {n_states} states")
        totals = self.probabilities.sum(axis=2)[~self.terminal]
        if (abs(totals - 1) > 1e-6).any():
            raise ValueError(f"a row of probabilities sums to {totals.flat[abs(totals - 1).argmax()]:.6g}, not 1")

    @property
    def n_actions(self) -> int:
        """A."""
        return self.successors.shape[1]


@dataclass(frozen=True)
class Knowledge(_States):
    """What an agent knows from the start: rewards, what could happen, what is safe, and what is alike.

    reward        (S,)
    terminal      (S,) bool
    outcomes      (C, K) int: what can happen, as state ids, in each of C contexts; -1 where an outcome does not
                  exist. Column k means the same thing in every context (for instance "one step to the left"), so
                  an analogy carries outcome k of one pair to outcome k of another.
    context       (S, A) int, the row of `outcomes` that belongs to a pair
    initial_safe  (S, A) bool: Z_0, a closed and communicating set of safe pairs that contains the start
    analogies     between pairs

    Raises ValueError when the arrays contradict each other.
    """

    reward: np.ndarray
    terminal: np.ndarray
    outcomes: np.ndarray
    context: np.ndarray
    initial_safe: np.ndarray
    analogies: Analogies

    def __post_init__(self):
        if self.context.shape != self.initial_safe.shape or self.outcomes.ndim != 2:
            raise ValueError("context and initial_safe must be (S, A), outcomes (C, K)")
        if len(self.context) != len(self.reward) or self.reward.shape != self.terminal.shape:
            raise ValueError("context, reward and terminal disagree about the number of states")
        if len(self.analogies.group) != self.context.size:
            raise ValueError(f"analogies cover {len(self.analogies.group)} pairs of {self.context.size}")
        if self.initial_safe[self.unsafe | self.terminal].any():
            raise ValueError("the initial safe set holds pairs of unsafe or terminal states")

    @property
    def n_actions(self) -> int:
        """A."""
        return self.context.shape[1]

    def outcome(self, state: int, action: int, successor: int) -> int:
        """The column of `outcomes` that leads from the pair to `successor`; ValueError if none does."""
        columns = np.flatnonzero(self.outcomes[self.context[state, action]] == successor)
        if not columns.size:
            raise ValueError(f"action {action} led from state {state} to {successor}, which was said to be impossible")
        return int(columns[0])


Analogy = Callable[[int, int], tuple[Hashable, Sequence[int]]]


def knowledge_from_analogy(mdp: TabularMDP, initial_safe: np.ndarray, analogy: Analogy) -> Knowledge:
    """Knowledge about any MDP from one function of a state and an action.

    `analogy(s, a)` returns a hashable kind and a list of the states that could follow. Pairs of the same kind are
    analogous: the k-th state of one list corresponds to the k-th of the other (-1: no such state). The lists of
    one kind are equally long.
    """
    kinds: dict[Hashable, int] = {}
    classes = np.empty((mdp.n_states, mdp.n_actions), dtype=np.int64)
    lists = []
    for state, action in np.ndindex(classes.shape):
        kind, successors = analogy(state, action)
        classes[state, action] = kinds.setdefault(kind, len(kinds))
        lists.append(list(successors))
    outcomes = np.full((len(lists), max(map(len, lists))), -1)
    for row, successors in enumerate(lists):
        outcomes[row, : len(successors)] = successors
    return Knowledge(
        mdp.reward,
        mdp.terminal,
        outcomes,
        np.arange(classes.size).reshape(classes.shape),
        initial_safe,
        Analogies.from_classes(classes),
    )
