r"""Deep equilibrium layers: z = f(z, u; theta) solved by iteration and differentiated implicitly.

For z* = f(z*) and a loss l, dl/d(u, theta) = w^T df/d(u, theta) with w = (df/dz)^T w + dl/dz*: again a fixed point, a
linear one, solved by the same methods with products of vectors and one Jacobian, so that memory does not grow with
iterations. Sources: Bai, Kolter and Koltun (arXiv 1909.01377), Bai, Koltun and Kolter (arXiv 2006.08656), Geng et al.
(arXiv 2111.05177).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call

from robustrun.methods.equilibrium.fixed_point import FixedPoint, FixedPointSolver
from robustrun.methods.equilibrium.workspace import Workspace

Tensors = tuple[Tensor, ...]


@dataclass(frozen=True)
class Equation:
    """z = function(z, inputs, weights) for a batch of states z, (B, D).

    Everything that f depends on and gradients may be wanted for is given as a tensor, nothing lies in a closure.

    Attributes:
        function: f.
        inputs: what each example brings, (B, ...) each: its injection, its dropout mask.
        weights: what all examples share.
    """

    function: Callable[[Tensor, Tensors, Tensors], Tensor]
    inputs: Tensors = ()
    weights: Tensors = ()

    def __call__(self, z: Tensor) -> Tensor:
        return self.function(z, self.inputs, self.weights)

    def take(self, rows: Tensor) -> "Equation":
        """The equation of some of the examples."""
        return replace(self, inputs=tuple(tensor[rows] for tensor in self.inputs))

    @staticmethod
    def of(module: nn.Module, *inputs: Tensor) -> "Equation":
        """z = module(z, *inputs) for any module that keeps the shape of z."""
        names = [name for name, _ in module.named_parameters()]

        def function(z: Tensor, inputs: Tensors, weights: Tensors) -> Tensor:
            return functional_call(module, dict(zip(names, weights, strict=True)), (z, *inputs))

        return Equation(function, inputs, tuple(module.parameters()))


@dataclass(frozen=True)
class Gradient:
    """How an equilibrium is differentiated.

    `implicit` solves the linear fixed point. `phantom` goes back through `steps` damped applications of f, from the
    equilibrium on, z <- tau f(z) + (1 - tau) z: an approximation, exact as `steps` grows where that converges. One step
    without damping is the Jacobian-free gradient (arXiv 2103.12803).
    """

    name: Literal["implicit", "phantom"] = "implicit"
    steps: int = 5
    damping: float = 0.5


@dataclass
class SolverStatistics:
    """What the last solves took; `jacobian` is the last penalty, with its graph."""

    forward: FixedPoint | None = None
    backward: FixedPoint | None = None
    jacobian: Tensor | None = None


class DeepEquilibrium(nn.Module):
    """Equation -> its solution, (B, D), with gradients for the equation's inputs and weights; no parameters of its own.

        layer = DeepEquilibrium(FixedPointSolver("broyden", max_iterations=20))
        z = layer(Equation.of(cell, injection), torch.zeros_like(injection))

    The result is f at the iterate that the solver returns, in training and in evaluation mode alike, and gradients
    exist in both: an attack on a network in evaluation mode sees them.

    Args:
        forward_solver, backward_solver: how both fixed points are solved; the second as the first if None.
        gradient: see `Gradient`.
        unroll: if above 0, z is that many applications of f to the start, differentiated as any network is.
    """

    def __init__(
        self,
        forward_solver: FixedPointSolver = FixedPointSolver(),  # noqa: B008
        backward_solver: FixedPointSolver | None = None,
        gradient: Gradient = Gradient(),
        unroll: int = 0,
    ):
        super().__init__()
        self.forward_solver, self.backward_solver = forward_solver, backward_solver or forward_solver
        self.gradient, self.unroll = gradient, unroll
        self.probes = 0  # of the Jacobian penalty in a forward pass with gradients
        self.statistics = SolverStatistics()
        self.workspace = Workspace()

    def forward(self, equation: Equation, start: Tensor) -> Tensor:
        self.statistics = SolverStatistics()
        if self.unroll:
            return unrolled(equation, start, self.unroll)
        found = self.forward_solver.solve(equation, start, workspace=self.workspace)
        self.statistics.forward = found
        tensors = (*equation.inputs, *equation.weights)
        if not torch.is_grad_enabled() or not any(tensor.requires_grad for tensor in tensors):
            return equation(found.z)
        if self.probes:
            self.statistics.jacobian = jacobian_penalty(equation, found.z, self.probes)
        if self.gradient.name == "phantom":
            return unrolled(equation, found.z, self.gradient.steps, self.gradient.damping)
        return _Implicit.apply(self, equation.function, len(equation.inputs), found.z, *tensors)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "statistics": SolverStatistics()}


class _Implicit(torch.autograd.Function):
    """z* -> f(z*), taped once: the same graph serves the backward solve and the gradients of inputs and weights."""

    @staticmethod
    def forward(ctx, layer: DeepEquilibrium, function: Callable, inputs: int, z: Tensor, *tensors: Tensor) -> Tensor:
        with torch.enable_grad():
            leaves = tuple(tensor.detach().requires_grad_(tensor.requires_grad) for tensor in tensors)
            z = z.detach().requires_grad_()
            f = function(z, leaves[:inputs], leaves[inputs:])
        ctx.layer, ctx.tape = layer, (z, leaves, f)
        return f.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple:
        z, leaves, f = ctx.tape
        layer = ctx.layer
        found = layer.backward_solver.solve(
            _Adjoint(z, f, gradient), torch.zeros_like(gradient), workspace=layer.workspace
        )
        layer.statistics.backward = found
        wanted = [i for i, needed in enumerate(ctx.needs_input_grad[4:]) if needed]
        gradients = torch.autograd.grad(f, [leaves[i] for i in wanted], found.z, retain_graph=True, allow_unused=True)
        at = dict(zip(wanted, gradients, strict=True))
        return None, None, None, None, *(at.get(i) for i in range(len(leaves)))


class _Adjoint:
    """w -> J^T w + dl/dz*. At w = 0, where every solve starts, it is known."""

    def __init__(self, z: Tensor, f: Tensor, gradient: Tensor):
        self.z, self.f, self.gradient, self.begun = z, f, gradient, False

    def __call__(self, w: Tensor) -> Tensor:
        if not self.begun:
            self.begun = True
            return self.gradient
        (product,) = torch.autograd.grad(self.f, self.z, w, retain_graph=True)
        return product.add_(self.gradient)


def unrolled(equation: Equation, start: Tensor, steps: int, damping: float = 1.0) -> Tensor:
    """The weight-tied network of `steps` layers z <- tau f(z) + (1 - tau) z, with ordinary gradients."""
    z = start
    for _ in range(steps):
        f = equation(z)
        z = f if damping == 1.0 else torch.lerp(z, f, damping)
    return z


def jacobian_penalty(equation: Equation, z: Tensor, probes: int = 1) -> Tensor:
    """An unbiased estimate of |df/dz|_F^2 / D at z (B, D), the mean over the batch; it can be differentiated.

    Source: Bai, Koltun and Kolter, "Stabilizing equilibrium models by Jacobian regularization" (arXiv 2106.14342).
    """
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        f = equation(z)
        total = z.new_zeros(())
        for _ in range(probes):
            (product,) = torch.autograd.grad(f, z, torch.randn_like(f), create_graph=True)
            total = total + product.square().mean()
        return total / probes


def spectral_radius(equation: Equation, z: Tensor, iterations: int = 100, tail: int = 20) -> Tensor:
    """How the Jacobian's largest eigenvalues grow in size, (B,): the mean rate of the last `tail` power iterations.

    With a complex dominant pair the Rayleigh quotient oscillates; this geometric mean does not.
    """
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        f = equation(z)
    w = torch.randn_like(z)
    rates = []
    for _ in range(iterations):
        w = w / torch.linalg.vector_norm(w, dim=1, keepdim=True).clamp_min(1e-30)
        (w,) = torch.autograd.grad(f, z, w, retain_graph=True)
        rates.append(torch.linalg.vector_norm(w, dim=1))
    return torch.stack(rates[-tail:]).log().mean(0).exp()
