"""Small MDPs for tests: random ones, and a chain in which everything can be computed by hand."""

from functools import partial

import numpy as np

from robustrun.methods.safe_exploration import (
    Analogies,
    Knowledge,
    Model,
    TabularMDP,
    scaled_radius,
)

GRID = {
    "gamma": 0.9,
    "horizon": 50,
    "tau": 0.1,
    "radius": partial(scaled_radius, beta=0.5),
    "update_frequency": 50,
}
PLATFORMER = GRID | {"gamma": 0.95, "horizon": 70, "radius": partial(scaled_radius, beta=0.25), "update_frequency": 100}


def random_mdp(rng, n_states=6, n_actions=2, n_successors=3, fail=0.2, goal=0.15):
    """State 0 is the start; rows have up to `n_successors` distinct successors of probability 0.1 or more."""
    successors = np.stack([rng.permutation(n_states)[:n_successors] for _ in range(n_states * n_actions)]).reshape(
        n_states, n_actions, n_successors
    )
    weights = rng.dirichlet(np.ones(n_successors), size=(n_states, n_actions))
    probabilities = np.where(weights < 0.1, 0, weights)
    probabilities /= probabilities.sum(axis=2, keepdims=True)
    kind = rng.random(n_states)
    kind[0] = 1
    reward = np.where(kind < fail, -1.0, np.where(kind < fail + goal, 1.0, 0.0))
    return TabularMDP(successors, probabilities, reward, reward != 0, 0)


def knowledge_of(mdp, initial_safe, analogies=None):
    """Every state may follow every other; outcome k is state k."""
    shape = (mdp.n_states, mdp.n_actions)
    return Knowledge(
        mdp.reward,
        mdp.terminal,
        np.arange(mdp.n_states)[None],
        np.zeros(shape, dtype=int),
        initial_safe,
        analogies or Analogies.none(mdp.n_states * mdp.n_actions),
    )


def model_of(mdp, radius=0.0, noise=0.0, rng=None):
    """The model of an agent that knows the probabilities up to an L1 error of `noise` a row."""
    n_pairs, n_slots = mdp.n_states * mdp.n_actions, mdp.successors.shape[2]
    order = np.argsort(mdp.successors, axis=2)
    probability = np.take_along_axis(mdp.probabilities, order, axis=2).reshape(n_pairs, n_slots)
    successors = np.take_along_axis(mdp.successors, order, axis=2).reshape(n_pairs, n_slots)
    if noise:
        shift = np.minimum(noise / 2, probability[:, 0])
        probability = probability.copy()
        probability[:, 0] -= shift
        probability[:, -1] += shift
    return Model(
        np.arange(n_pairs),
        np.ascontiguousarray(successors.T),
        np.ascontiguousarray(probability.T.astype(np.float32)),
        np.full(n_pairs, radius, dtype=np.float32),
        np.ones((n_slots, n_pairs), dtype=bool),
        np.zeros(n_pairs, dtype=bool),
    )


def chain(fail=0.1, goal=False):
    """States 0, 1, 2 and F; actions stay, right, left; left from 2 fails with probability `fail`."""
    successors = np.array([[[0, 3], [1, 3], [0, 3]], [[1, 3], [2, 3], [0, 3]], [[2, 3], [2, 3], [1, 3]], [[3, 3]] * 3])
    probabilities = np.tile([1.0, 0.0], (4, 3, 1))
    probabilities[2, 2] = 1 - fail, fail
    reward = np.array([0.0, 0, float(goal), -1])
    return TabularMDP(successors, probabilities, reward, np.array([False, False, goal, True]), 0)
