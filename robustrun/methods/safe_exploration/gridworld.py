"""The unsafe grid world: islands of floor in lava, moves that slip, and jumps from island to island."""

from dataclasses import dataclass

import numpy as np

from robustrun.methods.safe_exploration.analogies import Analogies
from robustrun.methods.safe_exploration.mdp import Knowledge, TabularMDP
from robustrun.methods.safe_exploration.scene import FLOOR, GOAL, LAVA, SAFE, Scene

ACTIONS = ("up", "down", "left", "right", "jump up", "jump down", "jump left", "jump right")
FIVE_ISLANDS = """
#######################
#######################
#########.....#########
#########....G#########
#########.....#########
#########.....#########
#########.....#########
#######################
########.sssss.########
########sssssss########
##.....#sssssss#.....##
##.....#sssssss#.....##
##.....#sssAsss#.....##
##.....#sssssss#.....##
##.....#sssssss#.....##
########sssssss########
########.sssss.########
#######################
#########.....#########
#########.....#########
#########.....#########
#########.....#########
#########.....#########
#######################
#######################
"""
SMALL_ISLANDS = """
#################
#################
######.....######
######....G######
######.....######
#################
######.sss.######
##...#sssss#...##
##...#ssAss#...##
##...#sssss#...##
######.sss.######
#################
######.....######
######.....######
######.....######
#################
#################
"""
_REACH = 2  # no action moves further than this in either coordinate


@dataclass(frozen=True)
class GridWorld:
    """A map and what follows from it. State `(x - 1) * height + (y - 1)`, x from the left and y from below, from 1.

    cells  (width, height) characters: # lava, . floor, s initially safe floor, A start, G goal
    """

    cells: np.ndarray
    mdp: TabularMDP
    knowledge: Knowledge

    def coordinates(self, state: np.ndarray | int) -> np.ndarray:
        """(..., 2) x and y of states."""
        return np.stack(np.divmod(state, self.cells.shape[1]), axis=-1) + 1

    def scene(self) -> Scene:
        """The map seen from above."""
        colours = {"#": LAVA, ".": FLOOR, "s": SAFE, "A": SAFE, "G": GOAL}
        x, y = self.coordinates(np.arange(self.mdp.n_states)).T
        cells = np.stack([self.cells.shape[1] - y, x - 1], axis=1)
        background = np.array([[colours[c] for c in row] for row in self.cells.T[::-1]], dtype=np.uint8)
        return Scene(background, cells)


def grid_world(text: str = FIVE_ISLANDS, *, slip: float = 0.6, analogy_radius: int = 5) -> GridWorld:
    """The MDP and the prior knowledge of a map, top row first.

    slip             probability of landing beside the target, half of it on either side
    analogy_radius   a move is analogous to the same move up to this Chebyshev distance away; moves that the border of
                     the map would cut short are analogous to nothing
    Every successor within two cells is possible beforehand. Initially safe are moves from s and A cells that can only
    end in such cells. Rewards: lava -1, goal 1.

    Raises ValueError for maps that are not rectangular, have other characters, or not exactly one A and one G.
    """
    cells = _parse(text)
    width, height = cells.shape
    x, y = (c.ravel() for c in np.indices(cells.shape))
    flat = cells.ravel()
    terminal = (flat == "#") | (flat == "G")
    reward = (flat == "G") * 1.0 - (flat == "#")

    moves = np.array([(0, 1), (0, -1), (-1, 0), (1, 0)])
    moves = np.concatenate([moves, 2 * moves])
    sideways = np.abs(np.sign(moves[:, ::-1]))
    steps = moves[:, None, :] + np.array([0, -1, 1])[None, :, None] * sideways[:, None, :]  # (A, 3, 2)
    to_x = x[:, None, None] + steps[..., 0]
    to_y = y[:, None, None] + steps[..., 1]
    cut = ((to_x < 0) | (to_x >= width) | (to_y < 0) | (to_y >= height)).any(axis=2)
    successors = np.clip(to_x, 0, width - 1) * height + np.clip(to_y, 0, height - 1)
    probabilities = np.broadcast_to([1 - slip, slip / 2, slip / 2], successors.shape).copy()
    successors[terminal] = np.flatnonzero(terminal)[:, None, None]
    successors, probabilities = _merged(successors, probabilities)
    mdp = TabularMDP(successors, probabilities, reward, terminal, int(np.flatnonzero(flat == "A")[0]))

    start_floor = (flat == "s") | (flat == "A")
    initial_safe = start_floor[:, None] & (start_floor[successors] | (probabilities == 0)).all(axis=2)
    offsets = np.indices((2 * _REACH + 1,) * 2).reshape(2, -1) - _REACH
    knowledge = Knowledge(
        reward,
        terminal,
        _shifted(x, y, offsets, cells.shape),
        np.broadcast_to(np.arange(flat.size)[:, None], initial_safe.shape),
        initial_safe,
        _neighbourhoods(x, y, analogy_radius, cells.shape, cut & ~terminal[:, None]),
    )
    return GridWorld(cells, mdp, knowledge)


def _parse(text: str) -> np.ndarray:
    rows = text.split()
    if not rows or any(len(row) != len(rows[0]) for row in rows):
        raise ValueError("the map is not rectangular")
    strange = set("".join(rows)) - set("#.sAG")
    if strange:
        raise ValueError(f"the map holds {''.join(sorted(strange))!r}; cells are # . s A G")
    for cell in "AG":
        if sum(row.count(cell) for row in rows) != 1:
            raise ValueError(f"the map needs exactly one {cell}")
    return np.array([list(row) for row in reversed(rows)]).T


def _merged(successors: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Outcomes that coincide (at the border) as one."""
    probabilities = probabilities.copy()
    for late in range(1, successors.shape[2]):
        for early in range(late):
            same = successors[..., late] == successors[..., early]
            probabilities[..., early] += np.where(same, probabilities[..., late], 0)
            probabilities[..., late][same] = 0
    return successors, probabilities


def _shifted(x: np.ndarray, y: np.ndarray, offsets: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """(S, len(offsets)) ids of the states at the offsets, -1 outside the map."""
    to_x, to_y = x[:, None] + offsets[0], y[:, None] + offsets[1]
    inside = (to_x >= 0) & (to_x < shape[0]) & (to_y >= 0) & (to_y < shape[1])
    return np.where(inside, to_x * shape[1] + to_y, -1)


def _neighbourhoods(x: np.ndarray, y: np.ndarray, radius: int, shape: tuple[int, int], cut: np.ndarray) -> Analogies:
    n_states, n_actions = cut.shape
    offsets = np.indices((2 * radius + 1,) * 2).reshape(2, -1) - radius
    near = _shifted(x, y, offsets, shape)
    alike = (near[:, None, :] >= 0) & ~cut[:, :, None] & ~cut[near].transpose(0, 2, 1)
    alike |= (near == np.arange(n_states)[:, None])[:, None, :]
    members = (near[:, None, :] * n_actions + np.arange(n_actions)[None, :, None]).astype(np.int32)[alike]
    indptr = np.append(0, np.cumsum(alike.sum(axis=2)))
    return Analogies(np.arange(n_states * n_actions), indptr, members)
