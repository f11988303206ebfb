r"""Operator splitting for monotone equilibrium problems: z = sigma(W z + b) with I - W strongly monotone.

Peaceman-Rachford in its Cayley form needs one application of C = 2 (I + alpha (I - W))^{-1} - I an iteration and none
of W; forward-backward needs one of W; Picard is the plain iteration, which may diverge. The backward pass is a linear
problem of the same kind that reuses the factorisation. Source: Winston and Kolter (arXiv 2006.08591), section 3.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from torch import Tensor

from robustrun.methods.equilibrium.activations import Activation, backward_prox

State = tuple[Tensor, ...]
"""One tensor (B, ...) a tier."""

Method = Literal["peaceman_rachford", "forward_backward", "picard"]


class Resolvent(Protocol):
    """(I + alpha (I - W))^{-1} =: V for one alpha, factorised."""

    alpha: float

    def cayley(self, u: State, transpose: bool = False) -> State:
        """(2V - I) u, or its transpose."""
        ...


class LinearOperator(Protocol):
    """W, with I - W strongly monotone."""

    def apply(self, z: State, transpose: bool = False) -> State:
        """W z, or W^T z."""
        ...

    def factorize(self, alpha: float) -> Resolvent:
        """The resolvent for one alpha; costs an inverse."""
        ...


@dataclass(frozen=True)
class Splitting:
    """How an equilibrium is solved for.

    Attributes:
        method: see the module.
        alpha: step length; Peaceman-Rachford converges for every one, forward-backward below 2 m / |I - W|^2.
        tol: largest relative change of an iteration, |z' - z| / (1e-6 + |z'|), at which it stops.
        max_iter: iterations at most.
        per_example: each example stops on its own and leaves the batch; otherwise one norm over the batch decides,
            as in the paper, and the result depends (within tol) on what else is in the batch.
    """

    method: Method = "peaceman_rachford"
    alpha: float = 1.0
    tol: float = 1e-2
    max_iter: int = 300
    per_example: bool = False


@dataclass
class Solution:
    """Where an iteration ended.

    Attributes:
        z: the last iterate, a tensor a tier.
        iterations: how many, (B,) int64 (all equal unless `per_example`).
        change: the last relative change, (B,), summed over tiers.
        converged: (B,) bool; never where the iterate is not finite.
        trace: the batch's relative change after each iteration, if it was asked for.
    """

    z: State
    iterations: Tensor
    change: Tensor
    converged: Tensor
    trace: list[float] = field(default_factory=list)


def solve(
    operator: LinearOperator,
    bias: State,
    activation: Activation,
    settings: Splitting,
    *,
    resolvent: Resolvent | None = None,
    start: State | None = None,
    trace: bool = False,
) -> Solution:
    """The equilibrium z = sigma(W z + b), without gradients.

    Args:
        bias: b, a tensor (B, ...) a tier.
        resolvent: of `operator` at `settings.alpha`, if it is at hand.
        start: an initial guess; zero otherwise.
        trace: record the change after each iteration (waits for the device each time).
    """
    alpha = settings.alpha
    with torch.no_grad():
        z = _zeros(bias) if start is None else start
        if settings.method == "peaceman_rachford":
            resolvent = resolvent or operator.factorize(alpha)
            # c0 = 2 alpha V b = alpha (C b + b)
            constant = _map(lambda c, b: alpha * (c + b), resolvent.cayley(bias), bias)

            def reflect(z: State, u: State | None, c0: State) -> tuple[State, State]:
                first = u is None  # z = u = 0
                u = c0 if first else _map(torch.add, resolvent.cayley(_map(lambda z, u: 2 * z - u, z, u)), c0)
                return _map(lambda v: activation.prox(v, alpha), u), u

            u = None if start is None else _dual(operator, start, bias, alpha)
            return _iterate(reflect, z, u, constant, settings, trace)
        length = alpha if settings.method == "forward_backward" else 1.0

        def forward(z: State, u: State | None, bias: State) -> tuple[State, None]:
            def one(z: Tensor, w: Tensor, b: Tensor) -> Tensor:
                return activation.prox((1 - length) * z + length * (w + b), length)

            return _map(one, z, operator.apply(z), bias), None

        return _iterate(forward, z, None, bias, settings, trace)


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
        gradient: g, the loss's gradient at the equilibrium, a tensor a tier.
        slope: J, the activation's derivative at the equilibrium, a tensor a tier.
    """
    alpha = settings.alpha
    pairs = tuple(torch.stack((g, j), 1) for g, j in zip(gradient, slope, strict=True))
    with torch.no_grad():
        if settings.method == "peaceman_rachford":
            resolvent = resolvent or operator.factorize(alpha)

            def reflect(y: State, u: State | None, aux: State) -> tuple[State, State]:
                if u is None:  # y = u = 0
                    u = _map(torch.zeros_like, y)
                else:
                    u = resolvent.cayley(_map(lambda y, u: 2 * y - u, y, u), transpose=True)
                return _map(lambda u, a: backward_prox(u + alpha * a[:, 0], a[:, 1], alpha), u, aux), u

            return _iterate(reflect, _zeros(gradient), None, pairs, settings, False)
        length = alpha if settings.method == "forward_backward" else 1.0

        def forward(y: State, u: State | None, aux: State) -> tuple[State, None]:
            moved = operator.apply(y, transpose=True)

            def one(y: Tensor, w: Tensor, a: Tensor) -> Tensor:
                return backward_prox((1 - length) * y + length * (w + a[:, 0]), a[:, 1], length)

            return _map(one, y, moved, aux), None

        return _iterate(forward, _zeros(gradient), None, pairs, settings, False)


