"""The exact optimum by branch and bound on ReLU splits, over batched linear bounds (Wang et al. 2021).

A domain is a region together with a sign for some of the unstable units. Its bound relaxes the rest: the layers'
boxes are computed anew under the signs, the lower slopes (alpha) and the multipliers of the signs (beta) climb by
gradient from where the parent left them. A domain is split at the unit whose two halves, bounded once with the
parent's multipliers, leave the best worse half, among a few whose relaxation looks loosest (De Palma et al. 2021).
Domains of all examples and of both directions share one batch, so that a round costs a few matrix products whatever
it is spent on; each problem gets an equal share of it.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from robustrun.methods.bounds.activations import Lines, ReLU
from robustrun.methods.bounds.attack import attained_range
from robustrun.methods.bounds.crown import intersection_boxes, layer_boxes
from robustrun.methods.bounds.exact import Optimum, check_exact
from robustrun.methods.bounds.leaves import leaf_optima
from robustrun.methods.bounds.linear import back_substitute
from robustrun.methods.bounds.network import Network
from robustrun.methods.bounds.regions import Bounds, Box, linear_range
from robustrun.methods.bounds.unsupported import Unsupported


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
    steps: int = 8,
    lr: float = 1.8,
    candidates: int = 4,
    generator: torch.Generator | None = None,
) -> Optimum:
    """The exact least and greatest output of a ReLU network of one output over each box.

    boxes: bounds of the pre-activations (`intersection_boxes` if None). gap: relative to the optimum (and 1e-6
    absolutely, as HiGHS has it). time_limit: seconds for all examples together; when it is over both sides found
    so far are returned, and they hold. batch: domains split a round; steps, lr: of the ascent of each bound;
    candidates: units tried before a split (1: the loosest is taken untried). Use float64. Raises Unsupported for
    other activations than ReLU and for regions other than a box.
    """
    check_exact(net, region)
    if not all(isinstance(n.op, ReLU) and not n.op.leak for n in net.activations):
        raise Unsupported("exact bounds are known for ReLU networks only")
    with torch.no_grad():
        return _Search(net, region, boxes, gap, time_limit, batch, steps, lr, candidates, generator).run()


class _Search:
    def __init__(self, net, region, boxes, gap, time_limit, batch, steps, lr, candidates, generator):
        self.net, self.region, self.gap, self.batch, self.steps, self.lr = net, region, gap, batch, steps, lr
        self.candidates = candidates
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
            order = self._turns(frontier)
            chosen, rest = frontier[order[: self.batch]], frontier[order[self.batch :]]
            children = self._split(chosen)
            if len(children) <= self.batch // 4:  # a larger round takes hardly longer: split once more
                children = self._split(children)
            frontier = self._close(_Domains.cat([rest, self._bound(children)]))
        proven = self.proven.scatter_reduce(0, frontier.problem, frontier.bound, "amin")
        proven = torch.minimum(proven, self.best)
        solved = torch.ones(2 * self.examples, dtype=torch.bool)
        solved[frontier.problem] = False
        solved = solved.view(2, -1).all(0)
        low, high = proven.view(2, -1)
        best_low, best_high = self.best.view(2, -1)
        at_low, at_high = self.best_x.view(2, *self.region.lower.shape)
        return Optimum(Bounds(low, best_low), Bounds(-best_high, -high), at_low, at_high, solved)

    def _turns(self, d: _Domains) -> Tensor:
        """The order in which domains are split: the loosest of every problem, then the second of every problem, ...

        Equal shares of a round, so that a hard problem does not keep the others from being solved in time.
        """
        order = torch.argsort(self.best[d.problem] - d.bound, descending=True)
        grouped = order[torch.argsort(d.problem[order], stable=True)]
        counts = torch.bincount(d.problem, minlength=len(self.best))
        turn = torch.arange(len(d)) - (counts.cumsum(0) - counts)[d.problem[grouped]]
        return grouped[torch.argsort(turn, stable=True)]

    def _target(self, problem: Tensor) -> Tensor:
        """A bound that reaches this closes its domain."""
        best = self.best[problem]
        return best - torch.maximum(self.gap * best.abs(), torch.full_like(best, 1e-6))

    def _close(self, d: _Domains) -> _Domains:
        """Close what is good enough or empty, settle leaves by their linear programs; the rest stays open."""
        empty = (d.lower > d.upper).any(1)
        undecided = ((d.lower < 0) & (d.upper > 0)).any(1)
        done = d.bound >= self._target(d.problem)
        leaves = (~empty & ~undecided & ~done).nonzero().squeeze(1)
        if len(leaves):
            d.bound[leaves] = torch.maximum(d.bound[leaves], self._leaves(d[leaves]))
            done[leaves] = True
        closed = d[done & ~empty]
        self.proven.scatter_reduce_(0, closed.problem, closed.bound, "amin")
        return d[~done & ~empty]

    def _split(self, d: _Domains) -> _Domains:
        """The children of each domain: its best unit not negative, or not positive; empty ones are dropped."""
        undecided = (d.lower < 0) & (d.upper > 0)
        whole = ~undecided.any(1)
        if whole.any():
            return _Domains.cat([d[whole], self._split(d[~whole])])
        loosest = torch.where(undecided, d.score, -1.0)
        unit = loosest.argmax(1) if self.candidates == 1 else self._choose(d, undecided, loosest)
        children = self._halves(d, unit)
        # the boxes of later layers depend on this sign; those of the same layer and before it do not
        inner = (unit < sum(self.sizes[:-1])).repeat(2)
        return _Domains.cat([children[~inner], self._refresh(children[inner])])

    def _choose(self, d: _Domains, undecided: Tensor, loosest: Tensor) -> Tensor:
        """The unit (n,) of each domain to split at: every candidate's halves are bounded, all in one batch."""
        candidates = loosest.topk(min(self.candidates, loosest.shape[1]), dim=1).indices
        n, k = candidates.shape
        copy = torch.arange(n).repeat(2 * k)
        halves = self._decide(*(v[copy] for v in self._triangles(d)), candidates.T.flatten())
        value, _ = self._evaluate(d.problem[copy], halves, d.alpha[copy], (-d.beta * d.sign)[copy])
        # what a half gains beyond its target is worth nothing
        gain = (torch.minimum(value.view(2, k, n), self._target(d.problem)) - d.bound).clamp(min=0)
        merit = gain.amin(0) + 0.1 * gain.amax(0)
        best = torch.where(undecided.gather(1, candidates).T, merit, -1.0).argmax(0)
        return candidates.gather(1, best[:, None]).squeeze(1)

    @staticmethod
    def _halves(d: _Domains, unit: Tensor) -> _Domains:
        """Every domain with its unit (n,) not negative, then every domain with it not positive."""
        n = torch.arange(len(d))
        on, off = d[n], d[n]
        on.sign[n, unit], off.sign[n, unit] = 1, -1
        on.lower[n, unit] = 0.0
        off.upper[n, unit] = 0.0
        return _Domains.cat([on, off])

    @staticmethod
    def _decide(unstable: Tensor, slope: Tensor, intercept: Tensor, unit: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The triangles of two copies of each domain, with its unit (n,) the identity in one and zero in the other."""
        unstable, slope, intercept = unstable.clone(), slope.clone(), intercept.clone()
        at = torch.arange(len(unstable)), unit.repeat(2)
        unstable[at], intercept[at] = False, 0.0
        slope[at] = torch.tensor([1.0, 0.0], dtype=slope.dtype).repeat_interleave(len(unit))
        return unstable, slope, intercept

    def _by_name(self, units: Tensor) -> dict[str, Tensor]:
        parts = units.split(self.sizes, dim=-1)
        return {
            name: part.reshape(*part.shape[:-1], *self.net[name].shape)
            for name, part in zip(self.names, parts, strict=True)
        }

    def _refresh(self, d: _Domains) -> _Domains:
        """The layers' boxes under the signs; what comes out empty is dropped."""
        if not len(d):
            return d
        lower, upper = self._by_name(d.lower), self._by_name(d.upper)
        known = {name: Bounds(lower[name], upper[name]) for name in self.names}
        boxes = layer_boxes(self.net, self.region[d.problem % self.examples], known=known)
        d.lower, d.upper = (
            torch.cat([getattr(boxes[name], side).flatten(1) for name in self.names], dim=1)
            for side in ("lower", "upper")
        )
        return d[(d.lower <= d.upper).all(1)]

    @staticmethod
    def _triangles(d: _Domains) -> tuple[Tensor, Tensor, Tensor]:
        """Which units are undecided, and slope and intercept of every unit's upper line."""
        l, u = d.lower, d.upper
        unstable = (l < 0) & (u > 0)
        slope = torch.where(unstable, u / torch.where(unstable, u - l, 1.0), (l >= 0).to(l.dtype))
        return unstable, slope, torch.where(unstable, -slope * l, 0.0)

    def _evaluate(
        self,
        problem: Tensor,
        triangles: tuple[Tensor, Tensor, Tensor],
        alpha: Tensor,
        push: Tensor,
        seen: dict[str, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The bound (n,) of each domain with lower slopes `alpha` where undecided, `push` added to the coefficients,
        and its linear form's coefficients on the input."""
        unstable, slope, intercept = triangles
        named = [self._by_name(v) for v in (torch.where(unstable, alpha, slope), slope, intercept, push)]
        lines = {
            node.name: Lines(lower, None, upper, above, multiplier.unsqueeze(1))
            for node in self.net.activations
            for lower, upper, above, multiplier in [[v[node.inputs[0]] for v in named]]
        }
        objective = self._direction(problem).view(-1, 1, *[1] * len(self.net.output.shape))
        form = back_substitute(self.net, self.net.output.name, objective, lines, seen)
        value, deviation = linear_range(self.region[problem % self.examples], form.coefficients)
        return (value - deviation + form.lower).squeeze(1), form.coefficients.squeeze(1)

    def _direction(self, problem: Tensor) -> Tensor:
        """1 where the output is minimised, -1 where it is maximised."""
        return torch.where(problem < self.examples, 1.0, -1.0).to(self.best.dtype)

    def _bound(self, d: _Domains) -> _Domains:
        """Raise every domain's bound by a few steps on alpha and beta; look for better inputs along the way."""
        target, margin, triangles = self._target(d.problem), self.margin[d.problem], self._triangles(d)
        climbing = torch.arange(len(d))
        alpha, beta, sign, scale = d.alpha, d.beta, d.sign, None
        for step in range(self.steps + 1):
            if not len(climbing):
                break
            problem, last = d.problem[climbing], step == self.steps
            seen: dict[str, Tensor] = {}
            with torch.set_grad_enabled(not last):
                alpha, beta = alpha.detach().requires_grad_(not last), beta.detach().requires_grad_(not last)
                value, coefficients = self._evaluate(problem, triangles, alpha, -beta * sign, seen)
                if not last:
                    gradient = torch.autograd.grad(value.sum(), (alpha, beta), allow_unused=True)
            value, alpha, beta = value.detach(), alpha.detach(), beta.detach()
            proven = value - margin
            better = (proven > d.bound[climbing]) | (step == 0)
            kept = climbing[better]
            d.bound[kept] = torch.maximum(d.bound[kept], proven[better])
            d.alpha[kept], d.beta[kept] = alpha[better], beta[better]
            if step == 0 or last:
                weights = self._coefficients(seen)
                self._try(problem, self.region[problem % self.examples].minimizer(coefficients.detach()))
                d.score[climbing] = self._scores(weights, triangles[2], d.lower[climbing], d.upper[climbing], alpha)
            if last:
                break
            scale = weights.abs().mean(1, keepdim=True) + weights.abs() if step == 0 else scale
            alpha, beta = self._ascend(alpha, beta, gradient, target - value, scale)
            short = value < target
            if not short.all():
                climbing, alpha, beta, sign, scale, target, margin = (
                    v[short] for v in (climbing, alpha, beta, sign, scale, target, margin)
                )
                triangles = tuple(v[short] for v in triangles)
        return d

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

    @staticmethod
    def _scores(a: Tensor, chord: Tensor, l: Tensor, u: Tensor, alpha: Tensor) -> Tensor:
        """How much of the bound's looseness each unit's relaxation can be responsible for.

        `a` are the coefficients on the units, `chord` the gap of the upper line at zero.
        """
        below = torch.maximum((1 - alpha) * u, -alpha * l)
        return a.clamp(max=0).abs() * chord + 0.5 * a.clamp(min=0) * torch.minimum(below, chord)

    def _try(self, problem: Tensor, x: Tensor) -> None:
        """Take the network's value at x where it beats the best input known."""
        value = self._direction(problem) * self.net(x).reshape(-1)
        least = self.best.scatter_reduce(0, problem, value, "amin")
        better = ((value == least[problem]) & (value < self.best[problem])).nonzero().squeeze(1)
        self.best_x[problem[better]] = x[better]
        self.best = least

    def _leaves(self, d: _Domains) -> Tensor:
        """The optima (n,) of domains whose units are all decided."""
        region = self.region[d.problem % self.examples]
        active, sign = self._by_name((d.lower >= 0).to(d.bound.dtype)), self._by_name(d.sign)
        value, points, found = leaf_optima(self.net, region, active, sign, self._direction(d.problem))
        self._try(d.problem[found], points[found])
        return value
