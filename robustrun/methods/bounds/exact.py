"""Solvers' bounds, one example at a time: the LP relaxation and the exact mixed-integer optimum.

They are what the batched bounds of this package are measured against (Tjeng et al. 2019). SciPy's HiGHS solves
them; cvxpy, where installed, gives a second opinion on the LP.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy
import torch
from torch import Tensor

from robustrun.errors import JobFailed
from robustrun.methods.bounds.crown import intersection_boxes
from robustrun.methods.bounds.network import Network
from robustrun.methods.bounds.program import Program, program
from robustrun.methods.bounds.regions import Bounds, Box
from robustrun.methods.bounds.unsupported import Unsupported


@dataclass(frozen=True)
class Optimum:
    """The least and the greatest output over boxes, each between two sides, with inputs that attain one of them.

    minimum, maximum: Bounds (batch,): the least (greatest) value lies between lower and upper; `at_minimum` and
    `at_maximum` (batch, *features) are inputs at which the network takes minimum.upper and maximum.lower. Where
    `solved` (batch,), the sides meet up to the gap asked for; elsewhere time ran out, and they still hold.
    """

    minimum: Bounds
    maximum: Bounds
    at_minimum: Tensor
    at_maximum: Tensor
    solved: Tensor

    @property
    def certified(self) -> Bounds:
        """What is proven of the output: the outer sides."""
        return Bounds(self.minimum.lower, self.maximum.upper)

    @property
    def attained(self) -> Bounds:
        """What the output is known to reach: the inner sides."""
        return Bounds(self.minimum.upper, self.maximum.lower)


def check_exact(net: Network, region: Box) -> None:
    """Refuse what exact methods cannot bound.

    Raises:
        Unsupported: the region is no box.
        ValueError: the network has more than one output.
    """
    if not isinstance(region, Box):
        raise Unsupported("linear programs need a box of inputs; bound an l2 ball by CROWN")
    if net.output.size != 1:
        raise ValueError(f"exact bounds are for networks of one output, not {net.output.size}")


def _lp(p: Program, c: np.ndarray, solver: Literal["highs", "cvxpy"]) -> float:
    """Least value of c . v under the triangle relaxation."""
    constraint = p.triangle(binary=False)
    if solver == "cvxpy":
        import cvxpy

        v = cvxpy.Variable(len(p.lower))
        limits = [v >= p.lower, v <= p.upper]
        rows, low, high = constraint.A, constraint.lb, constraint.ub
        for side, keep in ((low, np.isfinite(low)), (high, np.isfinite(high))):
            if keep.any():
                left = rows[np.flatnonzero(keep)] @ v
                limits.append(left >= side[keep] if side is low else left <= side[keep])
        problem = cvxpy.Problem(cvxpy.Minimize(c @ v), limits)
        problem.solve(solver=cvxpy.CLARABEL)
        if problem.status != cvxpy.OPTIMAL:
            raise JobFailed(f"the LP of a bound was not solved: {problem.status}")
        return float(problem.value)
    constraints = [constraint] if p.unstable else []
    result = scipy.optimize.milp(c, bounds=scipy.optimize.Bounds(p.lower, p.upper), constraints=constraints)
    if result.status != 0:
        raise JobFailed(f"the LP of a bound was not solved: {result.message}")
    return float(result.fun)


def lp_bounds(
    net: Network,
    region: Box,
    *,
    boxes: Mapping[str, Bounds] | None = None,
    tighten: bool = False,
    solver: Literal["highs", "cvxpy"] = "highs",
) -> Bounds:
    """Bounds (batch, *output) by the triangle LP: the best that any choice of ReLU lines can prove.

    boxes: bounds of the pre-activations (`intersection_boxes` if None). tighten: replace these, unit by unit, by
    their own LPs first. Solved to the solver's tolerance of 1e-7, by which the result is widened. Use float64.

    Raises:
        Unsupported: the region is no box.
    """
    if not isinstance(region, Box):
        raise Unsupported("linear programs need a box of inputs; bound an l2 ball by CROWN")
    with torch.no_grad():
        boxes = dict(intersection_boxes(net, region) if boxes is None else boxes)
        results = []
        for i in range(region.lower.shape[0]):
            one = region[i : i + 1]
            mine = {
                name: Bounds(boxes[name].lower[i : i + 1], boxes[name].upper[i : i + 1]) for name in net.pre_activations
            }
            if tighten:
                for name in net.pre_activations:
                    mine[name] = _lp_box(net, one, mine, name, solver)
            results.append(_lp_box(net, one, mine, net.output.name, solver))
    return Bounds(*(torch.cat(side) for side in zip(*results, strict=True)))


def _lp_box(
    net: Network, one: Box, boxes: Mapping[str, Bounds], name: str, solver: Literal["highs", "cvxpy"]
) -> Bounds:
    p = program(net, one, boxes, until=name)
    lower = [_lp(p, row, solver) for row in p.output] + p.output_constant
    upper = [-_lp(p, -row, solver) for row in p.output] + p.output_constant
    found = (torch.as_tensor(b, dtype=one.lower.dtype).view(1, *net[name].shape) for b in (lower, upper))
    found = Bounds(*found).widen(1e-7)
    return found.intersect(boxes[name]) if name in boxes else found


def milp_bounds(
    net: Network,
    region: Box,
    *,
    boxes: Mapping[str, Bounds] | None = None,
    gap: float = 1e-6,
    time_limit: float = 60.0,
) -> Optimum:
    """The exact least and greatest output over each box, by mixed-integer programming with HiGHS.

    boxes: bounds of the pre-activations, from which the big-M constants come (`intersection_boxes` if None): the
    tighter, the faster. gap: relative, at which a solution counts as optimal. time_limit: seconds a solve; there
    are two an example. On time-out both sides found so far are returned. The attained sides are the network's own
    values at the inputs returned, not the solver's; the proven sides are widened by its tolerance, 1e-6.
    """
    check_exact(net, region)
    with torch.no_grad():
        boxes = intersection_boxes(net, region) if boxes is None else boxes
        lows, highs, at_low, at_high, solved = [], [], [], [], []
        for i in range(region.lower.shape[0]):
            one = region[i : i + 1]
            mine = {
                name: Bounds(boxes[name].lower[i : i + 1], boxes[name].upper[i : i + 1]) for name in net.pre_activations
            }
            p = program(net, one, mine)
            low, x_low, done_low = _milp(net, p, one, 1.0, gap, time_limit)
            high, x_high, done_high = _milp(net, p, one, -1.0, gap, time_limit)
            lows.append(low)
            highs.append((-high[1], -high[0]))
            at_low.append(x_low)
            at_high.append(x_high)
            solved.append(done_low and done_high)
        like = {"dtype": region.lower.dtype}
        sides = [torch.tensor(s, **like) for pair in (lows, highs) for s in zip(*pair, strict=True)]
        minimum, maximum = Bounds(*sides[:2]), Bounds(*sides[2:])
        return Optimum(minimum, maximum, torch.cat(at_low), torch.cat(at_high), torch.tensor(solved))


def _milp(
    net: Network, p: Program, one: Box, sign: float, gap: float, time_limit: float
) -> tuple[tuple[float, float], Tensor, bool]:
    """Both sides of the least value of sign * output, an input that attains the upper one, and whether they meet."""
    k = p.unstable
    c = np.concatenate([sign * p.output[0], np.zeros(k)])
    begin = time.perf_counter()
    result = scipy.optimize.milp(
        c,
        integrality=np.concatenate([np.zeros(len(p.lower)), np.ones(k)]),
        bounds=scipy.optimize.Bounds(np.concatenate([p.lower, np.zeros(k)]), np.concatenate([p.upper, np.ones(k)])),
        constraints=[p.triangle(binary=True)] if k else [],
        options={"time_limit": time_limit, "mip_rel_gap": gap},
    )
    if result.status not in (0, 1):
        raise JobFailed(f"the MILP of a bound failed after {time.perf_counter() - begin:.0f} s: {result.message}")
    constant = sign * p.output_constant[0]
    dual = result.fun if k == 0 or result.mip_dual_bound is None else result.mip_dual_bound
    if result.x is None:
        x = one.centre
    else:
        x = torch.as_tensor(result.x[: p.n_inputs], dtype=one.lower.dtype).view_as(one.lower)
    x = one.project(x)
    attained = sign * net(x).item()
    proven = -np.inf if dual is None else float(dual) + constant - 1e-6 * (1 + abs(float(dual)))
    return (min(proven, attained), attained), x, result.status == 0
