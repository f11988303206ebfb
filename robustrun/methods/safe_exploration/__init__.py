"""Provably safe exploration of tabular MDPs by analogy (Roderick, Nagarajan, Kolter 2021, arXiv 2007.03574).

An agent knows rewards, a small safe set, and which state-action pairs behave alike; transition probabilities it has to
learn, without ever doing anything unsafe:

    world = grid_world()
    agent = ASE(world.knowledge, world.mdp.start, gamma=0.9, horizon=50, tau=0.1,
                radius=partial(scaled_radius, beta=0.5), update_frequency=50)
    trial = Trial(world.mdp, agent, steps=30_000, seed=0)
    trial.advance(30_000)

Ties are part of the behaviour: of equally good actions the first is taken, of equally good states optimism moves mass
to the one with the largest id. Sets of pairs are boolean arrays (S, A) throughout.
"""

from robustrun.methods.safe_exploration.agents import ASE, MBIE, Agent, EpsilonGreedy, RMax, SafeEpsilonGreedy, SafeRMax
from robustrun.methods.safe_exploration.analogies import Analogies
from robustrun.methods.safe_exploration.confidence import (
    Evidence,
    Radius,
    samples_to_know_support,
    scaled_radius,
    weissman_radius,
)
from robustrun.methods.safe_exploration.evaluation import (
    failure_probability_bound,
    pac_sample_complexity,
    pac_samples,
    policy_values,
    regret,
    safe_optimal_q,
    suboptimal,
)
from robustrun.methods.safe_exploration.goals import Target, choose_target, pairs_to_explore, reachable_states
from robustrun.methods.safe_exploration.gridworld import ACTIONS, FIVE_ISLANDS, SMALL_ISLANDS, GridWorld, grid_world
from robustrun.methods.safe_exploration.mdp import Knowledge, TabularMDP, knowledge_from_analogy
from robustrun.methods.safe_exploration.model import Model, Support, nominal_model
from robustrun.methods.safe_exploration.planning import MASKED, Plan, Planner, moved_mass
from robustrun.methods.safe_exploration.platformer import LEVEL_7, SHORT_LEVEL, Level, Platformer, platformer
from robustrun.methods.safe_exploration.safe_set import safe_set
from robustrun.methods.safe_exploration.scene import Scene
from robustrun.methods.safe_exploration.trial import Trial

__all__ = [
    "ACTIONS",
    "ASE",
    "FIVE_ISLANDS",
    "LEVEL_7",
    "MASKED",
    "MBIE",
    "SHORT_LEVEL",
    "SMALL_ISLANDS",
    "Agent",
    "Analogies",
    "EpsilonGreedy",
    "Evidence",
    "GridWorld",
    "Knowledge",
    "Level",
    "Model",
    "Plan",
    "Planner",
    "Platformer",
    "RMax",
    "Radius",
    "SafeEpsilonGreedy",
    "SafeRMax",
    "Scene",
    "Support",
    "TabularMDP",
    "Target",
    "Trial",
    "choose_target",
    "failure_probability_bound",
    "grid_world",
    "knowledge_from_analogy",
    "moved_mass",
    "nominal_model",
    "pac_sample_complexity",
    "pac_samples",
    "pairs_to_explore",
    "platformer",
    "policy_values",
    "reachable_states",
    "regret",
    "safe_optimal_q",
    "safe_set",
    "samples_to_know_support",
    "scaled_radius",
    "suboptimal",
    "weissman_radius",
]
