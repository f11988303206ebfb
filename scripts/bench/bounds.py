"""Time bounds of the virtual sensor's networks against the obvious plain implementations.

    python scripts/bench/bounds.py [--threads 2] [--repeats 7] [--points 80] [--only exact --net ordinary-100]

Three tables: bounds of 10,000 points; provable training steps (forward and backward) against the dual network that
materialises its (batch, h2, h1) coefficients; exact ranges by branch and bound against HiGHS's MILP at the same gap.
Both sides of a comparison have the same threads and take turns. With one thread the times are the processor's.
"""

import argparse
import functools
import itertools
import statistics
from collections.abc import Callable

import torch
from _measure import claim, clock, clock_name, fastest, ratios, turns
from torch import Tensor, nn

from robustrun.methods.bounds import (
    Box,
    branch_and_bound,
    crown_bounds,
    dual_bounds,
    intersection_bounds,
    intersection_boxes,
    interval_bounds,
    milp_bounds,
    trace,
    worst_relative_error,
)
from robustrun.tasks.sensors import _INJECTOR, _injector_readings

SENSORS = len(_INJECTOR)
EPSILON = 2.5 * torch.tensor([tolerance for *_, tolerance in _INJECTOR])


def network(hidden: int) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(SENSORS, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 1)
    )


