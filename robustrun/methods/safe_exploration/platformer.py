"""The discrete platformer: run and jump over gaps, on ice, concrete and sand."""

from dataclasses import dataclass

import numpy as np

from robustrun.methods.safe_exploration.analogies import Analogies
from robustrun.methods.safe_exploration.mdp import Knowledge, TabularMDP
from robustrun.methods.safe_exploration.scene import FLOOR, GOAL, LAVA, SAFE, Scene

NONE, ICE, CONCRETE, SAND = range(4)
JUMP_IMPULSE_2 = np.array([0.0, 0.5, 1.0, 0.0])  # probability of the strong impulse, by tile; else the weak one
MARGIN = 10  # columns kept on either side of the level: no jump leads further
_SPEEDS = np.arange(-2, 3)
_HEIGHTS = [(1, 0), (2, 1), (2, 0), (3, 2), (3, -1), (4, 1), (4, 0)]  # (y, vy) of the two jump arcs
# (y, vx, vy) of the states of one column, in lexicographic order
_LOCAL = np.array(sorted((y, vx, vy) for vx in _SPEEDS for y, vy in _HEIGHTS))
_ACTIONS = np.array([(speed, jump) for speed in _SPEEDS for jump in (0, 1)])
_TOP = 4


@dataclass(frozen=True)
class Level:
    """One row of tiles, by column; `safe` columns (first, last) are known to be safe, the goal is a cell (x, y)."""

    tiles: tuple[int, ...]
    safe: tuple[int, int]
    start: int
    goal: tuple[int, int]


def _row(*stretches: tuple[int, int]) -> tuple[int, ...]:
    return tuple(tile for tile, length in stretches for _ in range(length))


LEVEL_7 = Level(
    _row((SAND, 16), (ICE, 16), (CONCRETE, 16), (NONE, 8), (CONCRETE, 4), (NONE, 4), (CONCRETE, 4)),
    safe=(12, 35),
    start=24,
    goal=(66, 1),
)
SHORT_LEVEL = Level(_row((ICE, 18), (CONCRETE, 16), (NONE, 5), (CONCRETE, 6)), safe=(12, 20), start=15, goal=(42, 1))


@dataclass(frozen=True)
class Platformer:
    """A level and what follows from it; action 2 (speed + 2) + jump asks for a speed in -2..2, and for a jump."""

    level: Level
    mdp: TabularMDP
    knowledge: Knowledge

    def coordinates(self, state: np.ndarray | int) -> np.ndarray:
        """(..., 4) x, y, vx and vy of states."""
        column, local = np.divmod(state, len(_LOCAL))
        return np.concatenate([np.expand_dims(column - MARGIN, -1), _LOCAL[local]], axis=-1)

    def state_at(self, x: int, y: int, vx: int, vy: int) -> int:
        """The id of a state; -1 if there is no such state."""
        return int(_ids(*np.array([[x], [y], [vx], [vy]]), len(self.level.tiles))[0])

    def scene(self) -> Scene:
        """The level from the side, one cell a position; the row of tiles below."""
        x, y, *_ = self.coordinates(np.arange(self.mdp.n_states)).T
        cells = np.stack([_TOP - y, x + MARGIN], axis=1)
        background = np.full((_TOP + 1, x.max() + MARGIN + 1, 3), FLOOR, dtype=np.uint8)
        background[_TOP, MARGIN : MARGIN + len(self.level.tiles)] = _TILE_COLOURS[list(self.level.tiles)]
        background[tuple(cells[self.knowledge.initial_safe.any(axis=1)].T)] = SAFE
        for states, colour in [(self.mdp.unsafe, LAVA), (self.mdp.goal, GOAL)]:
            background[tuple(cells[states].T)] = colour
        return Scene(background, cells)


_TILE_COLOURS = np.array([FLOOR, (160, 205, 235), (120, 120, 120), (225, 200, 130)], dtype=np.uint8)


