r"""Operator splitting for monotone equilibrium problems: z = sigma(W z + b) with I - W strongly monotone.

Peaceman-Rachford in its Cayley form needs one application of C = 2 (I + alpha (I - W))^{-1} - I an iteration and none
of W; forward-backward needs one of W; Picard is the plain iteration, which may diverge. The backward pass is a linear
problem of the same kind that reuses the factorisation. Source: Winston and Kolter (arXiv 2006.08591), section 3.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from robustrun.methods.equilibrium.activations import Activation, Activations, backward_prox, each_tier, relu
from robustrun.methods.equilibrium.fixed_point import FixedPointSolver
from robustrun.methods.equilibrium.grid import batch_last
from robustrun.methods.equilibrium.rootfinding import MEMORY, find_root

State = tuple[Tensor, ...]
"""One tensor (B, ...) a tier."""

Method = Literal["peaceman_rachford", "forward_backward", "picard", "anderson", "broyden"]


class LinearMap(Protocol):
    """A linear map of states for many applications."""

    def __call__(self, u: State, transpose: bool = False, out: State | None = None) -> State:
        """The map or its transpose at u; written into `out`, which may be u itself, where the map can do so."""
        ...


class Resolvent(Protocol):
    """(I + alpha (I - W))^{-1} =: V for one alpha, factorised; `cayley` is 2V - I."""

    alpha: float
    cayley: LinearMap


class LinearOperator(Protocol):
    """W, with I - W strongly monotone."""

    def apply(self, z: State, transpose: bool = False) -> State:
        """W z, or W^T z."""
        ...

    def fixed(self) -> LinearMap:
        """W for the present weights, without gradients."""
        ...

    def factorize(self, alpha: float) -> Resolvent:
        """The resolvent for one alpha; costs an inverse."""
        ...


@dataclass(frozen=True)
class Splitting:
    """How an equilibrium is solved for.

    Attributes:
        method: see the module; `anderson` and `broyden` are root finders for comparison (`rootfinding`).
        alpha: step length; Peaceman-Rachford converges for every one, forward-backward below 2 m / |I - W|^2.
        rtol: largest relative change of an iteration, |z' - z| / (1e-6 + |z'|), at which it stops.
        max_iterations: iterations at most.
        per_example: each example stops on its own and leaves the batch; otherwise one norm over the batch decides,
            as in the paper, and the result depends (within rtol) on what else is in the batch.
    """

    method: Method = "peaceman_rachford"
    alpha: float = 1.0
    rtol: float = 1e-2
    max_iterations: int = 300
    per_example: bool = False


@dataclass
class Solution:
    """Where an iteration ended.

    Attributes:
        z: the last iterate, a tensor a tier.
        iterations: how many, (B,) int64 (all equal unless `per_example`).
        change: the last relative change, (B,), summed over tiers.
        converged: (B,) bool; never where the iterate is not finite.
    """

    z: State
    iterations: Tensor
    change: Tensor
    converged: Tensor


Watch = Callable[[State], bool]
"""Sees each iterate (its buffers are used again: copy what is kept); true ends the iteration."""


def solve(
    operator: LinearOperator,
    bias: State,
    activation: Activation | Activations,
    settings: Splitting,
    *,
    resolvent: Resolvent | None = None,
    start: State | None = None,
    watch: Watch | None = None,
) -> Solution:
    """The equilibrium z = sigma(W z + b), without gradients.

    Args:
        bias: b, a tensor (B, ...) a tier.
        activation: of all tiers, or one a tier.
        resolvent: of `operator` at `settings.alpha`, if it is at hand.
        start: an initial guess; zero otherwise.
        watch: sees each iterate; of the examples still at work, where they stop on their own.
    """
    alpha, tiers = settings.alpha, each_tier(activation, len(bias))
    with torch.no_grad():
        bias = _map(batch_last, bias)
        z = _map(torch.empty_like, bias) if start is None else _map(lambda z: batch_last(z).clone(), start)
        if settings.method == "peaceman_rachford":
            resolvent = resolvent or operator.factorize(alpha)
            # c0 = 2 alpha V b = alpha (C b + b)
            constant = _map(lambda c, b: c.add_(b).mul_(alpha), resolvent.cayley(bias), bias)

            def reflect(tier: Activation, moved: Tensor, z: Tensor, c0: Tensor) -> tuple[Tensor, Tensor]:
                u = moved + c0
                z = tier.prox(u, alpha)
                return z, torch.sub(z, u).add_(z)

            if start is not None:  # the reflection of the u that is the fixed point where z is the solution
                z0 = operator.apply(z)
                start = _map(lambda z, w, b: z + alpha * (z - w - b), z, z0, bias)
            return _iterate(resolvent.cayley, reflect, tiers, z, start, (constant,), settings, watch)
        if settings.method in ("anderson", "broyden"):
            linear, start = operator.fixed(), _map(torch.zeros_like, bias) if start is None else z
            return _root(lambda z: _map(lambda t, w, b: t(w + b), tiers, linear(z), bias), start, settings)
        length = alpha if settings.method == "forward_backward" else 1.0

        def forward(tier: Activation, moved: Tensor, z: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
            z = tier.prox(moved.add(b).mul_(length).add_(z, alpha=1 - length), length)
            return z, z

        return _iterate(operator.fixed(), forward, tiers, z, start, (bias,), settings, watch)


def solve_adjoint(
    operator: LinearOperator,
    gradient: State,
    slope: State,
    settings: Splitting,
    *,
    resolvent: Resolvent | None = None,
) -> Solution:
    """y = J (W^T y + g), the gradient of a loss with respect to b: its z is y.

    Args:
        gradient: g, the loss's gradient at the equilibrium, a tensor (B, ...) a tier.
        slope: J, the activation's derivative at the equilibrium, a tensor a tier.
    """
    alpha = settings.alpha
    with torch.no_grad():
        data = _map(batch_last, gradient), _map(batch_last, slope)
        y = _map(torch.empty_like, data[0])
        plain = each_tier(relu, len(y))  # the proximal step is that of the slope
        if settings.method == "peaceman_rachford":
            cayley = (resolvent or operator.factorize(alpha)).cayley

            def reflect(_: Activation, u: Tensor, y: Tensor, g: Tensor, j: Tensor) -> tuple[Tensor, Tensor]:
                y = backward_prox(torch.add(u, g, alpha=alpha), j, alpha)
                return y, torch.sub(y, u).add_(y)

            return _iterate(_transposed(cayley), reflect, plain, y, None, data, settings, None)
        if settings.method in ("anderson", "broyden"):
            linear = _transposed(operator.fixed())
            start = _map(torch.zeros_like, y)
            return _root(lambda y: _map(lambda w, g, j: j * (w + g), linear(y), *data), start, settings)
        length = alpha if settings.method == "forward_backward" else 1.0

        def forward(_: Activation, moved: Tensor, y: Tensor, g: Tensor, j: Tensor) -> tuple[Tensor, Tensor]:
            y = backward_prox(moved.add(g).mul_(length).add_(y, alpha=1 - length), j, length)
            return y, y

        return _iterate(_transposed(operator.fixed()), forward, plain, y, None, data, settings, None)


def residual(
    operator: LinearOperator | LinearMap, z: State, bias: State, activation: Activation | Activations
) -> Tensor:
    """|z - sigma(W z + b)| / |z| an example, (B,), summed over tiers: how far z is from an equilibrium.

    Args:
        operator: W, or the map that its `fixed` gave.
    """
    moved = operator.apply(z) if hasattr(operator, "apply") else operator(z)
    following = _map(lambda tier, w, b: tier(w + b), each_tier(activation, len(z)), moved, bias)

    def one(a: Tensor, b: Tensor) -> Tensor:
        return _squares(a - b).sqrt() / (1e-6 + _squares(b).sqrt())

    return torch.stack(_map(one, z, following)).sum(0)


def _transposed(linear: LinearMap) -> LinearMap:
    return lambda u, transpose=False, out=None: linear(u, not transpose, out)


def _root(function: Callable[[State], State], start: State, settings: Splitting) -> Solution:
    """By a root finder: its `change` is the residual, and its iterate that of the smallest one."""
    method = settings.method
    solver = FixedPointSolver(
        method, settings.max_iterations, settings.rtol, memory=MEMORY[method], per_example=settings.per_example
    )
    z, found = find_root(function, start, solver)
    return Solution(_map(batch_last, z), found.iterations, found.residual, found.converged)


Local = Callable[..., tuple[Tensor, Tensor]]
"""(activation, moved, z, *data) -> (next z, what the linear map takes next), elementwise."""


def _iterate(
    linear: LinearMap,
    local: Local,
    tiers: Activations,
    z: State,
    start: State | None,
    data: tuple[State, ...],
    settings: Splitting,
    watch: Watch | None,
) -> Solution:
    """Apply `linear`, then `local`, until the iterates settle.

    Args:
        z: the first iterate, whose buffers are used; only buffers, if `start` is None and it is zero.
        start: what `linear` takes first; None if that is zero.
    """
    # What is zero is a number first, and memory once it has been written.
    moved, before = (_map(_zero, z), _map(_zero, z)) if start is None else (linear(start), z)
    parts = [_parts(*tier) for tier in zip(tiers, z, strict=True)]
    stop, measure = (_Apart(z, settings), _squares) if settings.per_example else (_Together(z, settings), _square)
    for iteration in range(1, settings.max_iterations + 1):
        into = _map(torch.empty_like, z) if start is None and iteration == 1 else moved
        squares = [_step(local, measure, *tier) for tier in zip(parts, z, into, before, moved, *data, strict=True)]
        seen = watch is not None and watch(z)
        if stop.after(iteration, squares, z) or seen or iteration == settings.max_iterations:
            break
        if (stays := stop.shrink()) is not None:
            z, into, *data = (_pick(state, stays) for state in (z, into, *data))
        before, moved = z, linear(into, out=into)
    return stop.solution(z)


Parts = list[tuple[tuple[slice, ...], Activation]]


def _parts(activation: Activation, z: Tensor) -> Parts:
    """Slices of a tier that fit a processor's cache, so that all elementwise operations cost one pass over memory."""
    rows = z.shape[2] if z.ndim == 4 and z.device.type == "cpu" else 1
    count = min(rows, math.ceil(z.numel() * z.element_size() / 2**20))
    if count <= 1:
        return [((), activation)]
    size = math.ceil(rows / count)
    spans = [(low, min(low + size, rows)) for low in range(0, rows, size)]
    return [((slice(None), slice(None), slice(*span)), activation.rows(*span)) for span in spans]


