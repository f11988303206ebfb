r"""Gradients of an equilibrium by the implicit function theorem, with memory that does not grow with iterations.

For z = sigma(W z + b) and a loss l(z), y = J (W^T y + dl/dz) is dl/db, and dl/dtheta = d/dtheta <y, W(theta) z> with y
and z held fixed. Source: Winston and Kolter (arXiv 2006.08591), theorem 3.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from robustrun.methods.equilibrium.activations import Activation, Activations, each_tier, relu
from robustrun.methods.equilibrium.splitting import Resolvent, Solution, Splitting, State, solve, solve_adjoint


@dataclass
class Statistics:
    """What the last solves took: one number each for the forward and the backward pass."""

    forward: Solution | None = None
    backward: Solution | None = None


class _Equilibrium(torch.autograd.Function):
    @staticmethod
    def forward(ctx, layer: "MonotoneLayer", tiers: int, *tensors: Tensor) -> State:
        bias = tensors[:tiers]
        resolvent = layer.resolvent() if layer.settings.method == "peaceman_rachford" else None
        solution = solve(layer.operator, bias, layer.activation, layer.settings, resolvent=resolvent)
        layer.statistics.forward = solution
        ctx.layer, ctx.resolvent = layer, resolvent
        ctx.needs_weights = any(ctx.needs_input_grad[2 + tiers :])
        ctx.save_for_backward(*solution.z)
        return solution.z

    @staticmethod
    @once_differentiable
    def backward(ctx, *gradient: Tensor) -> tuple:
        # A saved output comes back with this node as its history: differentiating through it would come here again.
        layer, z = ctx.layer, tuple(tier.detach() for tier in ctx.saved_tensors)
        tiers = each_tier(layer.activation, len(z))
        slope = tuple(activation.slope(tier) for activation, tier in zip(tiers, z, strict=True))
        solution = solve_adjoint(layer.operator, gradient, slope, layer.settings, resolvent=ctx.resolvent)
        layer.statistics.backward = solution
        weights = [p for p in layer.operator.parameters() if p.requires_grad]
        found: dict[int, Tensor | None] = {}
        if ctx.needs_weights and weights:
            with torch.enable_grad():
                inner = layer.operator.inner(solution.z, z)
            gradients = torch.autograd.grad(inner, weights, allow_unused=True)
            found = {id(p): g for p, g in zip(weights, gradients, strict=True)}
        return None, None, *solution.z, *(found.get(id(p)) for p in layer.operator.parameters())


class MonotoneLayer(nn.Module):
    """x -> z with z = sigma(W z + U x), W monotone: exactly one z for every x, and a solver that finds it.

    Three lines put one into any network:

        layer = MonotoneLinear(784, 87)
        z = layer(images.flatten(1))
        logits = readout(z)

    Args:
        injection: U, from the input to the bias: a tensor, or a tuple of one a tier.
        operator: W (`DenseMonotone`, `CircularMonotone`, ...).
        activation: a proximal operator (`activations`), of all tiers or one a tier.
        settings: how to solve. Forward and backward pass use the same.

    Raises (in the forward pass):
        FloatingPointError: an iterate is not finite, as when forward-backward takes too long steps.
    """

    def __init__(
        self,
        injection: nn.Module,
        operator: nn.Module,
        activation: Activation | Activations = relu,
        settings: Splitting = Splitting(),  # noqa: B008
    ):
        super().__init__()
        self.injection, self.operator = injection, operator
        self.activation, self.settings = activation, settings
        self.statistics = Statistics()
        self._cached: tuple[list, Resolvent] | None = None

    def bias(self, x: Tensor) -> State:
        """U x, a tuple of one tensor a tier."""
        injected = self.injection(x)
        return injected if isinstance(injected, tuple) else (injected,)

    def resolvent(self) -> Resolvent:
        """The factorisation for the present weights and alpha; kept while the layer is in evaluation mode."""
        with torch.no_grad():
            if self.training:  # the weights change at every step
                return self.operator.factorize(self.settings.alpha)
            weights = [self.settings.alpha, *self.operator.parameters()]
            if self._cached is None or not _same(self._cached[0], weights):
                kept = [self.settings.alpha, *(p.detach().clone() for p in weights[1:])]
                self._cached = kept, self.operator.factorize(self.settings.alpha)
        return self._cached[1]

    def equilibrium(self, x: Tensor) -> State:
        """All tiers of z.

        Raises:
            FloatingPointError: the solver left the finite numbers.
        """
        bias = self.bias(x)
        z = _Equilibrium.apply(self, len(bias), *bias, *self.operator.parameters())
        if not self.statistics.forward.change.isfinite().all():
            raise FloatingPointError(
                f"{self.settings.method} with alpha = {self.settings.alpha} diverged: use peaceman_rachford, "
                "which converges for every alpha, or a smaller step"
            )
        return z

    def forward(self, x: Tensor) -> Tensor:
        return self.equilibrium(x)[-1]

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_cached": None, "statistics": Statistics()}


def _same(kept: list, weights: list) -> bool:
    """Whether alpha and all weights are as they were. By value: fused optimisers do not count versions up."""
    return kept[0] == weights[0] and all(
        a.dtype == b.dtype and a.device == b.device and torch.equal(a, b)
        for a, b in zip(kept[1:], weights[1:], strict=True)
    )


@torch.no_grad()
def tune_alpha(layer: MonotoneLayer, x: Tensor, *, start: float = 1.0, floor: float = 1e-4) -> float:
    """The last of 1, 1/2, 1/4, ... that does not need more iterations than the one before, on a batch (B, ...).

    Sets and returns it; where even `start` does not converge, alpha stays as it was. Source: arXiv 2006.08591, E.
    """
    bias, before = layer.bias(x), layer.settings

    def count(alpha: float) -> int:
        settings = replace(before, alpha=alpha)
        solution = solve(layer.operator, bias, layer.activation, settings)
        # A solve that leaves the finite numbers ends early, but found nothing.
        return int(solution.iterations.max()) if solution.converged.all() else before.max_iterations

    alpha, least = start, count(start)
    if least >= before.max_iterations:
        return before.alpha
    while alpha / 2 > floor and (iterations := count(alpha / 2)) <= least:
        alpha, least = alpha / 2, iterations
    layer.settings = replace(before, alpha=alpha)
    return alpha
