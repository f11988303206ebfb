"""Finite MDPs as gymnasium environments: robustrun/UnsafeGrid-v0, robustrun/Platformer-v0, and any MDP of yours.

Importing this module registers the first two; `gymnasium.make("robustrun.tasks.tabular_env:robustrun/UnsafeGrid-v0")`
does it by itself. Their keywords are those of `grid_world` (text, slip, analogy_radius) and `platformer` (level).
"""

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np

from robustrun.methods.safe_exploration import Knowledge, Scene, TabularMDP, grid_world, platformer


class TabularEnv(gymnasium.Env):
    """An environment with observations 0..S-1 and actions 0..A-1 that plays a TabularMDP.

    A step pays the reward of the state that is entered, and terminates in terminal states; `info` holds whether that
    state is unsafe, and its coordinates where the MDP has some. Rendering: "rgb_array", or "human" in a window.

    Args:
        mdp: the truth.
        knowledge: what agents are told, for `tabular`; None if there is none.
        scene: where the states lie in a picture; by default one after another.
        coordinates: from a state to its coordinates.
        render_mode: "rgb_array", "human" or None.

    Raises:
        ValueError: the render mode is unknown.
    """

    metadata = {"render_modes": ["rgb_array", "human"], "render_fps": 10}  # noqa: RUF012

    def __init__(
        self,
        mdp: TabularMDP,
        knowledge: Knowledge | None = None,
        scene: Scene | None = None,
        coordinates: Callable[[int], np.ndarray] | None = None,
        render_mode: str | None = None,
    ):
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            raise ValueError(f"render_mode={render_mode!r} is none of {self.metadata['render_modes']}")
        self.mdp, self.knowledge, self.render_mode = mdp, knowledge, render_mode
        nothing = np.zeros((mdp.n_states, mdp.n_actions), dtype=bool)
        self.scene = scene or Scene.of(mdp, nothing if knowledge is None else knowledge.initial_safe)
        self.coordinates = coordinates
        self.observation_space = gymnasium.spaces.Discrete(mdp.n_states)
        self.action_space = gymnasium.spaces.Discrete(mdp.n_actions)
        self.state = mdp.start
        self._window: Any = None

    def tabular(self) -> tuple[TabularMDP, Knowledge | None]:
        """The arrays: the true MDP, and what agents may know of it."""
        return self.mdp, self.knowledge

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        super().reset(seed=seed)
        self.state = self.mdp.start
        self._show()
        return self.state, self._info()

    def step(self, action: int) -> tuple[int, float, bool, bool, dict[str, Any]]:
        cumulative = np.cumsum(self.mdp.probabilities[self.state, action])
        slot = np.searchsorted(cumulative, self.np_random.random() * cumulative[-1], side="right")
        self.state = int(self.mdp.successors[self.state, action, slot])
        self._show()
        reward, terminal = float(self.mdp.reward[self.state]), bool(self.mdp.terminal[self.state])
        return self.state, reward, terminal, False, self._info()

    def _info(self) -> dict[str, Any]:
        info: dict[str, Any] = {"unsafe": bool(self.mdp.unsafe[self.state])}
        if self.coordinates is not None:
            info["coords"] = tuple(int(c) for c in self.coordinates(self.state))
        return info

    def render(self) -> np.ndarray | None:
        """The picture (H, W, 3) uint8 for "rgb_array"; a window follows every step by itself."""
        return self.scene.frame(self.state) if self.render_mode == "rgb_array" else None

    def _show(self) -> None:
        if self.render_mode != "human":
            return
        import matplotlib.pyplot as plt

        frame = self.scene.frame(self.state)
        if self._window is None:
            figure, axes = plt.subplots()
            axes.set_axis_off()
            self._window = (figure, axes.imshow(frame))
            figure.show() if plt.get_backend().lower() != "agg" else None
        figure, image = self._window
        image.set_data(frame)
        figure.canvas.draw_idle()
        figure.canvas.flush_events()

    def close(self) -> None:
        if self._window is not None:
            import matplotlib.pyplot as plt

            plt.close(self._window[0])
            self._window = None


def unsafe_grid_env(render_mode: str | None = None, **kwargs: Any) -> TabularEnv:
    """The unsafe grid world."""
    world = grid_world(**kwargs)
    return TabularEnv(world.mdp, world.knowledge, world.scene(), world.coordinates, render_mode)


def platformer_env(render_mode: str | None = None, **kwargs: Any) -> TabularEnv:
    """The discrete platformer."""
    world = platformer(**kwargs)
    return TabularEnv(world.mdp, world.knowledge, world.scene(), world.coordinates, render_mode)


def mdp_of(env: gymnasium.Env, unsafe: Callable[[int], bool]) -> TabularMDP:
    """The arrays of a gymnasium environment with discrete spaces that publishes its transitions as `P`.

    `P[s][a]` lists (probability, successor, reward, terminated), as in gymnasium's toy-text environments. States for
    which `unsafe` holds get the reward -1 and end an episode; of other states, the reward is that of entering them.

    Raises:
        ValueError: spaces are not discrete, there is no `P`, rewards depend on more than the state that is entered,
            or there is not one certain start.
    """
    inner = env.unwrapped
    if not all(isinstance(s, gymnasium.spaces.Discrete) for s in (env.observation_space, env.action_space)):
        raise ValueError(f"{env} has spaces that are not discrete")
    if not hasattr(inner, "P"):
        raise ValueError(f"{env} does not publish its transitions: give a TabularMDP instead")
    n_states, n_actions = int(env.observation_space.n), int(env.action_space.n)
    width = max(len(inner.P[s][a]) for s in range(n_states) for a in range(n_actions))
    successors = np.zeros((n_states, n_actions, width), dtype=int)
    probabilities = np.zeros((n_states, n_actions, width))
    paid: dict[int, tuple[float, bool]] = {}
    for s, a in np.ndindex(n_states, n_actions):
        merged: dict[int, float] = {}
        for probability, successor, reward, ended in inner.P[s][a]:
            merged[successor] = merged.get(successor, 0.0) + probability
            absorbed = ended and successor == s  # how a terminal state is written down: pays nothing again
            if not absorbed and paid.setdefault(successor, (reward, bool(ended))) != (reward, bool(ended)):
                raise ValueError(f"entering state {successor} does not always pay the same")
        successors[s, a, : len(merged)] = list(merged)
        probabilities[s, a, : len(merged)] = list(merged.values())
    bad = np.array([bool(unsafe(s)) for s in range(n_states)])
    reward = np.array([paid.get(s, (0.0, False))[0] for s in range(n_states)], dtype=float)
    terminal = np.array([paid.get(s, (0.0, False))[1] for s in range(n_states)]) | bad
    start, _ = env.reset(seed=0)
    return TabularMDP(successors, probabilities, np.where(bad, -1.0, reward), terminal, int(start))


def register() -> None:
    """Make the environments known to gymnasium, once."""
    for name, make in {"UnsafeGrid": unsafe_grid_env, "Platformer": platformer_env}.items():
        if f"robustrun/{name}-v0" not in gymnasium.registry:
            gymnasium.register(f"robustrun/{name}-v0", entry_point=f"{__name__}:{make.__name__}")


register()
