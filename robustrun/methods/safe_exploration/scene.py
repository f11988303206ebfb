"""States laid out as cells of a picture."""

from dataclasses import dataclass

import numpy as np

from robustrun.methods.safe_exploration.mdp import TabularMDP

LAVA, FLOOR, SAFE, GOAL, AGENT = (214, 96, 77), (245, 245, 245), (198, 219, 239), (65, 171, 93), (37, 52, 148)


@dataclass(frozen=True)
class Scene:
    """A background (H, W, 3) uint8, and the row and column of every state, `cells` (S, 2)."""

    background: np.ndarray
    cells: np.ndarray

    @classmethod
    def of(cls, mdp: TabularMDP, initial_safe: np.ndarray) -> "Scene":
        """States one after another in rows of a nearly square picture, for MDPs without a geometry."""
        width = int(np.ceil(np.sqrt(mdp.n_states)))
        cells = np.stack(np.divmod(np.arange(mdp.n_states), width), axis=1)
        background = np.full((cells[-1, 0] + 1, width, 3), 255, dtype=np.uint8)
        background[tuple(cells.T)] = FLOOR
        for states, colour in [(initial_safe.any(axis=1), SAFE), (mdp.unsafe, LAVA), (mdp.goal, GOAL)]:
            background[tuple(cells[states].T)] = colour
        return cls(background, cells)

    def picture(self, values: np.ndarray) -> np.ndarray:
        """(H, W) the largest value (S,) of the states in a cell; NaN where no state lies."""
        picture = np.full(self.background.shape[:2], -np.inf)
        np.maximum.at(picture, tuple(self.cells.T), np.asarray(values, dtype=float))
        return np.where(np.isneginf(picture), np.nan, picture)

    def frame(self, state: int | None = None, *, tint: np.ndarray | None = None, scale: int = 12) -> np.ndarray:
        """(scale H, scale W, 3) uint8: the background, green by `tint` (S,) in [0, 1], and the agent in `state`."""
        frame = self.background.astype(float)
        if tint is not None:
            share = np.nan_to_num(self.picture(tint))[..., None] * 0.6
            frame = (1 - share) * frame + share * np.array(GOAL)
        frame = np.kron(frame.round().astype(np.uint8), np.ones((scale, scale, 1), dtype=np.uint8))
        if state is not None:
            row, column = self.cells[state] * scale
            margin = scale // 5
            frame[row + margin : row + scale - margin, column + margin : column + scale - margin] = AGENT
        return frame
