"""Scalar networks that return their rise above the origin and their gradient in one pass.

The gradient is written out, and so is the derivative of both outputs: training a model that contains the gradient
of V then costs one ordinary backward pass instead of a differentiation through autograd's own graph.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from robustrun.methods.lyapunov.activations import Activation, LeakyRelu, SmoothRelu


class Weights(NamedTuple):
    """What a network needs to be evaluated, computed from its parameters once for a whole roll-out.

    With hidden layers of h_1 ... h_k units and states of n dimensions: `inputs` are k + 1 matrices (h_i, n), the
    last one (1, n), from the state to each layer; `couplings` are k matrices (h_{i+1}, h_i) between successive
    layers; `references` are the k pre-activations (h_i,) at the origin.
    """

    inputs: tuple[Tensor, ...]
    couplings: tuple[Tensor, ...]
    references: tuple[Tensor, ...]
    value_at_zero: Tensor
    gradient_at_zero: Tensor


def _climb(
    activation: Activation,
    x: Tensor,
    inputs: Sequence[Tensor],
    couplings: Sequence[Tensor],
    references: Sequence[Tensor],
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """g(x) - g(0), and of every hidden layer the rise above its value at the origin and the slopes, (B, h_i)."""
    rises, slopes = [], []
    for i, reference in enumerate(references):
        delta = x @ inputs[i].T
        if i:
            delta = torch.addmm(delta, rises[-1], couplings[i - 1].T)
        rise, slope = activation.difference(reference, delta)
        rises.append(rise)
        slopes.append(slope)
    return (x @ inputs[-1].T + rises[-1] @ couplings[-1].T).squeeze(1), rises, slopes


def _evaluate(activation: Activation, x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
    """g(x) - g(0), the gradient of g, and what the derivative of the two needs."""
    depth = (len(weights) - 1) // 3
    inputs, couplings, references = weights[: depth + 1], weights[depth + 1 : -depth], weights[-depth:]
    total, rises, slopes = _climb(activation, x, inputs, couplings, references)
    upstream = couplings[-1].expand(len(x), -1)  # derivative of g by the layer's activations
    gradient, upstreams, passed = inputs[-1].expand(len(x), -1), [], []
    for i in reversed(range(depth)):
        upstreams.append(upstream)
        weighted = upstream * slopes[i]
        passed.append(weighted)
        gradient = torch.addmm(gradient, weighted, inputs[i])
        if i:
            upstream = weighted @ couplings[i - 1]
    return total, gradient, *rises, *slopes, *passed, *upstreams[1:]


class _RiseAndGradient(torch.autograd.Function):
    """g(x) - g(0) and the gradient of g, with the derivative of the pair in closed form."""

    generate_vmap_rule = True

    @staticmethod
    def forward(activation: Activation, x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        return _evaluate(activation, x, *weights)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        activation, x, *weights = inputs
        ctx.activation = activation
        ctx.mark_non_differentiable(*output[2:])
        ctx.save_for_backward(x, *weights, *output[2:])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_total: Tensor, d_gradient: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        # The saved tensors are x, then k + 1 inputs, k couplings, k references, k rises, k slopes, k of what is passed
        # on, top layer first, and as many upstreams but for the top layer's.
        saved = ctx.saved_tensors
        depth = (len(saved) - 1) // 7
        x, inputs, couplings = saved[0], saved[1 : depth + 2], saved[depth + 2 : 2 * depth + 2]
        references = saved[2 * depth + 2 : 3 * depth + 2]
        rises, slopes = saved[3 * depth + 2 : 4 * depth + 2], saved[4 * depth + 2 : 5 * depth + 2]
        passed = saved[6 * depth + 1 : 5 * depth + 1 : -1]
        upstreams = (*reversed(saved[6 * depth + 2 :]), couplings[-1])
        activation = ctx.activation
        d_inputs: list[Tensor] = [None] * (depth + 1)  # type: ignore[list-item]
        d_couplings: list[Tensor] = [None] * depth  # type: ignore[list-item]
        d_references: list[Tensor] = [None] * depth  # type: ignore[list-item]

        # Down the gradient's own computation, from the layer next to the state to the top one.
        d_slopes, d_weighted = [], None
        for i in range(depth):
            carried = d_gradient @ inputs[i].T
            if i:
                carried = torch.addmm(carried, d_weighted, couplings[i - 1].T)
                d_couplings[i - 1] = passed[i].T @ d_weighted
            d_inputs[i] = passed[i].T @ d_gradient
            d_slopes.append(carried * upstreams[i])
            d_weighted = carried * slopes[i]
        column = d_total.unsqueeze(1)
        d_couplings[-1] = torch.addcmul(d_weighted, column, rises[-1]).sum(0, keepdim=True)
        d_inputs[-1] = torch.addcmul(d_gradient, column, x).sum(0, keepdim=True)

        # Down the value's computation, from the top layer to the state.
        d_x = column * inputs[-1] if ctx.needs_input_grad[1] else None
        d_rise = column * couplings[-1]
        for i in reversed(range(depth)):
            d_delta, bend = d_rise * slopes[i], activation.bend(d_slopes[i], slopes[i])
            if bend is not None:
                d_delta.add_(bend)
            # s(r + t) - s(r) changes with r by s'(r + t) - s'(r), and the slope s'(r + t) as it does with t.
            d_references[i] = d_delta.sum(0) - activation.slope(references[i]) * d_rise.sum(0)
            d_inputs[i] = torch.addmm(d_inputs[i], d_delta.T, x)
            if d_x is not None:
                d_x = torch.addmm(d_x, d_delta, inputs[i])
            if i:
                d_couplings[i - 1] = torch.addmm(d_couplings[i - 1], d_delta.T, rises[i - 1])
                d_rise = d_delta @ couplings[i - 1]
        return None, d_x, *d_inputs, *d_couplings, *d_references


class RiseNetwork(nn.Module):
    """A scalar network g evaluated as (g(x) - g(0), gradient of g at x); both vanish at x = 0 up to g's own slope.

    `convex` says whether g is convex by construction.
    """

    convex: bool
    activation: Activation

    def weights(self) -> Weights:
        """The parameters in the form that `forward` needs; differentiable by the parameters."""
        raise NotImplementedError

    def forward(self, x: Tensor, weights: Weights | None = None) -> tuple[Tensor, Tensor]:
        """x (B, n) -> g(x) - g(0) of shape (B,) and the gradient of g, (B, n)."""
        weights = self.weights() if weights is None else weights
        # Without gradients the bookkeeping of an autograd function would only cost time, and stop the compiler.
        evaluate = _RiseAndGradient.apply if torch.is_grad_enabled() else _evaluate
        return evaluate(self.activation, x, *weights.inputs, *weights.couplings, *weights.references)[:2]

    def rise(self, x: Tensor, weights: Weights | None = None) -> Tensor:
        """g(x) - g(0) alone, (B,): half the work."""
        weights = self.weights() if weights is None else weights
        return _climb(self.activation, x, weights.inputs, weights.couplings, weights.references)[0]

    def value_at_zero(self) -> Tensor:
        """g(0), which cancels from `forward`."""
        return self.weights().value_at_zero

    def lipschitz_bound(self) -> Tensor:
        """A bound on the Euclidean norm of the gradient of g: slopes are at most 1, so norms add and multiply."""
        weights = self.weights()
        bound = torch.linalg.matrix_norm(weights.inputs[0], 2)
        for direct, coupling in zip(weights.inputs[1:], weights.couplings, strict=True):
            bound = torch.linalg.matrix_norm(direct, 2) + torch.linalg.matrix_norm(coupling, 2) * bound
        return bound

    def _weights(self, inputs: Sequence[Tensor], couplings: Sequence[Tensor], biases: Sequence[Tensor]) -> Weights:
        """Complete the weights by a pass at the origin (`biases` of each layer, the output's last)."""
        references, at_zero = [biases[0]], self.activation(biases[0])
        for bias, coupling in zip(biases[1:-1], couplings[:-1], strict=True):
            references.append(bias + coupling @ at_zero)
            at_zero = self.activation(references[-1])
        value = biases[-1] + couplings[-1] @ at_zero

        upstream, gradient = couplings[-1].squeeze(0), inputs[-1].squeeze(0)
        for i in reversed(range(len(references))):
            upstream = upstream * self.activation.slope(references[i])
            gradient = gradient + upstream @ inputs[i]
            if i:
                upstream = upstream @ couplings[i - 1]
        return Weights(tuple(inputs), tuple(couplings), tuple(references), value.squeeze(0), gradient)


class ConvexNetwork(RiseNetwork):
    """An input-convex network: z_1 = s(W_0 x + b_0), z_{i+1} = s(W_i x + b_i + P_i z_i), g = W_k x + b_k + P_k z_k.

    P_i = scale_i * softplus(U_i) >= 0 and s convex and nondecreasing make g convex. The scale defaults to one over
    the number of units that the coupling leads to (1 for the output), which keeps g of order one.

    Source: Amos, Xu and Kolter (2017), equation (2); the parametrisation is Manek and Kolter's (2019).

    Raises:
        ValueError: there is no dimension or hidden layer, or the scales are negative or too few.
    """

    convex = True

    def __init__(
        self,
        dimension: int,
        hidden: Sequence[int] = (60, 60),
        activation: Activation | None = None,
        *,
        bias: bool = True,
        scales: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        if not hidden or dimension < 1 or min(hidden) < 1:
            raise ValueError("an input-convex network needs at least one state dimension and one hidden layer")
        self.activation = activation if activation is not None else SmoothRelu()
        self.hidden = tuple(hidden)
        self.scales = tuple(scales) if scales is not None else tuple(1.0 / h for h in (*hidden[1:], 1))
        if len(self.scales) != len(hidden) or min(self.scales) < 0:
            raise ValueError(f"one scale >= 0 is needed for each of the {len(hidden)} couplings")
        # All layers see the state through one linear map: rows of layer 1, then 2, ..., then the output's.
        self.passthrough = nn.Linear(dimension, sum(hidden) + 1, bias=bias)
        self.couplings = nn.ParameterList(
            torch.empty(rows, columns).uniform_(-1, 1) / math.sqrt(columns)
            for columns, rows in zip(hidden, (*hidden[1:], 1), strict=True)
        )

    def weights(self) -> Weights:
        sizes = (*self.hidden, 1)
        inputs = self.passthrough.weight.split(sizes)
        bias = self.passthrough.bias
        if bias is None:
            bias = inputs[0].new_zeros(sum(sizes))
        couplings = [scale * F.softplus(u) for scale, u in zip(self.scales, self.couplings, strict=True)]
        return self._weights(inputs, couplings, bias.split(sizes))


class PlainNetwork(RiseNetwork):
    """An ordinary ReLU network with a smoothed ReLU at its output: not convex, kept for comparison."""

    convex = False

    def __init__(self, dimension: int, hidden: Sequence[int] = (60, 60), output_width: float = 1.0) -> None:
        super().__init__()
        self.activation = LeakyRelu(0.0)
        self.output = SmoothRelu(output_width)
        self.layers = nn.ModuleList(
            nn.Linear(columns, rows) for columns, rows in zip((dimension, *hidden), (*hidden, 1), strict=True)
        )

    def weights(self) -> Weights:
        first, *rest = self.layers
        inputs = [first.weight, *(first.weight.new_zeros(layer.out_features, first.in_features) for layer in rest)]
        return self._weights(inputs, [layer.weight for layer in rest], [layer.bias for layer in self.layers])

    def forward(self, x: Tensor, weights: Weights | None = None) -> tuple[Tensor, Tensor]:
        weights = self.weights() if weights is None else weights
        rise, gradient = super().forward(x, weights)
        rise, slope = self.output.difference(weights.value_at_zero, rise)
        return rise, slope.unsqueeze(1) * gradient

    def rise(self, x: Tensor, weights: Weights | None = None) -> Tensor:
        weights = self.weights() if weights is None else weights
        return self.output.difference(weights.value_at_zero, super().rise(x, weights))[0]

    def value_at_zero(self) -> Tensor:
        return self.output(self.weights().value_at_zero)
