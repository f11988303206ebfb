"""The exact optimum by branch and bound on ReLU splits, over batched linear bounds (Wang et al. 2021).

A domain is a region together with a sign for some of the unstable units. Its bound relaxes the rest: the layers'
boxes are computed anew under the signs, the lower slopes (alpha) and the multipliers of the signs (beta) climb by
gradient from where the parent left them. Domains of all examples and of both directions share one batch, so that
a round costs a few matrix products whatever it is spent on; whoever is behind gets the next split.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np
import torch
from scipy import optimize
from torch import Tensor

from .activations import Lines, ReLU
from .attack import attained_range
from .crown import intersection_boxes, layer_boxes
from .exact import Optimum, check_exact
from .linear import back_substitute
from .network import Network
from .program import program
from .regions import Bounds, Box, linear_range
from .unsupported import Unsupported


@dataclass
class _Domains:
    """Open domains, as arrays: (n,) problems and bounds, (n, units) signs, boxes and multipliers.

    Units are all pre-activations side by side; `problem` is the example, plus the batch for a maximum.
    """

    problem: Tensor
    bound: Tensor
    score: Tensor  # of splitting each unit
    sign: Tensor  # int8
    lower: Tensor
    upper: Tensor
    alpha: Tensor
    beta: Tensor

    def __len__(self) -> int:
        return len(self.problem)

    def __getitem__(self, index: Tensor) -> "_Domains":
        return _Domains(*(getattr(self, f.name)[index] for f in fields(self)))

    @staticmethod
    def cat(parts: list["_Domains"]) -> "_Domains":
        return _Domains(*(torch.cat([getattr(p, f.name) for p in parts]) for f in fields(_Domains)))


def branch_and_bound(
    net: Network,
    region: Box,
    *,
    boxes: Mapping[str, Bounds] | None = None,
    gap: float = 1e-6,
    time_limit: float = 60.0,
    batch: int = 1024,
    steps: int = 5,
    lr: float = 1.2,
    attained: Bounds | None = None,
    generator: torch.Generator | None = None,
) -> Optimum:
    """The exact least and greatest output of a ReLU network of one output over each box.

    boxes: bounds of the pre-activations (`intersection_boxes` if None). gap: relative to the optimum (and 1e-6
    absolutely, as HiGHS has it). time_limit: seconds for all examples together; when it is over both sides found
    so far are returned, and they hold. batch: domains split a round; steps, lr: of the ascent of each bound.
    Use float64. Raises Unsupported for other activations than ReLU and for regions other than a box.
    """
    check_exact(net, region)
    if not all(isinstance(n.op, ReLU) and not n.op.leak for n in net.activations):
        raise Unsupported("exact bounds are known for ReLU networks only")
    with torch.no_grad():
        return _Search(net, region, boxes, gap, time_limit, batch, steps, lr, generator).run()


class _Search:
    def __init__(self, net, region, boxes, gap, time_limit, batch, steps, lr, generator):
        self.net, self.region, self.gap, self.batch, self.steps, self.lr = net, region, gap, batch, steps, lr
        self.deadline = time.perf_counter() + time_limit
        self.examples = region.lower.shape[0]
        self.names = net.pre_activations
        self.sizes = [net[name].size for name in self.names]
        boxes = intersection_boxes(net, region) if boxes is None else boxes
        self.margin = net.margins(region)[net.output.name].reshape(-1).repeat(2)
        found = attained_range(net, region, steps=20, restarts=4, generator=generator)
        # every problem is a minimum: of the output, then of its negative
        self.best = torch.cat([found.lower, -found.upper])
        self.best_x = torch.cat([found.at_lower, found.at_upper])
        self.proven = torch.full_like(self.best, torch.inf)  # least bound of the domains that are closed
        self.root = self._root(boxes)

    def _root(self, boxes: Mapping[str, Bounds]) -> _Domains:
        lower, upper = (
            torch.cat([getattr(boxes[name], side).flatten(1) for name in self.names], dim=1).repeat(2, 1)
            if self.names
            else self.best.new_zeros((2 * self.examples, 0))
            for side in ("lower", "upper")
        )
        zeros = torch.zeros_like(lower)
        problem = torch.arange(2 * self.examples)
        alpha = (upper >= -lower).to(lower.dtype)
        return _Domains(
            problem, torch.full_like(self.best, -torch.inf), zeros, zeros.to(torch.int8), lower, upper, alpha, zeros
        )

    def run(self) -> Optimum:
        frontier = self._close(self._bound(self.root))
        while len(frontier) and time.perf_counter() < self.deadline:
            behind = self.best[frontier.problem] - frontier.bound
            order = torch.argsort(behind, descending=True)
            chosen, rest = frontier[order[: self.batch]], frontier[order[self.batch :]]
            children = self._bound(self._refresh(self._split(chosen)))
            frontier = self._close(_Domains.cat([rest, children]))
        proven = self.proven.scatter_reduce(0, frontier.problem, frontier.bound, "amin")
        proven = torch.minimum(proven, self.best)
        solved = torch.ones(2 * self.examples, dtype=torch.bool)
        solved[frontier.problem] = False
        solved = solved.view(2, -1).all(0)
        low, high = proven.view(2, -1)
        best_low, best_high = self.best.view(2, -1)
        at_low, at_high = self.best_x.view(2, *self.region.lower.shape)
        return Optimum(Bounds(low, best_low), Bounds(-best_high, -high), at_low, at_high, solved)

    def _target(self, problem: Tensor) -> Tensor:
        """A bound that reaches this closes its domain."""
        best = self.best[problem]
        return best - torch.maximum(self.gap * best.abs(), torch.full_like(best, 1e-6))

    def _close(self, d: _Domains) -> _Domains:
        """Close what is good enough or empty, settle leaves by their linear programs; the rest stays open."""
        empty = (d.lower > d.upper).any(1)
        undecided = ((d.lower < 0) & (d.upper > 0)).any(1)
        done = d.bound >= self._target(d.problem)
        for i in (~empty & ~undecided & ~done).nonzero().squeeze(1).tolist():
            d.bound[i] = max(d.bound[i], self._leaf(d[torch.tensor([i])]))
            done[i] = True
        closed = d[done & ~empty]
        self.proven.scatter_reduce_(0, closed.problem, closed.bound, "amin")
        return d[~done & ~empty]

    def _split(self, d: _Domains) -> _Domains:
        """Two children of each domain: its best unit not negative, or not positive."""
        n = torch.arange(len(d))
        unit = torch.where((d.lower < 0) & (d.upper > 0), d.score, -1.0).argmax(1)
        on, off = d[n], d[n]
        on.sign[n, unit], off.sign[n, unit] = 1, -1
        on.lower[n, unit] = 0.0
        off.upper[n, unit] = 0.0
        return _Domains.cat([on, off])

    def _by_name(self, units: Tensor) -> dict[str, Tensor]:
        parts = units.split(self.sizes, dim=-1)
        return {
            name: part.reshape(*part.shape[:-1], *self.net[name].shape)
            for name, part in zip(self.names, parts, strict=True)
        }

    def _refresh(self, d: _Domains) -> _Domains:
        """The layers' boxes under the signs; what comes out empty is dropped."""
        lower, upper = self._by_name(d.lower), self._by_name(d.upper)
        known = {name: Bounds(lower[name], upper[name]) for name in self.names}
        boxes = layer_boxes(self.net, self.region[d.problem % self.examples], known=known)
        d.lower, d.upper = (
            torch.cat([getattr(boxes[name], side).flatten(1) for name in self.names], dim=1)
            for side in ("lower", "upper")
        )
        return d[(d.lower <= d.upper).all(1)]

    def _evaluate(self, d: _Domains, alpha: Tensor, beta: Tensor, seen: dict[str, Tensor] | None = None):
        """The bound (n,) of each domain with these multipliers, and its linear form's coefficients on the input."""
        direction = self._direction(d.problem)
        objective = direction.view(-1, 1, *[1] * len(self.net.output.shape))
        lines = self._lines(d, alpha, beta)
        form = back_substitute(self.net, self.net.output.name, objective, lines, seen)
        value, deviation = linear_range(self.region[d.problem % self.examples], form.coefficients)
        return (value - deviation + form.lower).squeeze(1), form.coefficients.squeeze(1)

    def _direction(self, problem: Tensor) -> Tensor:
        """1 where the output is minimised, -1 where it is maximised."""
        return torch.where(problem < self.examples, 1.0, -1.0).to(self.best.dtype)

    def _bound(self, d: _Domains) -> _Domains:
        """Raise every domain's bound by a few steps on alpha and beta; look for better inputs along the way."""
        if not len(d):
            return d
        target = self._target(d.problem)
        best = torch.full_like(d.bound, -torch.inf)
        kept = alpha, beta = d.alpha, d.beta
        for step in range(self.steps + 1):
            last = step == self.steps
            seen: dict[str, Tensor] = {}
            with torch.set_grad_enabled(not last):
                alpha, beta = alpha.detach().requires_grad_(not last), beta.detach().requires_grad_(not last)
                value, coefficients = self._evaluate(d, alpha, beta, seen)
                if not last:
                    gradient = torch.autograd.grad(value.sum(), (alpha, beta), allow_unused=True)
            value, alpha, beta = value.detach(), alpha.detach(), beta.detach()
            improved = value > best
            best = torch.where(improved, value, best)
            kept = tuple(torch.where(improved.unsqueeze(1), v, k) for v, k in zip((alpha, beta), kept, strict=True))
            if step == 0 or last:
                region = self.region[d.problem % self.examples]
                self._try(d.problem, region.minimizer(coefficients.detach()))
                weights = self._coefficients(seen)
                d.score = self._scores(d, weights, alpha)
            if last or bool((best >= target).all()):
                break
            if step == 0:
                scale = weights.abs().mean(1, keepdim=True) + weights.abs()
            alpha, beta = self._ascend(alpha, beta, gradient, target - value, scale)
        d.bound = torch.maximum(d.bound, best - self.margin[d.problem])
        d.alpha, d.beta = kept
        return d

    def _lines(self, d: _Domains, alpha: Tensor, beta: Tensor) -> dict[str, Lines]:
        lower, upper, slope, push = (self._by_name(v) for v in (d.lower, d.upper, alpha, -beta * d.sign))
        lines = {}
        for node in self.net.activations:
            name = node.inputs[0]
            line = node.op.lines(Bounds(lower[name], upper[name]), alpha=slope[name])
            lines[node.name] = line._replace(multiplier=push[name].unsqueeze(1))
        return lines

    def _ascend(self, alpha, beta, gradient, missing, scale):
        """Polyak's step, projected on 0 <= alpha <= 1 and beta >= 0.

        The bound is concave and piecewise linear in the multipliers, and the value that closes the domain is
        known: the step that would reach it if the bound were linear converges linearly, without a rate to tune.
        beta moves on the scale of the coefficients.
        """
        g_alpha = torch.zeros_like(alpha) if gradient[0] is None else gradient[0]
        g_beta = torch.zeros_like(beta) if gradient[1] is None else gradient[1] * scale
        # directions that the constraints forbid take no part in the step
        g_alpha = torch.where(((alpha <= 0) & (g_alpha < 0)) | ((alpha >= 1) & (g_alpha > 0)), 0.0, g_alpha)
        g_beta = torch.where((beta <= 0) & (g_beta < 0), 0.0, g_beta)
        norm = (g_alpha.square().sum(1) + g_beta.square().sum(1)).clamp(min=1e-300)
        step = (self.lr * missing.clamp(min=0) / norm).unsqueeze(1)
        return (alpha + step * g_alpha).clamp(0, 1), (beta + step * g_beta * scale).clamp(min=0)

    def _coefficients(self, seen: Mapping[str, Tensor]) -> Tensor:
        by_pre = {
            node.inputs[0]: seen[node.name].detach().flatten(1) for node in self.net.activations if node.name in seen
        }
        return torch.cat([by_pre[name] for name in self.names], dim=1)

    def _scores(self, d: _Domains, a: Tensor, alpha: Tensor) -> Tensor:
        """How much of the bound's looseness each unit's relaxation can be responsible for."""
        l, u = d.lower, d.upper
        chord = -u * l / (u - l).clamp(min=1e-12)
        below = torch.maximum((1 - alpha) * u, -alpha * l)
        return a.clamp(max=0).abs() * chord + 0.5 * a.clamp(min=0) * torch.minimum(below, chord)

    def _try(self, problem: Tensor, x: Tensor) -> None:
        """Take the network's value at x where it beats the best input known."""
        value = self._direction(problem) * self.net(x).reshape(-1)
        least = self.best.scatter_reduce(0, problem, value, "amin")
        better = ((value == least[problem]) & (value < self.best[problem])).nonzero().squeeze(1)
        self.best_x[problem[better]] = x[better]
        self.best = least

    def _leaf(self, d: _Domains) -> float:
        """The exact optimum of a domain whose units are all decided: a linear program in the inputs."""
        example = d.problem % self.examples
        region = self.region[example]
        lower, upper, sign = self._by_name(d.lower), self._by_name(d.upper), self._by_name(d.sign)
        boxes = {name: Bounds(lower[name], upper[name]) for name in self.names}
        p = program(self.net, region, boxes, signs=sign)
        direction = float(self._direction(d.problem))
        constraints = optimize.LinearConstraint(p.split, -p.split_constant, np.inf)
        result = optimize.milp(
            direction * p.output[0], bounds=optimize.Bounds(p.lower, p.upper), constraints=constraints
        )
        if result.status == 2:  # no input has these signs
            return float("inf")
        if result.status != 0:
            return float(d.bound)
        x = region.project(torch.as_tensor(result.x, dtype=region.lower.dtype).view_as(region.lower))
        self._try(d.problem, x)
        return float(result.fun + direction * p.output_constant[0] - 1e-7)
