import gymnasium
import matplotlib
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from robustrun.errors import ConfigError, DataError
from robustrun.tasks.exploration import AnyMDP, DiscretePlatformer, UnsafeGrid
from robustrun.tasks.tabular_env import TabularEnv, mdp_of

CORRIDOR = """
import numpy as np
from robustrun.methods.safe_exploration import TabularMDP, knowledge_from_analogy

def corridor():
    step = np.arange(8)[:, None, None] + np.array([[-1], [1]])
    reward = np.array([-1.0] + [0] * 6 + [1])
    mdp = TabularMDP(np.clip(step, 0, 7), np.ones((8, 2, 1)), reward, reward != 0, start=3)
    safe = np.zeros((8, 2), dtype=bool)
    safe[2, 1] = safe[3, 0] = True
    return mdp, knowledge_from_analogy(mdp, safe, lambda s, a: (a, [s - 1, s + 1 if s < 7 else -1]))
"""


@pytest.mark.parametrize("name", ["UnsafeGrid", "Platformer"])
def test_environments_are_gymnasium_environments(name):
    env = gymnasium.make(f"robustrun/{name}-v0", render_mode="rgb_array")
    check_env(env.unwrapped)
    mdp, knowledge = env.unwrapped.tabular()
    state, info = env.reset(seed=1)
    assert state == mdp.start
    assert not info["unsafe"]
    assert len(info["coords"]) == (2 if name == "UnsafeGrid" else 4)
    picture = env.render()
    assert picture.dtype == np.uint8
    assert picture.shape == (*(12 * np.array(env.unwrapped.scene.background.shape[:2])), 3)
    assert knowledge.initial_safe[state].any()
    env.close()


def test_steps_follow_the_probabilities_and_flags_the_rewards():
    env = gymnasium.make("robustrun/UnsafeGrid-v0").unwrapped
    mdp, _ = env.tabular()
    env.reset(seed=0)
    pairs, reached = np.zeros((20_000, 2), dtype=int), np.zeros(20_000, dtype=int)
    for step in range(20_000):
        action = int(env.np_random.integers(8))
        pairs[step] = env.state, action
        state, reward, terminated, truncated, info = env.step(action)
        reached[step] = state
        assert (reward, terminated, truncated) == (mdp.reward[state], mdp.terminal[state], False)
        assert info["unsafe"] == (reward < 0)
        if terminated:
            env.reset()
    for action in range(8):
        here = (pairs == [mdp.start, action]).all(axis=1)
        for successor, p in zip(mdp.successors[mdp.start, action], mdp.probabilities[mdp.start, action], strict=True):
            count, n = (reached[here] == successor).sum(), here.sum()
            assert abs(count - n * p) <= 4 * np.sqrt(n * p * (1 - p))


def test_a_window_opens_and_closes():
    matplotlib.use("agg")
    env = gymnasium.make("robustrun/UnsafeGrid-v0", render_mode="human")
    env.reset(seed=0)
    env.step(0)
    assert env.unwrapped._window[1].get_array().shape == (300, 276, 3)
    env.close()
    assert env.unwrapped._window is None
    with pytest.raises(ValueError, match="render_mode"):
        TabularEnv(env.unwrapped.mdp, render_mode="ascii")


def test_the_arrays_of_other_environments():
    lake = gymnasium.make("FrozenLake-v1")
    mdp = mdp_of(lake, lambda s: lake.unwrapped.desc.ravel()[s] == b"H")
    assert np.flatnonzero(mdp.unsafe).tolist() == [5, 7, 11, 12]
    assert np.flatnonzero(mdp.goal).tolist() == [15]
    assert mdp.probabilities[0].sum(axis=1) == pytest.approx(1)
    check_env(TabularEnv(mdp), skip_render_check=True)
    with pytest.raises(ValueError, match="discrete"):
        mdp_of(gymnasium.make("CartPole-v1"), lambda s: False)
    with pytest.raises(ValueError, match="pay"):
        mdp_of(gymnasium.make("CliffWalking-v1"), lambda s: 37 <= s <= 46)


def test_maps_and_levels_of_your_own(run, tmp_path):
    (tmp_path / "map.txt").write_text("#####\n#sAG#\n#sss#\n#####\n")
    task = UnsafeGrid(map=str(tmp_path / "map.txt"), slip=0.0)
    task.load(run)
    assert (task.spec.states, task.spec.actions) == (20, 8)
    level = DiscretePlatformer(level="i18 c16 -5 c6", safe=(12, 20), start=15, goal=42)
    level.load(run)
    short = DiscretePlatformer(level="short")
    short.load(run)
    assert (level.mdp.successors == short.mdp.successors).all()


@pytest.mark.parametrize(
    ("task", "error", "says"),
    [
        (lambda: UnsafeGrid(map="six_islands"), DataError, "six_islands"),
        (lambda: UnsafeGrid(map="#A\n#G\n?#"), ConfigError, "map"),
        (lambda: DiscretePlatformer(level="c3 x4"), ConfigError, "row of tiles"),
        (lambda: DiscretePlatformer(level="c30"), ConfigError, "task.safe"),
        (lambda: DiscretePlatformer(level="c30", safe=(2, 20), start=4, goal=29), ConfigError, "safe columns"),
        (lambda: AnyMDP(source="nothing"), ConfigError, "function"),
        (lambda: AnyMDP(source="no.such.module:f"), DataError, "imported"),
        (lambda: AnyMDP(source="json:nothing"), DataError, "nothing"),
        (lambda: AnyMDP(source="time:time"), ConfigError, "returned"),
    ],
)
def test_wrong_requests_get_one_sentence(run, task, error, says):
    with pytest.raises(error, match=says):
        task().load(run)


def test_an_mdp_of_your_own(run, tmp_path):
    (tmp_path / "mine.py").write_text(CORRIDOR)
    task = AnyMDP(source=f"{tmp_path / 'mine.py'}:corridor")
    task.load(run)
    assert (task.spec.states, task.spec.actions) == (8, 2)
    assert task.scene.picture(np.arange(8)).shape == (3, 3)
