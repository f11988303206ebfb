#!/usr/bin/env python3
"""How fast safe exploration is: whole trials, against plain loops over states, and planning on growing grids.

scripts/bench/ase.py                    trials of 30 000 decisions, and the ratio to plain loops
scripts/bench/ase.py --scale            planning calls on grids of up to 10 000 states
"""

import argparse
from functools import partial

import torch
from _measure import claim, clock, ratios
from ase_plain import PlainASE

from robustrun.methods.safe_exploration import (
    ASE,
    FIVE_ISLANDS,
    SMALL_ISLANDS,
    SafeRMax,
    Trial,
    grid_world,
    platformer,
    scaled_radius,
)

GRID = {"gamma": 0.9, "horizon": 50, "tau": 0.1, "radius": partial(scaled_radius, beta=0.5), "update_frequency": 50}
PLATFORMER = GRID | {"gamma": 0.95, "horizon": 70, "radius": partial(scaled_radius, beta=0.25), "update_frequency": 100}


def timed(world, make, settings, steps, seed=1):
    trial = Trial(world.mdp, make(world.knowledge, world.mdp.start, **settings), steps=steps, seed=seed)
    begin = clock()
    trial.advance(steps)
    return trial, clock() - begin


def against_plain(decisions, rounds):
    print(f"{'map':<16}{'decisions':>10}{'plain s':>10}{'arrays s':>10}{'ratio':>8}  same decisions")
    for name, world, steps in [
        ("small islands", grid_world(SMALL_ISLANDS), decisions),
        ("five islands", grid_world(), decisions),
    ]:
        times = {"plain": [], "arrays": []}
        for _ in range(rounds):
            fast, seconds = timed(world, ASE, GRID, steps)
            plain, plain_seconds = timed(world, PlainASE, GRID, steps)
            times["arrays"].append(seconds)
            times["plain"].append(plain_seconds)
            same = (fast.actions == plain.actions).all() and (fast.agent.safe == plain.agent.safe).all()
            assert same, "the plain implementation took other decisions"
            ratio = plain_seconds / seconds
            print(f"{name:<16}{steps:>10}{plain_seconds:>10.1f}{seconds:>10.2f}{ratio:>8.0f}  {bool(same)}", flush=True)
        what = f"ASE on {name}, {steps} decisions, the same ones"
        claim(what, ratios(times["plain"], times["arrays"]), at_least=20, against="plain loops over states")


def trials(steps):
    print(f"\n{'trial':<16}{'decisions':>10}{'ASE s':>10}{'Safe R-MAX s':>14}")
    for name, world, settings, limit in [
        ("five islands", grid_world(), GRID, 30),
        ("platformer", platformer(), PLATFORMER, 120),
    ]:
        times = [timed(world, make, settings, steps)[1] for make in (ASE, SafeRMax)]
        print(f"{name:<16}{steps:>10}{times[0]:>10.1f}{times[1]:>14.1f}", flush=True)
        claim(f"ASE on the {name}, a trial of {steps:,} decisions", times[:1], at_most=limit, unit="s")


def big_map(copies):
    """The five islands side by side, one lava cell apart; the first copy holds the start, the last the goal."""
    rows = []
    for row in FIVE_ISLANDS.split():
        bare = row[2:22].replace("A", ".").replace("s", ".").replace("G", ".")
        first, last = row[2:22].replace("G", "."), row[2:22].replace("A", ".").replace("s", ".")
        rows.append("##" + (first + bare * (copies - 2) + last if copies > 1 else row[2:22]) + "#")
    return "\n".join(rows)


def scale(largest):
    print(f"{'states':>8}{'pairs':>8}{'horizon':>8}{'build s':>10}{'first plan s':>14}{'later plan s':>14}")
    for copies in (copies for copies in (1, 4, 10, 21) if copies <= largest):
        begin = clock()
        world = grid_world(big_map(copies))
        built = clock() - begin
        settings = GRID | {"gamma": 0.99, "horizon": 50 + 30 * copies, "update_frequency": 10**9}
        trial, first = timed(world, ASE, settings, 1)
        trial = Trial(world.mdp, trial.agent, steps=2000, seed=0)
        trial.advance(2000)
        begin = clock()
        trial.agent.plan()
        later = clock() - begin
        n = world.mdp.n_states
        horizon = settings["horizon"]
        print(f"{n:>8}{8 * n:>8}{horizon:>8}{built:>10.2f}{first:>14.2f}{later:>14.2f}", flush=True)
    claim(f"ASE: the first plan on a grid of {n:,} states", [first], at_most=10, unit="s")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plain-decisions", type=int, default=500)
    parser.add_argument("--steps", type=int, default=30_000)
    parser.add_argument("--rounds", type=int, default=1, help="of the comparison with plain loops")
    parser.add_argument("--scale", action="store_true")
    parser.add_argument("--largest", type=int, default=21, help="with --scale: so many maps side by side at most")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.scale:
        scale(options.largest)
    else:
        against_plain(options.plain_decisions, options.rounds)
        trials(options.steps)
