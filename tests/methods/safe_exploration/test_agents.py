from functools import partial

import numpy as np
import pytest
from scipy.stats import binomtest

from robustrun.methods.safe_exploration import (
    ASE,
    MBIE,
    SHORT_LEVEL,
    SMALL_ISLANDS,
    EpsilonGreedy,
    RMax,
    SafeEpsilonGreedy,
    SafeRMax,
    TabularMDP,
    Trial,
    failure_probability_bound,
    grid_world,
    knowledge_from_analogy,
    pac_sample_complexity,
    pac_samples,
    platformer,
    policy_values,
    regret,
    safe_optimal_q,
    samples_to_know_support,
    scaled_radius,
    suboptimal,
)

from .mdps import GRID, PLATFORMER, chain, knowledge_of

GREEDY = {"epsilon": 0.1, "annealing_time": 1000}
AGENTS = {
    "ase": ASE,
    "undirected": partial(ASE, directed=False),
    "safe r-max": SafeRMax,
    "safe epsilon-greedy": partial(SafeEpsilonGreedy, **GREEDY),
    "mbie": MBIE,
    "r-max": RMax,
    "epsilon-greedy": partial(EpsilonGreedy, **GREEDY),
}


def trial_of(world, make, steps, seed=123457, settings=GRID):
    return Trial(world.mdp, make(world.knowledge, world.mdp.start, **settings), steps=steps, seed=seed)


def outcome(world, trial, settings=GRID):
    q = safe_optimal_q(world.mdp, gamma=settings["gamma"], horizon=settings["horizon"])
    wrong = suboptimal(q, 0.01)[trial.states, trial.actions][: trial.done]
    reached = trial.successors[: trial.done]
    return np.flatnonzero(wrong), int(world.mdp.unsafe[reached].sum()), np.flatnonzero(world.mdp.goal[reached])


def check_closed(agent):
    """Every safe pair is known or initially safe, and all its successors are goals or own a safe pair."""
    from robustrun.methods.safe_exploration import nominal_model

    knowledge = agent.knowledge
    model = nominal_model(agent.evidence, agent.support, agent.tau)
    safe = agent.safe & ~knowledge.goal[:, None]
    assert (agent.known | knowledge.initial_safe)[safe].all()
    rows = safe.ravel()[model.pairs]
    reached = model.successors[:, rows][model.probability[:, rows] > 0]
    assert (knowledge.goal[reached] | agent.safe.any(axis=1)[reached]).all()
    assert not knowledge.unsafe[reached].any()


@pytest.fixture(scope="module")
def small():
    return grid_world(SMALL_ISLANDS)


@pytest.mark.parametrize("name", ["ase", "undirected", "safe r-max", "safe epsilon-greedy"])
def test_safe_agents_on_the_small_islands(small, name):
    trial = trial_of(small, AGENTS[name], 4000)
    agent, size = trial.agent, 0
    while trial.done < trial.steps:
        trial.advance(400)
        check_closed(agent)
        assert agent.safe.sum() >= size
        size = agent.safe.sum()
    assert agent.safe[trial.states, trial.actions].all()
    assert trial.outside == 0
    wrong, unsafe, goals = outcome(small, trial)
    assert unsafe == 0
    if name == "safe epsilon-greedy":
        return
    assert len(goals) > 50
    assert (wrong > (2000 if name == "ase" else 3000)).sum() <= 10
    gap = safe_optimal_q(small.mdp, gamma=0.9, horizon=50)[small.mdp.start].max()
    gap -= policy_values(small.mdp, agent.policy, gamma=0.9, horizon=50)[small.mdp.start]
    assert 0 <= gap < 0.02


@pytest.mark.parametrize(("name", "least"), [("mbie", 20), ("r-max", 400), ("epsilon-greedy", 100)])
def test_unsafe_agents_fail(small, name, least):
    trial = trial_of(small, AGENTS[name], 4000)
    trial.advance(4000)
    assert outcome(small, trial)[1] > least


