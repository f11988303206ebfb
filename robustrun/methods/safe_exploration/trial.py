"""One agent in one MDP: the loop of decisions, resumable, and what it leaves behind."""

from collections.abc import Mapping

import numpy as np

from robustrun.methods.safe_exploration.agents import Agent
from robustrun.methods.safe_exploration.mdp import TabularMDP


class Trial:
    """`steps` decisions of an agent; an episode ends in a terminal state and restarts at the start state.

    All randomness is drawn beforehand from `seed`, so a trial is a function of the seed, however it is cut into
    pieces. `states`, `actions` and `successors` (steps,) hold the decisions of which `done` have been taken.
    """

    def __init__(self, mdp: TabularMDP, agent: Agent, *, steps: int, seed: int):
        self.mdp, self.agent, self.steps = mdp, agent, steps
        self._draws = np.random.default_rng(seed).random((steps, 3))
        self._cumulative = np.cumsum(mdp.probabilities, axis=2)
        self._cumulative[..., -1] = 1  # whatever rounding left
        self.states = np.zeros(steps, dtype=np.int32)
        self.actions = np.zeros(steps, dtype=np.int32)
        self.successors = np.zeros(steps, dtype=np.int32)
        self.outside = 0  # decisions of a shielded agent in states without a safe action
        self.done = 0

    def advance(self, steps: int) -> None:
        """Take up to `steps` further decisions, as far as there are any left."""
        mdp, agent = self.mdp, self.agent
        state = mdp.start
        if self.done and not mdp.terminal[self.successors[self.done - 1]]:
            state = int(self.successors[self.done - 1])
        for step in range(self.done, min(self.done + steps, self.steps)):
            luck, coin, pick = self._draws[step]
            action = agent.act(state, coin, pick)
            if agent.shielded and not agent.safe[state, action]:
                self.outside += 1
            slot = self._cumulative[state, action].searchsorted(luck, side="right")
            successor = int(mdp.successors[state, action, slot])
            agent.observe(state, action, successor)
            self.states[step], self.actions[step], self.successors[step] = state, action, successor
            state = mdp.start if mdp.terminal[successor] else successor
            self.done = step + 1

    def state(self) -> dict[str, np.ndarray]:
        """Everything needed to go on elsewhere."""
        arrays = {name: getattr(self, name)[: self.done] for name in ("states", "actions", "successors")}
        return (
            arrays
            | {"outside": np.asarray(self.outside)}
            | {f"agent:{name}": value for name, value in self.agent.state().items()}
        )

    def load_state(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Take over what `state` returned, in a trial made from the same arguments."""
        self.done = len(arrays["states"])
        self.outside = int(arrays["outside"])
        for name in ("states", "actions", "successors"):
            getattr(self, name)[: self.done] = arrays[name]
        self.agent.load_state(
            {name.removeprefix("agent:"): value for name, value in arrays.items() if name.startswith("agent:")}
        )
