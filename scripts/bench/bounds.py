"""Time bounds of the virtual sensor's networks against the obvious plain implementations.

    python scripts/bench/bounds.py [--threads 2] [--repeats 7] [--points 40]

Three tables: bounds of 10,000 points; provable training steps (forward and backward) against the dual network that
materialises its (batch, h2, h1) coefficients; exact ranges by branch and bound against HiGHS's MILP at the same gap.
"""

import argparse
import functools
import itertools
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from robustrun.methods.bounds import (
    Box,
    branch_and_bound,
    crown_bounds,
    dual_bounds,
    intersection_bounds,
    interval_bounds,
    milp_bounds,
    trace,
    worst_relative_error,
)
from robustrun.tasks.sensors import _INJECTOR, _injector_readings

SENSORS = len(_INJECTOR)
EPSILON = 2.5 * torch.tensor([tolerance for *_, tolerance in _INJECTOR])


def best(function: Callable[[], object], repeats: int, clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds of the fastest of `repeats` calls, after one to warm up."""
    function()
    times = []
    for _ in range(repeats):
        begin = clock()
        function()
        times.append(clock() - begin)
    return min(times)


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
    print("\nbounds of 10,000 points, rounded outwards, seconds (processor seconds)")
    for dtype, hidden in itertools.product((torch.float32, torch.float64), (64, 256)):
        box = Box.around(torch.rand(10_000, SENSORS, dtype=dtype), EPSILON.to(dtype))
        net = trace(network(hidden).to(dtype), (SENSORS,))
        with torch.no_grad():
            for method in (interval_bounds, dual_bounds, crown_bounds, intersection_bounds):
                run = functools.partial(method, net, box)
                wall, busy = best(run, min(repeats, 3)), best(run, min(repeats, 3), time.process_time)
                name = f"{SENSORS}-{hidden}-{hidden}-1  {str(dtype).removeprefix('torch.')}"
                print(f"  {name}  {method.__name__:20s} {wall:8.3f} ({busy:.3f})")


def training_steps(repeats: int) -> None:
    print("\nprovable training step, batch 256, milliseconds (ratio to this package)")
    x, y = torch.rand(256, SENSORS), 0.1 + torch.rand(256, 1)
    for hidden in (64, 100, 256):
        net = network(hidden)
        traced, weights = trace(net, (SENSORS,)), list(net.parameters())

        def step(bound: Callable[[], tuple[Tensor, Tensor]], weights=weights) -> tuple[Tensor, ...]:
            lower, upper = bound()
            torch.autograd.grad(worst_relative_error(lower, upper, y).mean(), weights)
            return lower.detach(), upper.detach()

        ways = {
            "this package": lambda n=traced: dual_bounds(n, Box.around(x, EPSILON), outward=False),
            "plain, one pass": lambda n=net: plain_dual_one_pass(n, x, EPSILON),
            "plain, pass a side": lambda n=net: plain_dual(n, x, EPSILON),
        }
        found = [step(way) for way in ways.values()]
        apart = max(float((a - b).abs().max()) for other in found[1:] for a, b in zip(found[0], other, strict=True))
        times = {name: best(lambda w=way: step(w), repeats) for name, way in ways.items()}
        row = "  ".join(f"{name} {1e3 * t:7.1f} ({t / times['this package']:4.1f})" for name, t in times.items())
        print(f"  hidden {hidden:3d}: {row}  bounds apart by {apart:.0e}")


def trained(robust: bool, steps: int) -> nn.Sequential:
    """A 64-64 network on the injector, ordinary or provable."""
    data = _injector_readings(10_000, 1, 1.0)
    inputs, targets = (torch.tensor(v, dtype=torch.float32) for v in (data.inputs, data.targets[:, None]))
    net = network(64)
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


def exact_ranges(points: int, gap: float, limit: float) -> None:
    print(f"\nexact ranges at a relative gap of {gap:g}, processor seconds for all points")
    test = torch.tensor(_injector_readings(1500, 2, 1.0).inputs)
    for name, robust, steps, count in (("provable", True, 600, points), ("ordinary", False, 1500, max(2, points // 4))):
        net = trace(trained(robust, steps), (SENSORS,))
        box = Box.around(test[:count], EPSILON.double())
        results, times = {}, {}
        for method in (branch_and_bound, milp_bounds):
            each = limit * (count if method is branch_and_bound else 1)
            begin = time.process_time()  # of this process alone: the comparison survives a busy machine
            results[method] = method(net, box, gap=gap, time_limit=each)
            times[method] = time.process_time() - begin
        mine, other = results[branch_and_bound], results[milp_bounds]
        both = mine.solved & other.solved
        apart = max(
            float((a - b)[both].abs().max()) if both.any() else float("nan")
            for a, b in zip(mine.attained, other.attained, strict=True)
        )
        ratio = times[milp_bounds] / times[branch_and_bound]
        print(
            f"  {name:9s} {count:3d} points: "
            f"branch and bound {times[branch_and_bound]:6.2f} ({int(mine.solved.sum())} solved)  "
            f"MILP {times[milp_bounds]:6.2f} ({int(other.solved.sum())} solved)  "
            f"ratio {ratio:5.1f}  apart {apart:.0e}"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument(
        "--points", type=int, default=100, help="of the exact comparison; a quarter for the ordinary network"
    )
    parser.add_argument("--gap", type=float, default=1e-4)
    parser.add_argument("--limit", type=float, default=10.0, help="seconds a point of the exact comparison")
    parser.add_argument("--only", choices=("points", "steps", "exact"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.only in (None, "points"):
        many_points(arguments.repeats)
    if arguments.only in (None, "steps"):
        training_steps(arguments.repeats)
    if arguments.only in (None, "exact"):
        exact_ranges(arguments.points, arguments.gap, arguments.limit)
