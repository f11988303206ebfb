import numpy as np
import pytest

from robustrun.methods.safe_exploration import (
    Analogies,
    Evidence,
    grid_world,
    nominal_model,
    samples_to_know_support,
    scaled_radius,
    weissman_radius,
)
from robustrun.methods.safe_exploration.model import Support

from .mdps import GRID, knowledge_of, random_mdp


def test_radii_at_known_points():
    assert weissman_radius(100, 4, 0.05) == pytest.approx(0.3357019, abs=1e-7)
    assert weissman_radius(np.array([0, 1, 10**9]), 500, 1e-9).tolist()[:2] == [2, 2]
    radii = scaled_radius(np.array([0, 25, 26]), 0.5)
    assert radii == pytest.approx([2, 0.1, 0.0980581], abs=1e-7)
    assert (radii < 0.1).tolist() == [False, False, True]


def test_weissman_radius_covers_the_truth():
    rng = np.random.default_rng(0)
    truth = np.array([0.2, 0.3, 0.5])
    frequencies = rng.multinomial(50, truth, size=4000) / 50
    missed = np.abs(frequencies - truth).sum(axis=1) > weissman_radius(50, 3, 0.1)
    assert missed.mean() <= 0.1


def test_support_is_known_after_this_many_samples():
    assert samples_to_know_support(0.1, 0.01) == 44
    assert 0.9**44 <= 0.01 < 0.9**43


def observed(evidence, pair, label):
    slots = evidence.labels[evidence.source[pair]] == label
    return evidence.counts[evidence.source[pair]][slots].sum()


def test_transitions_are_carried_to_every_neighbour_within_the_radius():
    world = grid_world(analogy_radius=2)
    evidence = Evidence(world.knowledge, GRID["radius"])
    state = world.mdp.start
    for successor in [state + 1, state + 1, state + 26]:  # up once and twice, and up to the right: 25 cells a column
        evidence.observe(state, 0, successor)
    here = world.coordinates(state)
    near = np.abs(world.coordinates(np.arange(575)) - here).max(axis=1) <= 2
    radius = evidence.radius.reshape(575, 8)
    assert (radius[near, 0] == 0.5 / np.sqrt(3)).all()
    assert (radius[~near] == 2).all()
    assert (radius[:, 1:] == 2).all()
    model = nominal_model(evidence, Support(world.knowledge), 0.1)
    for column, pair in enumerate(model.pairs):
        expected = {pair // 8 + 1: 2 / 3, pair // 8 + 26: 1 / 3}
        found = dict(zip(model.successors[:, column].tolist(), model.probability[:, column].tolist(), strict=True))
        assert found == pytest.approx(expected)


def test_own_visits_win_when_there_are_more_of_them():
    world = grid_world()
    evidence = Evidence(world.knowledge, GRID["radius"])
    state, other = world.mdp.start, world.mdp.start + 25
    for _ in range(3):
        evidence.observe(state, 2, state - 25)
    evidence.observe(other, 2, other - 24)
    assert evidence.source[other * 8 + 2] == state * 8 + 2
    for _ in range(3):
        evidence.observe(other, 2, other - 24)
    assert evidence.source[other * 8 + 2] == other * 8 + 2
    assert evidence.source[state * 8 + 2] == other * 8 + 2


def test_graded_analogies_add_their_delta_and_only_if_that_helps():
    mdp = random_mdp(np.random.default_rng(0))
    safe = np.zeros((6, 2), dtype=bool)
    analogies = Analogies.from_edges(12, np.array([0, 0]), np.array([2, 4]), np.array([0.3, 1.9]))
    evidence = Evidence(knowledge_of(mdp, safe, analogies), lambda n: scaled_radius(n, 0.5))
    evidence.observe(0, 0, 3)
    assert evidence.radius[[0, 2, 4]] == pytest.approx([0.5, 0.8, 2.0])
    assert evidence.source[[0, 2, 4]].tolist() == [0, 0, 4]
    evidence.observe(1, 0, 3)
    assert evidence.radius[[0, 2]] == pytest.approx([0.5, 0.5])


@pytest.mark.parametrize("pooling", [False, True])
def test_intervals_only_shrink_and_never_exceed_the_own_one(pooling):
    rng = np.random.default_rng(1)
    mdp = random_mdp(rng)
    analogies = Analogies.from_classes(rng.integers(0, 4, 12))
    evidence = Evidence(
        knowledge_of(mdp, np.zeros((6, 2), dtype=bool), analogies), lambda n: scaled_radius(n, 0.5), pooling=pooling
    )
    visits = np.zeros(12)
    for _ in range(200):
        before = evidence.radius.copy()
        state, action, successor = rng.integers(6), rng.integers(2), rng.integers(6)
        evidence.observe(state, action, successor)
        visits[2 * state + action] += 1
        assert (evidence.radius <= before).all()
        assert (evidence.radius <= scaled_radius(visits, 0.5)).all()
    classes = analogies.group
    if pooling:
        totals = np.bincount(classes, weights=visits)[classes]
        assert evidence.visits.tolist() == totals.tolist()
        assert evidence.counts.sum(axis=1).tolist() == totals.tolist()
        assert evidence.radius == pytest.approx(scaled_radius(totals, 0.5))


def test_pooling_adds_the_average_delta():
    mdp = random_mdp(np.random.default_rng(0))
    analogies = Analogies.from_edges(12, np.array([0]), np.array([2]), np.array([0.3]))
    knowledge = knowledge_of(mdp, np.zeros((6, 2), dtype=bool), analogies)
    evidence = Evidence(knowledge, lambda n: scaled_radius(n, 0.5), pooling=True)
    for _ in range(3):
        evidence.observe(0, 0, 3)
    evidence.observe(1, 0, 3)
    assert evidence.radius[2] == pytest.approx(0.5 / 2 + 0.3 * 3 / 4)


def test_an_impossible_transition_is_refused():
    world = grid_world()
    with pytest.raises(ValueError, match="impossible"):
        Evidence(world.knowledge, GRID["radius"]).observe(world.mdp.start, 0, 0)


def test_analogies_from_classes_and_edges():
    analogies = Analogies.from_classes(np.array([5, 7, 5, -1, -1]))
    assert analogies.of(0)[0].tolist() == [0, 2]
    assert [analogies.of(p)[0].tolist() for p in (3, 4)] == [[3], [4]]
    assert analogies.any_member(np.array([0, 0, 1, 0, 1], dtype=bool)).tolist() == [True, False, True, False, True]
    assert analogies.close_to(np.array([0, 3]), 0.1).tolist() == [0, 2, 3]
    edges = Analogies.from_edges(4, np.array([0, 0, 1]), np.array([1, 1, 2]), np.array([0.5, 0.2, 0.4]))
    assert edges.of(1)[0].tolist() == [0, 1, 2]
    assert edges.of(1)[1].tolist() == [0.2, 0, 0.4]
    assert edges.close_to(np.array([1]), 0.3).tolist() == [0, 1]