def _step(
    local: Local,
    measure: Callable[[Tensor], Tensor],
    parts: Parts,
    z: Tensor,
    into: Tensor,
    before: Tensor,
    moved: Tensor,
    *data: Tensor,
) -> tuple[Tensor, Tensor]:
    """One iteration of a tier, written into `z` and `into`; the squares of its change and of itself."""
    changes, sizes = [], []
    for part, activation in parts:
        after, following = local(activation, *(tensor[part] for tensor in (moved, before, *data)))
        changes.append(measure(after - before[part]))
        sizes.append(measure(after))
        z[part] = after
        into[part] = following
    return (changes[0], sizes[0]) if len(parts) == 1 else (sum(changes), sum(sizes))


def _zero(tensor: Tensor) -> Tensor:
    return tensor.new_zeros(()).expand(tensor.shape)


Squares = list[tuple[Tensor, Tensor]]


def _relative(squares: Squares) -> Tensor:
    return sum(change.sqrt() / (1e-6 + size.sqrt()) for change, size in squares)


class _Together:
    """One norm over the whole batch decides."""

    def __init__(self, z: State, settings: Splitting):
        self.rtol = settings.rtol

    def after(self, iteration: int, squares: Squares, z: State) -> bool:
        self.iterations = iteration
        # The only wait for the device in an iteration.
        self.change = float(_relative(squares))
        return not self.change > self.rtol  # NaN ends it as well

    def shrink(self) -> None:
        return None

    def solution(self, z: State) -> Solution:
        (batch, device), settled = (len(z[0]), z[0].device), self.change <= self.rtol
        return Solution(
            z,
            torch.full((batch,), self.iterations, device=device),
            torch.full((batch,), self.change, dtype=z[0].dtype, device=device),
            torch.full((batch,), settled, device=device),
        )