def platformer(level: Level = LEVEL_7) -> Platformer:
    """The MDP and the prior knowledge of a level.

    On the ground the speed changes by at most 1 towards the one asked for; a jump starts with impulse 2 (concrete), 1
    (sand) or either (ice). In the air nothing can be changed. Failure (-1) is to be at the bottom of a gap; the goal
    pays 1. Every state within two cells is possible beforehand, at any speed. A pair is analogous to the same one on
    any tile of the same kind (in the air: anywhere). Initially safe are the ground of the safe columns, and the flights
    and walks back that any jump from there can lead to.

    Raises ValueError if such a walk back can end in a terminal state: the safe columns lie too close to a gap or to the
    end of the row of tiles.
    """
    tiles = np.asarray(level.tiles)
    x, y, vx, vy = _coordinates(len(tiles))
    tile = np.where(y == 1, _tile(tiles, x), NONE)
    goal = (x == level.goal[0]) & (y == level.goal[1])
    failure = (y <= 1) & (tile == NONE) & ~goal
    terminal = goal | failure
    start = int(_ids(*np.array([[level.start], [1], [0], [0]]), len(tiles))[0])

    landed = np.stack([_step(tiles, level, x, y, vx, vy, tile, impulse) for impulse in (1, 2)], axis=2)  # (S, A, 2)
    own = np.arange(len(x))[:, None, None]
    # Only states that no play from the ground leads to can leave the table; let them stay where they are.
    landed = np.where((landed < 0) | terminal[:, None, None], own, landed)
    strong = np.where((tile > NONE)[:, None] & (_ACTIONS[:, 1] == 1), JUMP_IMPULSE_2[tile][:, None], 0.0)
    same = landed[..., 0] == landed[..., 1]
    probabilities = np.stack([np.where(same, 1.0, 1 - strong), np.where(same, 0.0, strong)], axis=2)
    mdp = TabularMDP(landed, probabilities, goal * 1.0 - failure, terminal, start)

    outcomes, context = _support(len(tiles))
    kinds = np.unique(np.stack([y, vx, vy, tile]), axis=1, return_inverse=True)[1]
    classes = kinds.ravel()[:, None] * len(_ACTIONS) + np.arange(len(_ACTIONS))
    knowledge = Knowledge(
        mdp.reward,
        terminal,
        outcomes,
        np.broadcast_to(context[:, None], classes.shape),
        _initial_safe(level, x, y, landed, terminal),
        Analogies.from_classes(classes),
    )
    return Platformer(level, mdp, knowledge)


def _coordinates(width: int) -> tuple[np.ndarray, ...]:
    columns = np.arange(-MARGIN, width + MARGIN)
    return np.repeat(columns, len(_LOCAL)), *np.tile(_LOCAL, (len(columns), 1)).T


def _ids(x, y, vx, vy, width: int) -> np.ndarray:
    """State ids, -1 for states that are not in the table."""
    table = np.full((_TOP + 1, 5, 5), -1)
    table[_LOCAL[:, 0], _LOCAL[:, 1] + 2, _LOCAL[:, 2] + 2] = np.arange(len(_LOCAL))
    inside = (x >= -MARGIN) & (x < width + MARGIN) & (y >= 1) & (y <= _TOP)
    local = table[np.where(inside, y, 0), vx + 2, vy + 2]
    return np.where(inside & (local >= 0), (x + MARGIN) * len(_LOCAL) + local, -1)


def _tile(tiles: np.ndarray, x: np.ndarray) -> np.ndarray:
    inside = (x >= 0) & (x < len(tiles))
    return np.where(inside, tiles[np.where(inside, x, 0)], NONE)


def _step(tiles, level, x, y, vx, vy, tile, impulse: int) -> np.ndarray:
    """(S, A) state ids after every action, jumps from the ground having the given impulse."""
    x, y, vx, vy, ground = (v[:, None] for v in (x, y, vx, vy, tile > NONE))
    speed, jump = _ACTIONS.T
    vx = np.where(ground, vx + np.clip(speed - vx, -1, 1), vx)
    vy = np.where(ground, np.where(jump == 1, impulse, vy), np.maximum(vy - 1, -2))
    y, vx, vy = np.broadcast_arrays(y + vy, vx, vy)
    blocked = (y <= 0) & (_tile(tiles, x) > NONE)  # the ground is one tile thick, so this is where a fall ends
    y = np.where(blocked, 1, y)
    x = x + vx
    ends = (y <= 1) | ((x == level.goal[0]) & (y == level.goal[1]))
    return _ids(x, y, vx, np.where(blocked | ends, 0, vy), len(tiles))


def _support(width: int) -> tuple[np.ndarray, np.ndarray]:
    """Outcomes by cell (x, y): column by column, two to either side, all states of the column that are near enough."""
    columns = width + 2 * MARGIN
    n_local = len(_LOCAL)
    there = np.arange(columns)[:, None] + np.arange(-2, 3)
    exists = (there >= 0) & (there < columns)
    near = np.abs(_LOCAL[:, 0] - np.arange(1, _TOP + 1)[:, None]) <= 2  # (y, local)
    ids = there[:, None, :, None] * n_local + np.arange(n_local)
    outcomes = np.where(exists[:, None, :, None] & near[None, :, None, :], ids, -1)
    context = np.arange(columns)[:, None] * _TOP + _LOCAL[:, 0] - 1
    return outcomes.reshape(columns * _TOP, -1), context.ravel()


def _initial_safe(level: Level, x, y, landed: np.ndarray, terminal: np.ndarray) -> np.ndarray:
    home = (y == 1) & (x >= level.safe[0]) & (x <= level.safe[1])
    speed, jump = _ACTIONS.T
    back = (speed == np.where(x > level.start, -2, 2)[:, None]) & (jump == 0)
    allowed = np.where(((y == 1) & ~home)[:, None], back, True)
    visited = home
    while True:
        grown = visited.copy()
        grown[landed[visited[:, None] & allowed]] = True
        if (grown & terminal).any():
            raise ValueError(
                f"the safe columns {level.safe[0]}-{level.safe[1]} are no safe place: "
                "a jump from there can lead to where there is no way back"
            )
        if (grown == visited).all():
            return allowed & visited[:, None]
        visited = grown
