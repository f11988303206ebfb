"""The agent that explores a finite MDP: how it trusts its samples, and what it has learnt.

Source: Roderick, Nagarajan and Kolter (arXiv 2007.03574).
"""

from functools import partial
from typing import Literal

import torch
from torch import Tensor

from robustrun.methods.safe_exploration import scaled_radius, weissman_radius
from robustrun.numbers import Positive, PositiveInt
from robustrun.registry import models
from robustrun.roles import MDPSpec, TabularAgent


@models.register("tabular_agent")
class ConfidentAgent(TabularAgent):
    """Confidence intervals on transition probabilities, tightened by analogy; and the arrays that were learnt.

    Args:
        interval: "scaled" is beta / sqrt(n), as in the paper's experiments; "weissman" the proven L1 bound.
        beta: of the scaled interval.
        delta: the chance that any of the proven intervals, one for each pair, is wrong at a given time.
        analogy: "best" uses the samples of the one analogous pair with the tightest interval (the paper), "pool"
            the sum of all analogous pairs' samples.
        update_frequency: transitions between two planning calls.
    """

    def __init__(
        self,
        spec: MDPSpec,
        *,
        interval: Literal["scaled", "weissman"] = "scaled",
        beta: Positive = 0.5,
        delta: Positive = 0.05,
        analogy: Literal["best", "pool"] = "best",
        update_frequency: PositiveInt = 50,
    ):
        super().__init__()
        shape = (spec.states, spec.actions)
        proven = partial(weissman_radius, n_outcomes=spec.states, delta=delta / (spec.states * spec.actions))
        self.radius = proven if interval == "weissman" else partial(scaled_radius, beta=beta)
        self.pooling = analogy == "pool"
        self.update_frequency = update_frequency
        self.register_buffer("policy", torch.zeros(spec.states, dtype=torch.int64))
        self.register_buffer("safe", torch.zeros(shape, dtype=torch.bool))
        self.register_buffer("entered", torch.full(shape, -1, dtype=torch.int64))
        self.register_buffer("interval", torch.full(shape, 2.0, dtype=torch.float64))

    def forward(self, states: Tensor) -> Tensor:
        """The greedy actions (B,) in states (B,)."""
        return self.policy[states]

    def allowed_actions(self, state: int) -> list[int]:
        """The actions that the safe set allows: a shield for any other learner."""
        return self.safe[state].nonzero().flatten().tolist()
