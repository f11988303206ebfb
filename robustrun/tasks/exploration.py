"""Finite MDPs to be explored: islands in lava, a platformer, and any MDP of yours.

Source: Roderick, Nagarajan and Kolter (arXiv 2007.03574) for the islands and the platformer.
"""

import importlib
import importlib.util
import re
import sys
from pathlib import Path
from typing import Annotated

from pydantic import Field

from robustrun.errors import ConfigError, DataError
from robustrun.methods.safe_exploration import (
    FIVE_ISLANDS,
    LEVEL_7,
    SHORT_LEVEL,
    SMALL_ISLANDS,
    Knowledge,
    Level,
    Scene,
    TabularMDP,
    grid_world,
    platformer,
)
from robustrun.numbers import NonNegativeInt, Number, PositiveInt, Probability
from robustrun.registry import tasks
from robustrun.roles import MDPSpec, MDPTask
from robustrun.runtime import Run

Discount = Annotated[Number, Field(gt=0, le=1)]
Share = Annotated[Number, Field(gt=0, lt=1)]


class _Exploration(MDPTask):
    """What all of them have in common.

    Args:
        gamma, horizon: discount, and decisions over which values are counted.
        tau: transition probabilities are 0 or at least this, which agents know.
        steps: decisions of a trial.
    """

    def __init__(
        self,
        *,
        gamma: Discount = 0.9,
        horizon: PositiveInt = 50,
        tau: Share = 0.1,
        steps: PositiveInt = 30_000,
    ):
        self.gamma, self.horizon, self.tau, self.steps = gamma, horizon, tau, steps

    def _set(self, mdp: TabularMDP, knowledge: Knowledge, scene: Scene) -> None:
        self.mdp, self.knowledge, self.scene = mdp, knowledge, scene
        self.spec = MDPSpec(input_shape=(), states=mdp.n_states, actions=mdp.n_actions)


@tasks.register("unsafe_grid")
class UnsafeGrid(_Exploration):
    """Islands in lava: moves slip to the side, and jumps lead from island to island.

    Args:
        map: "five_islands", "small_islands", a text file, or the map itself, top row first: # lava, . floor, s floor
            that is known to be safe, A start (safe too), G goal.
        slip: chance of landing beside the target, half of it on either side.
        analogy_radius: moves are alike up to this many cells away, in either direction.
    """

    def __init__(
        self, *, map: str = "five_islands", slip: Probability = 0.6, analogy_radius: NonNegativeInt = 5, **common
    ):
        super().__init__(**common)
        self.map, self.slip, self.analogy_radius = map, slip, analogy_radius

    def load(self, run: Run) -> None:
        known = {"five_islands": FIVE_ISLANDS, "small_islands": SMALL_ISLANDS}
        text = known.get(self.map, self.map)
        if "G" not in text or "#" not in text:
            try:
                text = Path(self.map).expanduser().read_text()
            except OSError:
                raise DataError(f"task.map={self.map}: neither a map, one of {', '.join(known)}, nor a file") from None
        try:
            world = grid_world(text, slip=self.slip, analogy_radius=self.analogy_radius)
        except ValueError as error:
            raise ConfigError(f"task.map: {error}") from None
        self._set(world.mdp, world.knowledge, world.scene())


@tasks.register("platformer")
class DiscretePlatformer(_Exploration):
    """Run and jump over gaps; sand, ice and concrete differ in how high a jump gets.

    Args:
        level: "level_7", "short", or a row of tiles: s sand, i ice, c concrete, - none; with counts: "s16 c8 -4 c6".
        safe: first and last column that are known to be safe; null: those of the named level.
        start, goal: columns; null: those of the named level.
    """

    def __init__(
        self,
        *,
        level: str = "level_7",
        safe: tuple[int, int] | None = None,
        start: int | None = None,
        goal: int | None = None,
        **common,
    ):
        super().__init__(**common)
        self.level, self.safe, self.start, self.goal = level, safe, start, goal

    def load(self, run: Run) -> None:
        try:
            world = platformer(self._level())
        except ValueError as error:
            raise ConfigError(f"task.level: {error}") from None
        self._set(world.mdp, world.knowledge, world.scene())

    def _level(self) -> Level:
        named = {"level_7": LEVEL_7, "short": SHORT_LEVEL}.get(self.level)
        if named is None:
            parts = self.level.split()
            if not parts or not all(re.fullmatch(r"[sic-]\d+", part) for part in parts):
                raise ConfigError(
                    f"task.level={self.level}: level_7, short, or a row of tiles such as 's16 c8 -4 c6' "
                    "(s sand, i ice, c concrete, - none)"
                )
            if None in (self.safe, self.start, self.goal):
                raise ConfigError("a level of your own needs task.safe=[first,last], task.start and task.goal")
            tiles = tuple("-ics".index(part[0]) for part in parts for _ in range(int(part[1:])))
            named = Level(tiles, self.safe, self.start, (self.goal, 1))
        goal = named.goal if self.goal is None else (self.goal, 1)
        return Level(named.tiles, self.safe or named.safe, named.start if self.start is None else self.start, goal)


@tasks.register("tabular_mdp")
class AnyMDP(_Exploration):
    """An MDP of yours: a Python function that returns a TabularMDP and the Knowledge that agents have of it.

    Args:
        source: "package.module:function", or "path/to/file.py:function".
    """

    def __init__(self, *, source: str, **common):
        super().__init__(**common)
        self.source = source

    def load(self, run: Run) -> None:
        made = self._function()()
        if not (isinstance(made, tuple) and list(map(type, made)) == [TabularMDP, Knowledge]):
            raise ConfigError(f"task.source={self.source} returned no pair of a TabularMDP and a Knowledge")
        mdp, knowledge = made
        self._set(mdp, knowledge, Scene.of(mdp, knowledge.initial_safe))

    def _function(self):
        place, colon, name = self.source.rpartition(":")
        if not colon or not place:
            raise ConfigError(f"task.source={self.source}: write package.module:function or file.py:function")
        try:
            if place.endswith(".py"):
                spec = importlib.util.spec_from_file_location(Path(place).stem, Path(place).expanduser())
                module = importlib.util.module_from_spec(spec)
                sys.modules[spec.name] = module
                spec.loader.exec_module(module)
            else:
                module = importlib.import_module(place)
        except (ImportError, OSError) as error:
            raise DataError(f"task.source={self.source} cannot be imported: {error}") from None
        try:
            return getattr(module, name)
        except AttributeError:
            raise DataError(f"task.source={self.source}: there is no {name} in {place}") from None
