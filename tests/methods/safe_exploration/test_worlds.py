import numpy as np
import pytest

from robustrun.methods.safe_exploration import (
    ACTIONS,
    LEVEL_7,
    SHORT_LEVEL,
    SMALL_ISLANDS,
    Level,
    Trial,
    grid_world,
    platformer,
    safe_optimal_q,
)


@pytest.mark.parametrize(
    ("world", "gamma", "horizon", "states", "safe", "value"),
    [
        (grid_world(), 0.9, 50, 575, 288, 0.276516),
        (grid_world(SMALL_ISLANDS), 0.9, 50, 289, 68, 0.242813),
        (platformer(), 0.95, 70, 3080, 8500, 0.95**22),
        (platformer(SHORT_LEVEL), 0.95, 70, 2275, 3250, 0.487675),
    ],
    ids=["five islands", "small islands", "level 7", "short level"],
)
def test_sizes_and_values(world, gamma, horizon, states, safe, value):
    assert world.mdp.n_states == states
    assert world.knowledge.initial_safe.sum() == safe
    q = safe_optimal_q(world.mdp, gamma=gamma, horizon=horizon)
    assert q[world.mdp.start].max() == pytest.approx(value, abs=1e-5)
    assert world.mdp.probabilities.sum(axis=2) == pytest.approx(1, abs=1e-6)
    stays = world.mdp.successors[world.mdp.terminal] == np.flatnonzero(world.mdp.terminal)[:, None, None]
    assert stays.all()


def test_the_initial_safe_set_is_closed_and_truly_safe():
    for world, gamma, horizon in [(grid_world(), 0.9, 50), (platformer(), 0.95, 70)]:
        z = world.knowledge.initial_safe
        reached = world.mdp.successors[z][world.mdp.probabilities[z] > 0]
        assert z.any(axis=1)[reached].all()
        q = safe_optimal_q(world.mdp, gamma=gamma, horizon=horizon)
        assert np.isfinite(q[z]).all()


def test_grid_moves_slip_to_the_diagonals():
    world = grid_world()
    row, chances = world.mdp.successors[world.mdp.start, 0], world.mdp.probabilities[world.mdp.start, 0]
    found = {tuple(world.coordinates(int(s)) - [12, 13]): p for s, p in zip(row, chances, strict=True)}
    assert found == pytest.approx({(0, 1): 0.4, (-1, 1): 0.3, (1, 1): 0.3})
    jump = world.coordinates(world.mdp.successors[world.mdp.start, ACTIONS.index("jump left")]) - [12, 13]
    assert sorted(map(tuple, jump)) == [(-2, -1), (-2, 0), (-2, 1)]
    assert world.coordinates(world.mdp.start).tolist() == [12, 13]
    assert world.coordinates(int(np.flatnonzero(world.mdp.goal)[0])).tolist() == [14, 22]
    assert world.mdp.unsafe.sum() == 412
    assert (world.knowledge.outcomes[world.knowledge.context] >= 0).sum() == 103_768
    q = safe_optimal_q(world.mdp, gamma=0.9, horizon=50)
    assert np.isneginf(q[~world.mdp.terminal].max(axis=1)).sum() == 16  # corner cells are dead ends


def test_what_the_border_cuts_short_is_no_analogy():
    world = grid_world("s.G\nsAs\nsss", slip=0.0)
    corner = 0  # (1, 1)
    left = ACTIONS.index("left")
    assert world.mdp.successors[corner, left][world.mdp.probabilities[corner, left] > 0].tolist() == [corner]
    assert world.knowledge.analogies.of(corner * 8 + left)[0].tolist() == [corner * 8 + left]
    assert len(world.knowledge.analogies.of(world.mdp.start * 8 + left)[0]) > 1


@pytest.mark.parametrize("text", ["", "AG\n#", "AGx", "AA G", "sG", "AGG"])
def test_maps_that_are_none(text):
    with pytest.raises(ValueError, match="map"):
        grid_world(text)


def test_platformer_moves():
    world = platformer()
    mdp, at = world.mdp, world.state_at
    assert (mdp.unsafe.sum(), (world.knowledge.outcomes[world.knowledge.context] >= 0).sum()) == (160, 4_882_500)

    def follow(state, action):
        path = []
        while not path or path[-1][1] > 1:
            slots = np.flatnonzero(mdp.probabilities[state, action])
            assert len(slots) == 1
            state = int(mdp.successors[state, action, slots[0]])
            path.append(tuple(world.coordinates(state).tolist()))
        return path

    right_jump = 2 * (2 + 2) + 1
    assert follow(at(34, 1, 2, 0), right_jump) == [
        (36, 3, 2, 2), (38, 4, 2, 1), (40, 4, 2, 0), (42, 3, 2, -1), (44, 1, 2, 0),
    ]  # fmt: skip
    assert follow(at(4, 1, 2, 0), right_jump) == [(6, 2, 2, 1), (8, 2, 2, 0), (10, 1, 2, 0)]
    assert mdp.probabilities[at(20, 1, 2, 0), right_jump].tolist() == [0.5, 0.5]
    faster = mdp.successors[at(34, 1, 0, 0), right_jump - 1][0]
    assert world.coordinates(faster).tolist() == [35, 1, 1, 0]
    assert world.coordinates(mdp.successors[faster, right_jump - 1][0]).tolist() == [37, 1, 2, 0]
    assert at(0, 2, 0, -2) == -1


def test_platformer_analogies_shift_along_the_row():
    world = platformer()
    pair = world.state_at(34, 1, 2, 0) * 10 + 9
    alike = world.knowledge.analogies.of(pair)[0]
    where = world.coordinates(alike // 10)
    assert sorted(where[:, 0]) == [*range(32, 48), *range(56, 60), *range(64, 68)]
    assert (where[:, 1:] == [1, 2, 0]).all()
    assert (alike % 10 == 9).all()


def test_safe_columns_need_room():
    with pytest.raises(ValueError, match="safe columns"):
        platformer(Level(LEVEL_7.tiles, safe=(4, 35), start=24, goal=(66, 1)))


def test_sampled_frequencies_match_the_probabilities():
    world = grid_world(SMALL_ISLANDS)

    class Stubborn:
        shielded = False

        def act(self, state, coin, pick):
            return int(pick * 8)

        def observe(self, state, action, successor):
            pass

        def state(self):
            return {}

    trial = Trial(world.mdp, Stubborn(), steps=20_000, seed=0)
    trial.advance(20_000)
    here = trial.states == world.mdp.start
    for action in range(8):
        reached = trial.successors[here & (trial.actions == action)]
        for successor, p in zip(world.mdp.successors[world.mdp.start, action], [0.4, 0.3, 0.3], strict=True):
            n = len(reached)
            assert abs((reached == successor).sum() - n * p) <= 4 * np.sqrt(n * p * (1 - p))