def plain_dual(net: nn.Sequential, x: Tensor, epsilon: Tensor) -> tuple[Tensor, Tensor]:
    """The dual network of Wong and Kolter (2018) as written: one pass a side, coefficients (batch, h2, h1) in full."""
    (w1, b1), (w2, b2), (w3, b3) = ((net[i].weight, net[i].bias) for i in (0, 2, 4))

    def slopes(l: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        unstable = (l < 0) & (u > 0)
        rise = torch.where(unstable, u / torch.where(unstable, u - l, 1.0), (l >= 0).to(l.dtype))
        return rise, torch.where(unstable, l, 0.0)

    z1, r1 = x @ w1.T + b1, w1.abs() @ epsilon
    d1, q1 = slopes(z1 - r1, z1 + r1)

    def objective(c: Tensor, b: Tensor, d: Tensor, layers: list[tuple[Tensor, Tensor]], tails: list[Tensor]) -> Tensor:
        """J of rows c (batch, rows, h) on the top layer's outputs."""
        value = b
        for (w, bias), slope, tail in zip(layers, [d, d1][-len(layers) :], tails, strict=True):
            c = c * slope.unsqueeze(1)
            value = value + ((-c).clamp(min=0) * tail.unsqueeze(1)).sum(-1)
            value = value + c @ bias
            c = c @ w
        return value + (c * x.unsqueeze(1)).sum(-1) - (c.abs() * epsilon).sum(-1)

    first = [(w1, b1)]
    l2 = objective(w2.unsqueeze(0), b2, d1, first, [q1])
    u2 = -objective(-w2.unsqueeze(0), -b2, d1, first, [q1])
    d2, q2 = slopes(l2, u2)
    both = [(w2, b2), (w1, b1)]
    lower = objective(w3.unsqueeze(0), b3, d2, both, [q2, q1])
    return lower, -objective(-w3.unsqueeze(0), -b3, d2, both, [q2, q1])


def plain_dual_one_pass(net: nn.Sequential, x: Tensor, epsilon: Tensor) -> tuple[Tensor, Tensor]:
    """The same with both sides from one pass, but still (batch, h2, h1) coefficients."""
    (w1, b1), (w2, b2), (w3, b3) = ((net[i].weight, net[i].bias) for i in (0, 2, 4))

    def slopes(l: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        unstable = (l < 0) & (u > 0)
        rise = torch.where(unstable, u / torch.where(unstable, u - l, 1.0), (l >= 0).to(l.dtype))
        return rise, torch.where(unstable, l, 0.0)

    z1, r1 = x @ w1.T + b1, w1.abs() @ epsilon
    d1, q1 = slopes(z1 - r1, z1 + r1)
    a = w2.unsqueeze(0) * d1.unsqueeze(1)
    middle, deviation = (a * z1.unsqueeze(1)).sum(-1) + b2, ((a @ w1).abs() * epsilon).sum(-1)
    l2 = middle - deviation + ((-a).clamp(min=0) * q1.unsqueeze(1)).sum(-1)
    u2 = middle + deviation - (a.clamp(min=0) * q1.unsqueeze(1)).sum(-1)
    d2, q2 = slopes(l2, u2)
    a2 = w3 * d2
    a1 = (a2 @ w2) * d1
    a0 = a1 @ w1
    middle = a1 @ b1 + a2 @ b2 + b3 + (a0 * x).sum(-1)
    deviation = (a0.abs() * epsilon).sum(-1)
    low = ((-a2).clamp(min=0) * q2).sum(-1) + ((-a1).clamp(min=0) * q1).sum(-1)
    high = (a2.clamp(min=0) * q2).sum(-1) + (a1.clamp(min=0) * q1).sum(-1)
    return (middle - deviation + low).unsqueeze(1), (middle + deviation - high).unsqueeze(1)


def many_points(repeats: int) -> None:
    print(f"\nbounds of 10,000 points, rounded outwards, seconds ({clock_name()})")
    for dtype, hidden in itertools.product((torch.float32, torch.float64), (64, 256)):
        box = Box.around(torch.rand(10_000, SENSORS, dtype=dtype), EPSILON.to(dtype))
        net = trace(network(hidden).to(dtype), (SENSORS,))
        name = f"{SENSORS}-{hidden}-{hidden}-1, {str(dtype).removeprefix('torch.')}"
        with torch.no_grad():
            for method in (interval_bounds, dual_bounds, crown_bounds, intersection_bounds):
                seconds = fastest(functools.partial(method, net, box), min(repeats, 3))
                print(f"  {name}  {method.__name__:20s} {seconds:8.3f}")
                # a claim about two cores
                claimed = dtype == torch.float32 and method in (interval_bounds, crown_bounds)
                if claimed and torch.get_num_threads() > 1:
                    claim(f"{method.__name__} of 10,000 points, {name}", [seconds], at_most=1.0, unit="s")


def training_steps(repeats: int) -> None:
    print(f"\nprovable training step, batch 256, least milliseconds ({clock_name()})")
    x, y = torch.rand(256, SENSORS), 0.1 + torch.rand(256, 1)
    for hidden in (64, 100, 256):
        net = network(hidden)
        traced, weights = trace(net, (SENSORS,)), list(net.parameters())

        def step(bound: Callable[[], tuple[Tensor, Tensor]], weights=weights) -> tuple[Tensor, ...]:
            lower, upper = bound()
            gradients = torch.autograd.grad(worst_relative_error(lower, upper, y).mean(), weights)
            return lower.detach(), upper.detach(), *gradients

        ways = {
            "ours": lambda n=traced: dual_bounds(n, Box.around(x, EPSILON), outward=False),
            "one pass": lambda n=net: plain_dual_one_pass(n, x, EPSILON),
            "a pass a side": lambda n=net: plain_dual(n, x, EPSILON),
        }
        found = [step(way) for way in ways.values()]
        apart = max(float((a - b).abs().max()) for other in found[1:] for a, b in zip(found[0], other, strict=True))
        times = turns({name: functools.partial(step, way) for name, way in ways.items()}, repeats)
        row = "  ".join(f"{name} {1e3 * min(seconds):7.1f}" for name, seconds in times.items())
        print(f"  hidden {hidden:3d}: {row}  bounds and gradients apart by {apart:.0e}")
        if hidden == 64:  # the claims are of wider ones
            continue
        what = f"provable training step, hidden {hidden}-{hidden}"
        for name in ("one pass", "a pass a side"):
            against = f"the plain dual network, {name}"
            claim(what, ratios(times[name], times["ours"]), at_least=5, against=against)
        claim(f"{what}: bounds and gradients apart", [apart], at_most=1e-5, against="both", unit="", clock="")


def trained(robust: bool, hidden: int, steps: int) -> nn.Sequential:
    """A network on the injector, ordinary or provable."""
    data = _injector_readings(10_000, 1, 1.0)
    inputs, targets = (torch.tensor(v, dtype=torch.float32) for v in (data.inputs, data.targets[:, None]))
    net = network(hidden)
    traced, optimizer = trace(net, (SENSORS,)), torch.optim.Adam(net.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        rows = torch.randint(len(inputs), (256,))
        x, y = inputs[rows], targets[rows]
        scale = min(1.0, 2 * step / steps) if robust else 0.0
        region = Box.around(x, scale * EPSILON)
        lower, upper = dual_bounds(traced, region, outward=False) if robust else (net(x), net(x))
        optimizer.zero_grad()
        worst_relative_error(lower, upper, y).mean().backward()
        optimizer.step()
        schedule.step()
    return net.double()


def exact_ranges(kind: str, points: int, gap: float, limit: float, rounds: int) -> None:
    """`kind`: provable or ordinary, and the width of its hidden layers."""
    robust, hidden = kind.startswith("provable"), int(kind.split("-")[1])
    test = torch.tensor(_injector_readings(1500, 2, 1.0).inputs)
    net = trace(trained(robust, hidden, 600 if robust else 1500), (SENSORS,))
    box = Box.around(test[:points], EPSILON.double())
    boxes = intersection_boxes(net, box)
    undecided = sum(((boxes[n].lower < 0) & (boxes[n].upper > 0)).sum(1) for n in net.pre_activations)
    ways = {
        "ours": lambda: branch_and_bound(net, box, gap=gap, time_limit=limit * points),
        "HiGHS": lambda: milp_bounds(net, box, gap=gap, time_limit=limit / 2),  # of each of two solves a point
    }
    found, times = {}, {name: [] for name in ways}
    for _, (name, way) in itertools.product(range(rounds), ways.items()):
        begin = clock()
        found[name] = way()
        times[name].append(clock() - begin)
    mine, other = found["ours"], found["HiGHS"]
    both = mine.solved & other.solved
    apart = max(
        (float((a - b)[both].abs().max()) for a, b in zip(mine.attained, other.attained, strict=True) if both.any()),
        default=float("nan"),
    )
    seconds = "  ".join(
        f"{name} {statistics.median(times[name]):6.2f} ({int(found[name].solved.sum())} solved)" for name in ways
    )
    least, most = int(undecided.min()), int(undecided.max())
    print(f"  {kind}, {points} points of {least} to {most} undecided units: {seconds}  apart by {apart:.0e}")
    what = f"exact ranges at a gap of {gap:g}, {kind}, {points} points"
    claim(what, ratios(times["HiGHS"], times["ours"]), at_least=5, against="HiGHS")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--rounds", type=int, default=1, help="of the exact comparison")
    parser.add_argument(
        "--points", type=int, default=80, help="of the exact comparison; a quarter for ordinary networks"
    )
    parser.add_argument("--gap", type=float, default=1e-4)
    parser.add_argument("--limit", type=float, default=20.0, help="seconds a point of the exact comparison")
    parser.add_argument("--only", choices=("points", "steps", "exact"))
    parser.add_argument("--net", nargs="+", default=["provable-64", "ordinary-64"], help="of the exact comparison")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.only in (None, "points"):
        many_points(arguments.repeats)
    if arguments.only in (None, "steps"):
        training_steps(arguments.repeats)
    if arguments.only in (None, "exact"):
        print(f"\nexact ranges at a relative gap of {arguments.gap:g}, seconds for all points ({clock_name()})")
        for kind in arguments.net:
            points = arguments.points if kind.startswith("provable") else max(2, arguments.points // 4)
            exact_ranges(kind, points, arguments.gap, arguments.limit, arguments.rounds)
