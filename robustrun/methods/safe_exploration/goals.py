"""Where to go, and what to try in safety in order to learn whether the way there is safe."""

from dataclasses import dataclass

import numpy as np

from robustrun.methods.safe_exploration.confidence import Evidence
from robustrun.methods.safe_exploration.model import Model
from robustrun.methods.safe_exploration.planning import Plan, Planner


@dataclass(frozen=True)
class Target:
    """One round of goal selection; the sets are (S, A) bool.

    plan     optimistic plan for the task, avoiding `avoided`
    goal     Z_goal, the pairs that this plan would visit from the start
    explore  Z_explore, safe pairs worth trying; empty if and only if Z_goal is safe
    avoided  Z_unsafe, pairs that fail or cannot be shown safe by anything that is safe to do
    """

    plan: Plan
    goal: np.ndarray
    explore: np.ndarray
    avoided: np.ndarray


def choose_target(
    planner: Planner,
    model: Model,
    evidence: Evidence,
    safe: np.ndarray,
    avoided: np.ndarray,
    start: int,
    *,
    tau: float,
    directed: bool = True,
) -> Target:
    """Z_goal, and if it is not safe yet, what to explore first; `safe` and `avoided` are (S, A) bool.

    With `directed` only the edges of the safe set on the way to the goal are explored (ASE), otherwise all of them.

    Source: Roderick et al. 2021, algorithms 3 and 4 (goal and exploration sets).

    Raises:
        RuntimeError: the way to the goal leaves the safe set where that has no edge, so Z_0 or an analogy is wrong.
    """
    knowledge = evidence.knowledge
    while True:
        plan = planner.solve(model, knowledge.reward[:, None], allowed=~avoided)
        visited = reachable_states(planner.optimistic_successors(model, plan), start, planner.horizon)
        goal = np.zeros_like(safe)
        goal[visited, plan.policy[visited]] = True
        if not (goal & ~safe).any():
            return Target(plan, goal, np.zeros_like(safe), avoided)
        edge = safe.any(axis=1)[:, None] & ~safe
        if directed:
            edge &= goal
        if not edge.any():
            raise RuntimeError(
                "the goal policy leaves the safe set where that has no edge: "
                "the initial safe set is not closed, or an analogy is wrong"
            )
        explore = pairs_to_explore(edge, model, evidence, safe, avoided, tau=tau)
        if explore.any():
            return Target(plan, goal, explore, avoided)
        avoided = avoided | edge


def reachable_states(successors: np.ndarray, start: int, steps: int) -> np.ndarray:
    """(S,) bool: states reached from `start` within `steps` of the (S, J) successor table, -1 being none."""
    visited = np.zeros(len(successors), dtype=bool)
    visited[start] = True
    frontier = np.array([start])
    for _ in range(steps):
        reached = successors[frontier]
        reached = reached[reached >= 0]
        frontier = np.unique(reached[~visited[reached]])
        if not frontier.size:
            break
        visited[frontier] = True
    return visited


def pairs_to_explore(
    edge: np.ndarray, model: Model, evidence: Evidence, safe: np.ndarray, avoided: np.ndarray, *, tau: float
) -> np.ndarray:
    """(S, A) bool: safe pairs from which an unknown pair of the nearest ring around `edge` can be learnt.

    Breadth first from the edge of the safe set; stops at the first ring that yields something.
    """
    knowledge = evidence.knowledge
    live = ~knowledge.terminal
    unknown = evidence.radius.reshape(edge.shape) >= tau  # not known: a radius of exactly tau must not fall between
    visited = np.zeros_like(edge)
    explore = np.zeros_like(edge)
    while edge.any():
        visited |= edge
        teachers = knowledge.analogies.close_to(np.flatnonzero(edge & unknown), tau)
        explore.reshape(-1)[teachers] = True
        explore &= safe & live[:, None]
        if explore.any():
            break
        rows = (edge & ~unknown).ravel()[model.pairs]
        entered = np.zeros(len(edge), dtype=bool)
        entered[model.successors[:, rows][model.probability[:, rows] > 0]] = True
        edge = (entered & live)[:, None] & ~visited & ~safe & ~avoided
    return explore