def test_direction_saves_steps_and_pooling_more(small):
    counts = {}
    for name, make, settings in [
        ("ase", ASE, GRID),
        ("safe r-max", SafeRMax, GRID),
        ("pooled", ASE, GRID | {"pooling": True}),
    ]:
        counts[name] = 0
        for seed in range(2):
            trial = trial_of(small, make, 2500, seed, settings)
            trial.advance(2500)
            wrong, unsafe, _ = outcome(small, trial)
            assert unsafe == 0
            counts[name] += len(wrong)
    assert counts["pooled"] < counts["ase"] < counts["safe r-max"]


@pytest.mark.parametrize(("radius", "found"), [(0, False), (3, False), (4, True), (5, True)])
def test_without_analogies_nothing_beyond_can_be_learnt(radius, found):
    world = grid_world(SMALL_ISLANDS, analogy_radius=radius)
    trial = trial_of(world, ASE, 3000)
    trial.advance(3000)
    _, unsafe, goals = outcome(world, trial)
    assert unsafe == 0
    assert (len(goals) > 0) == found
    if not found:
        assert trial.agent.safe.sum() in (76, 77)
        assert not trial.agent.explore.any()
        assert not (trial.agent.goal & ~trial.agent.safe).any()


def test_what_is_explored_is_safe_and_can_teach(small):
    trial = trial_of(small, ASE, 600)
    agent, rounds = trial.agent, 0
    while trial.done < trial.steps:
        trial.advance(50)
        if (agent.goal & ~agent.safe).any():
            rounds += 1
            assert agent.explore.any()
            assert agent.safe[agent.explore].all()
            assert not small.mdp.terminal[np.flatnonzero(agent.explore.any(axis=1))].any()
            unknown = agent.evidence.radius >= agent.tau
            assert agent.knowledge.analogies.any_member(unknown)[agent.explore.ravel()].any()
    assert rounds > 3


def test_the_platformer_is_safe_and_found():
    world = platformer(SHORT_LEVEL)
    trial = trial_of(world, ASE, 6000, settings=PLATFORMER)
    trial.advance(6000)
    _, unsafe, goals = outcome(world, trial, PLATFORMER)
    assert unsafe == 0
    assert len(goals) > 0


def test_same_seed_same_trajectory_however_it_is_cut(small):
    for name in ("ase", "epsilon-greedy"):
        whole = trial_of(small, AGENTS[name], 700)
        whole.advance(700)
        first = trial_of(small, AGENTS[name], 700)
        first.advance(333)
        rest = trial_of(small, AGENTS[name], 700)
        rest.load_state({key: value.copy() for key, value in first.state().items()})
        rest.advance(700)
        for key, value in whole.state().items():
            assert (rest.state()[key] == value).all(), key


def unfamiliar_house(rng):
    """States 0-2 are home, 3 and 4 the garden, then a goal and a failure; three kinds of moves, all known at home.

    Action 0 at home stays at home and is known to be safe; every other pair is of one of the same three kinds, but
    leads elsewhere. Outcomes have probability 0.15 or more.
    """
    kinds = 0.15 + 0.55 * rng.dirichlet(np.ones(3), size=3)
    kind = rng.integers(0, 3, (7, 3))
    kind[:3, 0] = range(3)
    successors = np.stack([rng.permutation(7)[:3] for _ in range(21)]).reshape(7, 3, 3)
    successors[:3, 0] = [rng.permutation(3) for _ in range(3)]
    successors[:5, 1] = [rng.permutation(5)[:3] for _ in range(5)]
    reward = np.array([0.0] * 5 + [1, -1])
    mdp = TabularMDP(successors, kinds[kind], reward, reward != 0, 0)
    initial = np.zeros((7, 3), dtype=bool)
    initial[:3, 0] = True
    return mdp, knowledge_from_analogy(mdp, initial, lambda s, a: (kind[s, a], successors[s, a]))