def residual(operator: LinearOperator, z: State, bias: State, activation: Activation) -> Tensor:
    """|z - sigma(W z + b)| / |z| an example, (B,), summed over tiers: how far z is from an equilibrium."""
    following = _map(lambda w, b: activation(w + b), operator.apply(z), bias)
    return _change(z, following)


Step = Callable[[State, State | None, State], tuple[State, State | None]]
"""(z, u, data) -> (next z, next u); `data` are the problem's own tensors, cut to the examples still at work."""


def _dual(operator: LinearOperator, z: State, bias: State, alpha: float) -> State:
    """u = z - alpha ((I - W) z - b): at the solution this is the fixed point of the reflected iteration."""
    return _map(lambda z, w, b: z - alpha * (z - w - b), z, operator.apply(z), bias)


def _iterate(step: Step, z: State, u: State | None, data: State, settings: Splitting, trace: bool) -> Solution:
    run = _iterate_examples if settings.per_example else _iterate_batch
    return run(step, z, u, data, settings, trace)


def _iterate_batch(step: Step, z: State, u: State | None, data: State, settings: Splitting, trace: bool) -> Solution:
    """One norm over the whole batch decides."""
    recorded: list[float] = []
    value = torch.inf
    for iteration in range(1, settings.max_iter + 1):  # noqa: B007 - its last value is reported
        following, u = step(z, u, data)
        moved = sum(_norm(a - b) / (1e-6 + _norm(a)) for a, b in zip(following, z, strict=True))
        z, value = following, float(moved)  # the only wait for the device in an iteration
        if trace:
            recorded.append(value)
        if not value > settings.tol:  # NaN ends it as well
            break
    batch, device = len(z[0]), z[0].device
    return Solution(
        z,
        torch.full((batch,), iteration, device=device),
        torch.full((batch,), value, dtype=z[0].dtype, device=device),
        torch.full((batch,), value <= settings.tol, device=device),
        recorded,
    )


def _iterate_examples(step: Step, z: State, u: State | None, data: State, settings: Splitting, trace: bool) -> Solution:
    """Each example stops on its own; finished ones leave the batch, so they cost nothing more."""
    batch, device = len(z[0]), z[0].device
    final = _map(torch.clone, z)
    iterations = torch.zeros(batch, dtype=torch.int64, device=device)
    change = torch.full((batch,), torch.inf, dtype=z[0].dtype, device=device)
    rows = torch.arange(batch, device=device)
    recorded: list[float] = []
    for iteration in range(1, settings.max_iter + 1):
        following, u = step(z, u, data)
        moved = _change(following, z)
        z, iterations[rows], change[rows] = following, iteration, moved
        if trace:
            recorded.append(float(moved.max()))
        stays = (~(moved <= settings.tol)).nonzero()[:, 0]
        if len(stays) == len(rows):
            continue
        for tier, value in zip(final, z, strict=True):
            tier[rows] = value
        rows, z, u, data = rows[stays], _pick(z, stays), _pick(u, stays), _pick(data, stays)
        if not len(rows):
            break
    for tier, value in zip(final, z, strict=True):
        tier[rows] = value
    return Solution(final, iterations, change, change <= settings.tol, recorded)


def _pick(state: State | None, index: Tensor) -> State | None:
    return None if state is None else tuple(tensor[index] for tensor in state)


def _map(function: Callable[..., Tensor], *states: State) -> State:
    return tuple(function(*tensors) for tensors in zip(*states, strict=True))


def _zeros(state: State) -> State:
    return _map(torch.zeros_like, state)


def _norm(tensor: Tensor) -> Tensor:
    return torch.linalg.vector_norm(tensor)


def _change(following: State, z: State) -> Tensor:
    """Relative change an example, (B,), summed over tiers."""

    def one(a: Tensor, b: Tensor) -> Tensor:
        a, b = a.flatten(1), b.flatten(1)
        return torch.linalg.vector_norm(a - b, dim=1) / (1e-6 + torch.linalg.vector_norm(a, dim=1))

    return torch.stack(_map(one, following, z)).sum(0)