class _Apart:
    """Each example stops on its own; finished ones leave the batch once they are a quarter of it."""

    def __init__(self, z: State, settings: Splitting):
        batch, device, self.rtol = len(z[0]), z[0].device, settings.rtol
        self.final = _map(torch.empty_like, z)
        self.iterations = torch.zeros(batch, dtype=torch.int64, device=device)
        self.change = torch.full((batch,), torch.inf, dtype=z[0].dtype, device=device)
        self.rows = torch.arange(batch, device=device)
        self.works = torch.ones(batch, dtype=torch.bool, device=device)  # of `rows`

    def after(self, iteration: int, squares: Squares, z: State) -> bool:
        relative = _relative(squares)
        rows = self.rows[self.works]
        self.iterations[rows], self.change[rows] = iteration, relative[self.works]
        settled = self.works & (relative <= self.rtol)
        if settled.any():
            self._write(settled, z)
            self.works &= ~settled
        return not self.works.any()

    def shrink(self) -> Tensor | None:
        """The rows that go on, where it pays to leave the others behind."""
        stays = self.works.nonzero()[:, 0]
        if len(stays) > 0.75 * len(self.rows):
            return None
        self.rows, self.works = self.rows[stays], self.works[stays]
        return stays

    def solution(self, z: State) -> Solution:
        if self.works.any():
            self._write(self.works, z)
        return Solution(self.final, self.iterations, self.change, self.change <= self.rtol)

    def _write(self, which: Tensor, z: State) -> None:
        index = which.nonzero()[:, 0]
        for tier, value in zip(self.final, z, strict=True):
            tier.index_copy_(0, self.rows[index], value.index_select(0, index))


def _pick(state: State, index: Tensor) -> State:
    return tuple(batch_last(tensor.index_select(0, index)) for tensor in state)


def _map(function: Callable[..., Tensor], *states: State) -> State:
    return tuple(function(*tensors) for tensors in zip(*states, strict=True))


def _square(tensor: Tensor) -> Tensor:
    """The sum of all squares."""
    return torch.linalg.vector_norm(tensor).square()


def _squares(tensor: Tensor) -> Tensor:
    """The sum of squares an example, (B,)."""
    return tensor.square().sum(tuple(range(1, tensor.ndim)))