@pytest.mark.slow
def test_unsafe_actions_are_no_more_frequent_than_allowed():
    """1000 random MDPs, each with at most delta = 5 % chance of any unsafe action (and the shield must not be idle)."""
    tau, delta, runs = 0.15, 0.05, 1000
    samples = samples_to_know_support(tau, delta / 9)  # three kinds of up to three outcomes
    radius = partial(scaled_radius, beta=tau * np.sqrt(samples - 0.5))
    failed = extended = reckless = 0
    for run in range(runs):
        mdp, knowledge = unfamiliar_house(np.random.default_rng(run))
        settings = {"gamma": 0.9, "horizon": 8, "tau": tau, "update_frequency": 40, "radius": radius}
        agent = ASE(knowledge, 0, pooling=run % 2 == 0, **settings)
        trial = Trial(mdp, agent, steps=161, seed=run)
        trial.advance(161)
        failed += bool(mdp.unsafe[trial.successors].any())
        extended += (agent.safe & ~knowledge.initial_safe & ~mdp.goal[:, None]).any()
        if run < 25:
            trial = Trial(mdp, MBIE(knowledge, 0, **settings), steps=161, seed=run)
            trial.advance(161)
            reckless += bool(mdp.unsafe[trial.successors].any())
    assert binomtest(failed, runs, delta, alternative="greater").pvalue > 0.001
    assert extended > runs / 2
    assert reckless > 10


def test_one_function_describes_an_mdp():
    mdp = chain(fail=0.0)
    initial = np.zeros((4, 3), dtype=bool)
    initial[0, 0] = True
    knowledge = knowledge_from_analogy(mdp, initial, lambda s, a: (a, [s - 1, s, s + 1] if s < 3 else [2, 3, -1]))
    assert knowledge.analogies.of(1)[0].tolist() == [1, 4, 7, 10]
    assert knowledge.outcome(1, 0, 2) == 2
    assert knowledge.outcomes[0].tolist() == [-1, 0, 1]


def test_arrays_that_contradict_each_other_are_refused():
    mdp = chain()
    from dataclasses import replace

    for change in [
        {"probabilities": mdp.probabilities / 2},
        {"start": 3},
        {"successors": mdp.successors + 1},
        {"reward": mdp.reward[:-1]},
    ]:
        with pytest.raises(ValueError):
            replace(mdp, **change)
    with pytest.raises(ValueError, match="unsafe"):
        knowledge_of(mdp, np.ones((4, 3), dtype=bool))


def test_bounds(small):
    trial = trial_of(small, ASE, 2000)
    trial.advance(2000)
    support, relied = trial.agent.support, (trial.agent.entered > 0).ravel()
    bound = failure_probability_bound(relied, support.witness, support.samples, 0.3)
    owners = np.unique(support.witness[relied])
    assert 0 < bound <= 3 * len(owners[owners >= 0]) * 0.7**26
    assert failure_probability_bound(relied, support.witness, support.samples, 0.01) == 1
    three = np.array([True, True, False]), np.array([0, 0, 2]), np.array([26, 30, 1])
    assert failure_probability_bound(*three, 0.3) == pytest.approx(3 * 0.7**26)
    assert pac_samples(6, 2, 0.5) == pytest.approx(24 + 4 * np.log(48))
    kwargs = {"tau": 0.5, "epsilon": 0.1, "delta": 0.1, "gamma": 0.9, "horizon": 10}
    assert pac_sample_complexity(6, 2, **kwargs) > pac_sample_complexity(3, 2, **kwargs) > 0


def test_regret_counts_failing_as_minus_one():
    mdp = chain(fail=0.1, goal=False)
    q = safe_optimal_q(mdp, gamma=0.5, horizon=20)
    lost = regret(mdp, q)
    assert lost[2].tolist() == [0, 0, 1]
    assert (lost[3] == 0).all()


def test_a_scene_lays_values_out(small):
    scene = small.scene()
    picture = scene.picture(np.arange(289))
    assert picture[16, 0] == 0  # the lower left corner is the first state
    assert picture[0, 16] == 288
    frame = scene.frame(small.mdp.start, scale=3)
    assert frame.shape == (51, 51, 3)
    side = platformer(SHORT_LEVEL).scene()
    assert np.isnan(side.picture(np.zeros(2275))[-1]).all()  # no state lies within the tiles
