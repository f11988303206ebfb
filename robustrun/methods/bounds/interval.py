"""Interval bounds (Gowal et al. 2018): a box is pushed through the network, node by node."""

from robustrun.methods.bounds.activations import ReLU
from robustrun.methods.bounds.network import Network, Node
from robustrun.methods.bounds.operators import Linear
from robustrun.methods.bounds.regions import Ball, Bounds, Region, linear_range


def push(net: Network, node: Node, boxes: dict[str, Bounds], region: Region) -> Bounds:
    """The box of `node`, given those of its inputs. A linear layer right on an l2 ball is bounded exactly."""
    on_input = isinstance(node.op, Linear) and node.inputs == (net.input.name,) and len(net.input.shape) == 1
    if isinstance(region, Ball) and on_input:
        value, deviation = linear_range(region, node.op.weight().unsqueeze(0))
        bias = node.op.bias()
        value = value if bias is None else value + bias
        return Bounds(value - deviation, value + deviation)
    return node.op.interval(*(boxes[name] for name in node.inputs))


def interval_boxes(net: Network, region: Region, *, outward: bool = True) -> dict[str, Bounds]:
    """Interval bounds of every node, by name, each of shape (batch, *shape of the node).

    `outward` widens them by what rounding can have lost, so that they hold for exact arithmetic; without it they
    are the plain formulas, which is what training needs. Differentiable in region and weights.
    """
    margins = net.margins(region) if outward else None
    boxes = {net.input.name: Bounds(region.lower, region.upper)}
    for node in net.nodes[1:]:
        box = push(net, node, boxes, region)
        # a ReLU computes no sum: it inherits the margin of what it is applied to
        boxes[node.name] = box.widen(margins[node.name]) if outward and not isinstance(node.op, ReLU) else box
    return boxes


def interval_bounds(net: Network, region: Region, *, outward: bool = True) -> Bounds:
    """Bounds (batch, *output) of the network's output over `region`; see `interval_boxes`."""
    return interval_boxes(net, region, outward=outward)[net.output.name]
