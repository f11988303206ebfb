"""Proofs over whole boxes in low dimensions, by branch and bound with CROWN and interval arithmetic.

The projection makes V decrease wherever its gradient is not zero, and a convex V guarantees that by itself. For
other V, and for fields that nothing constrains, a box is cut until every part is proved or the budget is spent.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from robustrun.methods.bounds import Bounds, Box, Network, Node, crown_bounds, layer_boxes, trace
from robustrun.methods.bounds.activations import ReLU, Smooth
from robustrun.methods.bounds.operators import Linear, Sum
from robustrun.methods.lyapunov.activations import Activation, LeakyRelu, SmoothRelu
from robustrun.methods.lyapunov.functions import WrappedLyapunov
from robustrun.methods.lyapunov.networks import PlainNetwork, Weights

_ROUNDING = 1e-12  # relative; sums here have a few hundred terms of float64 rounding 1e-16


class Coverage(NamedTuple):
    """How much of a box a property is proved on."""

    proved: float  # share of the volume outside the hole around the origin
    undecided: Box  # the parts that are left, (m, n)
    evaluated: int  # boxes looked at


def branch_and_bound(
    proves: Callable[[Box], Tensor], lower: Tensor, upper: Tensor, *, hole: float = 1e-2, budget: int = 200_000
) -> Coverage:
    """Cut the box [lower, upper] (n,) until `proves` (boxes (B, n) -> (B,) bool) holds on every part.

    Parts within `hole` of the origin in every coordinate are left out: at an equilibrium no strict property holds.
    All open parts are cut in half at once, along their longest side, until at most `budget` boxes were evaluated.
    """
    boxes, evaluated, proved = Box(lower.unsqueeze(0), upper.unsqueeze(0)), 0, 0.0
    extent = torch.minimum(upper, upper.new_tensor(hole)) - torch.maximum(lower, lower.new_tensor(-hole))
    volume = float((upper - lower).prod() - extent.clamp(min=0).prod())
    while len(boxes.lower) and evaluated + len(boxes.lower) <= budget:
        evaluated += len(boxes.lower)
        holds = proves(boxes)
        inside = ((boxes.lower >= -hole) & (boxes.upper <= hole)).all(1)
        proved += float(_volume_outside(boxes[holds & ~inside], hole).sum())
        boxes = _halves(boxes[~holds & ~inside])
    return Coverage(min(1.0, proved / volume), boxes, evaluated)


def _volume_outside(boxes: Box, hole: float) -> Tensor:
    overlap = (boxes.upper.clamp(max=hole) - boxes.lower.clamp(min=-hole)).clamp(min=0)
    return (boxes.upper - boxes.lower).prod(1) - overlap.prod(1)


def _halves(boxes: Box) -> Box:
    longest = (boxes.upper - boxes.lower).argmax(1, keepdim=True)
    middle = boxes.centre.gather(1, longest)
    low = Box(boxes.lower, boxes.upper.scatter(1, longest, middle))
    high = Box(boxes.lower.scatter(1, longest, middle), boxes.upper)
    return Box(torch.cat([low.lower, high.lower]), torch.cat([low.upper, high.upper]))


def only_equilibrium(lyapunov: WrappedLyapunov, lower: Tensor, upper: Tensor, **options: float) -> Coverage:
    """On how much of the box V is proved to have no stationary point, so that projected dynamics decrease it.

    Args:
        lyapunov: in float64; any network, convex or not, but no warp.
        lower, upper: (n,) float64.
        options: of `branch_and_bound`.
    """
    bounds = GradientBounds(lyapunov)

    def proves(boxes: Box) -> Tensor:
        _, gradient = bounds(boxes)
        return ((gradient.lower > 0) | (gradient.upper < 0)).any(1)

    return branch_and_bound(proves, lower, upper, **options)


def decreasing(
    field: nn.Module, lyapunov: WrappedLyapunov, alpha: float, lower: Tensor, upper: Tensor, **options: float
) -> Coverage:
    """On how much of the box an unconstrained field (traceable, float64) is proved to satisfy dV/dt <= -alpha V."""
    bounds, network = GradientBounds(lyapunov), trace(field, (len(lower),))

    def proves(boxes: Box) -> Tensor:
        value, gradient = bounds(boxes)
        velocity = crown_bounds(network, boxes)
        products = _product(gradient, velocity)
        rate = products.upper.sum(1) + alpha * value.upper
        size = torch.maximum(products.lower.abs(), products.upper.abs()).sum(1) + alpha * value.upper.abs()
        return rate + _ROUNDING * size < 0

    return branch_and_bound(proves, lower, upper, **options)


class GradientBounds:
    """Bounds of V (B,) and its gradient (B, n) over boxes: CROWN for the layers, intervals for the products."""

    def __init__(self, lyapunov: WrappedLyapunov) -> None:
        self.lyapunov = lyapunov
        with torch.no_grad():
            prepared = lyapunov.prepare()
            self.weights = prepared.network
            if lyapunov.centred:  # subtracting the tangent changes the output's direct weights alone
                *inputs, last = self.weights.inputs
                tilted = (*inputs, last - self.weights.gradient_at_zero)
                self.weights = self.weights._replace(inputs=tilted)
            tangent = self.weights.gradient_at_zero
            self.quadratic = lyapunov.epsilon * torch.eye(len(tangent), dtype=tangent.dtype, device=tangent.device)
            if prepared.quadratic is not None:
                self.quadratic = self.quadratic + prepared.quadratic
        self.network = _as_network(self.weights, lyapunov.network.activation)

    @torch.no_grad()
    def __call__(self, boxes: Box) -> tuple[Bounds, Bounds]:
        lyapunov, weights = self.lyapunov, self.weights
        layers = layer_boxes(self.network, boxes)
        rise = Bounds(*(side.squeeze(1) for side in layers["rise"]))
        gradient = self._network_gradient(layers)
        if isinstance(lyapunov.network, PlainNetwork):
            output, at_zero = lyapunov.network.output, weights.value_at_zero
            slope = Bounds(*(output.slope(at_zero + side).unsqueeze(1) for side in rise))
            gradient = _product(slope, gradient)
            rise = Bounds(*(output.difference(at_zero, side)[0] for side in rise))
        slope = Bounds(*(lyapunov.outer.slope(side).unsqueeze(1) for side in rise))
        radial = _linear(Bounds(boxes.lower, boxes.upper), 2 * self.quadratic)
        curved = _product(slope, gradient)
        gradient = _rounded(Bounds(curved.lower + radial.lower, curved.upper + radial.upper))
        size = torch.maximum(boxes.lower.abs(), boxes.upper.abs())
        bowl = ((size @ self.quadratic.abs()) * size).sum(1)  # at most this, and at least 0
        value = Bounds(lyapunov.outer(rise.lower), lyapunov.outer(rise.upper) + bowl)
        return _rounded(value), gradient

    def _network_gradient(self, layers: dict[str, Bounds]) -> Bounds:
        """Of the rise (tilted by the tangent, if V is centred), layer by layer from the top."""
        weights, activation = self.weights, self.lyapunov.network.activation
        depth = len(weights.references)
        count = len(layers["rise"].lower)
        upstream = Bounds(*(weights.couplings[-1].expand(count, -1),) * 2)
        gradient = Bounds(*(weights.inputs[-1].expand(count, -1),) * 2)
        for i in reversed(range(depth)):
            slope = Bounds(*(activation.slope(side) for side in layers[f"layer{i}"]))
            weighted = _product(upstream, slope)
            part = _linear(weighted, weights.inputs[i])
            gradient = Bounds(gradient.lower + part.lower, gradient.upper + part.upper)
            if i:
                upstream = _linear(weighted, weights.couplings[i - 1])
        return _rounded(gradient)


def _as_network(weights: Weights, activation: Activation) -> Network:
    """The rise g(x) - g(0) as a network: its pre-activations are the nodes layer0, layer1, ..., its output rise."""
    dimension = weights.inputs[0].shape[1]
    nodes = [Node("x", None, (), (dimension,))]
    previous = None
    for i, (matrix, bias) in enumerate(zip(weights.inputs, _biases(weights, activation), strict=True)):
        last = i == len(weights.inputs) - 1
        name, shape = "rise" if last else f"layer{i}", (len(matrix),)
        if previous is None:
            nodes.append(Node(name, _affine(matrix, bias), ("x",), shape))
        else:
            nodes.append(Node(f"direct{i}", _affine(matrix, bias), ("x",), shape))
            nodes.append(Node(f"coupled{i}", _affine(weights.couplings[i - 1], None), (previous,), shape))
            nodes.append(Node(name, Sum(1), (f"direct{i}", f"coupled{i}"), shape))
        if not last:
            previous = f"active{i}"
            nodes.append(Node(previous, _bounded(activation), (name,), shape))
    return Network(tuple(nodes))


def _biases(weights: Weights, activation: Activation) -> list[Tensor]:
    """Each layer's bias; the output's makes the network zero at the origin."""
    biases, at_zero = [weights.references[0]], activation(weights.references[0])
    for reference, coupling in zip(weights.references[1:], weights.couplings[:-1], strict=True):
        biases.append(reference - coupling @ at_zero)
        at_zero = activation(reference)
    biases.append(-(weights.couplings[-1] @ at_zero))
    return biases


def _affine(matrix: Tensor, bias: Tensor | None) -> Linear:
    return Linear(lambda: matrix, lambda: bias, matrix.shape[1])


def _bounded(activation: Activation) -> ReLU | Smooth:
    """The same activation as the bounds know it."""
    if isinstance(activation, LeakyRelu):
        return ReLU(activation.leak)
    if isinstance(activation, SmoothRelu):
        width = activation.width
        return Smooth("smooth_relu", activation, activation.slope, lambda slope: (slope * width,), "convex")
    raise TypeError(f"no bound is known for the activation {activation!r}")


def _linear(x: Bounds, matrix: Tensor) -> Bounds:
    """Bounds of x @ matrix for x (B, m), rounded outwards."""
    centre, radius = 0.5 * (x.lower + x.upper), 0.5 * (x.upper - x.lower)
    middle, size = centre @ matrix, matrix.abs()
    spread = radius @ size + _ROUNDING * ((centre.abs() + radius) @ size)
    return Bounds(middle - spread, middle + spread)


def _product(a: Bounds, b: Bounds) -> Bounds:
    """Bounds of the elementwise product."""
    corners = torch.stack([a.lower * b.lower, a.lower * b.upper, a.upper * b.lower, a.upper * b.upper])
    return _rounded(Bounds(corners.amin(0), corners.amax(0)))


def _rounded(x: Bounds) -> Bounds:
    return Bounds(x.lower - _ROUNDING * x.lower.abs(), x.upper + _ROUNDING * x.upper.abs())
