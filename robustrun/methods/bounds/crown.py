"""Bounds by linear relaxation: CROWN, its optimised form, and the convex-outer dual network.

One engine serves all of them; they differ in the lower line of an unstable ReLU.

    "dual"    the upper line's slope: the dual network of Wong and Kolter (2018), which the training of
              Wong et al. (2020) differentiates through
    "crown"   0 or 1, whichever leaves the smaller triangle (Zhang et al. 2018)
    alpha     any slope in [0, 1], optimised by gradient ascent (Xu et al. 2021)
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from robustrun.methods.bounds import second_layer
from robustrun.methods.bounds.activations import Lines, ReLU
from robustrun.methods.bounds.blocks import in_blocks
from robustrun.methods.bounds.interval import push
from robustrun.methods.bounds.linear import back_substitute, linear_bounds
from robustrun.methods.bounds.network import Network, Node
from robustrun.methods.bounds.operators import Conv2d, Linear
from robustrun.methods.bounds.regions import Bounds, Box, Region, linear_range

# numbers in one tensor of coefficients: rows are taken in groups that stay below
_COEFFICIENTS = 2**26


def layer_boxes(
    net: Network,
    region: Region,
    *,
    rule: str = "crown",
    intersect: bool = True,
    outward: bool = True,
    known: Mapping[str, Bounds] | None = None,
) -> dict[str, Bounds]:
    """Bounds of every node by name: pre-activations by back-substitution, the rest by interval steps from those.

    rule: the relaxation, "crown" or "dual". intersect: take the tighter of these and the interval bounds, and
    skip the units whose sign the intervals decide; without it the recursion is the papers', to the letter, and
    only pre-activations have bounds. outward: widen by the rounding margin. known: bounds of nodes, by name, that
    hold already and that the results are intersected with. Differentiable.
    """
    return _relax(net, region, rule, intersect, outward, known)[0]


def _relax(
    net: Network, region: Region, rule: str, intersect: bool, outward: bool, known: Mapping[str, Bounds] | None = None
) -> tuple[dict[str, Bounds], dict[str, Lines]]:
    """`layer_boxes`, and the lines of every activation on them."""
    margins = net.margins(region) if outward else None
    wanted = set(net.pre_activations)
    boxes = {net.input.name: Bounds(region.lower, region.upper)}
    lines: dict[str, Lines] = {}
    for node in net.nodes[1:]:
        refined = node.name in wanted and not _exact_by_interval(net, node, region)
        box = None
        if intersect or (node.name in wanted and not refined):
            box = push(net, node, boxes, region)
            if outward and not isinstance(node.op, ReLU):
                box = box.widen(margins[node.name])
            if known and node.name in known:
                box = box.intersect(known[node.name])
        if refined:
            margin = margins[node.name] if outward else None
            box = _refine(net, node, box, lines, region, margin)
        if node.is_activation:
            lines[node.name] = node.op.lines(boxes[node.inputs[0]], rule)
        if box is not None:
            boxes[node.name] = box
    return boxes, lines


def _exact_by_interval(net: Network, node: Node, region: Region) -> bool:
    return isinstance(region, Box) and isinstance(node.op, Linear | Conv2d) and node.inputs == (net.input.name,)


def _refine(
    net: Network, node: Node, box: Bounds | None, lines: dict[str, Lines], region: Region, margin: Tensor | None
) -> Bounds:
    """The bounds of a pre-activation by back-substitution, intersected with its `box` if it has one."""
    rows = None
    if box is not None:
        lower, upper = box.lower.flatten(1), box.upper.flatten(1)
        if _only_relu_above(net, node):
            undecided = ((lower < 0) & (upper > 0)).any(0)
            if not undecided.all():
                rows = undecided.nonzero().squeeze(1)
                if not len(rows):
                    return box
    new = _rows_bounds(net, node, lines, region, rows)
    if margin is not None:
        margin = margin.flatten(1)
        new = new.widen(margin if rows is None else margin[:, rows])
    if rows is not None:
        new = Bounds(
            lower.index_copy(1, rows, torch.maximum(new.lower, lower[:, rows])),
            upper.index_copy(1, rows, torch.minimum(new.upper, upper[:, rows])),
        )
    elif box is not None:
        new = new.intersect(Bounds(lower, upper))
    return Bounds(*(side.view(-1, *node.shape) for side in new))


def _only_relu_above(net: Network, node: Node) -> bool:
    """Only then does nothing but the sign matter once it is decided."""
    return all(isinstance(n.op, ReLU) for n in net.nodes if node.name in n.inputs)


def _rows_bounds(net: Network, node: Node, lines: dict[str, Lines], region: Region, rows: Tensor | None) -> Bounds:
    if second_layer.applies(net, node):
        return second_layer.bounds(net, node, lines[node.inputs[0]], region, rows)
    count = node.size if rows is None else len(rows)
    widest = max(n.size for n in net.nodes)
    group = max(1, _COEFFICIENTS // (2 * region.lower.shape[0] * widest))
    parts = []
    for begin in range(0, count, group):
        index = torch.arange(begin, min(begin + group, count), device=region.lower.device)
        index = index if rows is None else rows[index]
        unit = torch.zeros((1, len(index), node.size), dtype=region.lower.dtype, device=region.lower.device)
        unit[0, torch.arange(len(index)), index] = 1
        parts.append(linear_bounds(net, node.name, unit.view(1, len(index), *node.shape), lines, region))
    return Bounds(*(torch.cat(p, dim=1) for p in zip(*parts, strict=True)))


def activation_lines(net: Network, boxes: Mapping[str, Bounds], rule: str = "crown") -> dict[str, Lines]:
    """The lines of every activation, given bounds of the pre-activations."""
    return {node.name: node.op.lines(boxes[node.inputs[0]], rule) for node in net.activations}


def as_objective(net: Network, objective: Tensor | None, like: Tensor) -> Tensor:
    """(1 or batch, rows, *output): the identity if None; (rows, *output) serves every example.

    Raises:
        ValueError: it has another shape.
    """
    shape = net.output.shape
    if objective is None:
        n = net.output.size
        return torch.eye(n, dtype=like.dtype, device=like.device).view(1, n, *shape)
    if objective.shape[objective.dim() - len(shape) :] != shape or objective.dim() - len(shape) not in (1, 2):
        raise ValueError(
            f"the objective must be (rows, *{shape}) or (batch, rows, *{shape}), not {tuple(objective.shape)}"
        )
    return objective.unsqueeze(0) if objective.dim() == len(shape) + 1 else objective


def finish(
    net: Network, found: Bounds, objective: Tensor | None, region: Region, outward: bool, box: Bounds | None
) -> Bounds:
    """Widen (batch, rows) bounds by the rounding margin, intersect with the output's box, and give them their shape."""
    if outward:
        margin = net.margins(region)[net.output.name].flatten(1)
        weights = as_objective(net, objective, margin).abs().flatten(2)
        found = found.widen((weights @ margin.unsqueeze(-1)).squeeze(-1))
    if objective is not None:
        return found
    found = Bounds(*(b.view(-1, *net.output.shape) for b in found))
    return found if box is None else found.intersect(box)


@in_blocks
def crown_bounds(
    net: Network,
    region: Region,
    objective: Tensor | None = None,
    *,
    rule: str = "crown",
    intersect: bool = True,
    outward: bool = True,
    boxes: Mapping[str, Bounds] | None = None,
) -> Bounds:
    """Bounds of the output, or of linear functions of it, over `region` by linear relaxation.

    objective: None for the output itself, bounds (batch, *output); or coefficients (rows, *output) or
    (batch, rows, *output), such as differences of logits, bounds (batch, rows).
    rule, intersect, outward: as in `layer_boxes`. boxes: bounds of the nodes, if known already; computed by the
    same rule otherwise. Differentiable in the weights and the region.
    """
    if boxes is None:
        boxes, lines = _relax(net, region, rule, intersect, outward)
    else:
        lines = activation_lines(net, boxes, rule)
    c = as_objective(net, objective, region.lower)
    found = linear_bounds(net, net.output.name, c, lines, region)
    return finish(net, found, objective, region, outward, boxes[net.output.name] if intersect else None)


def dual_bounds(net: Network, region: Region, objective: Tensor | None = None, *, outward: bool = True) -> Bounds:
    """The convex outer bound of Wong and Kolter (2018), exactly its recursion; see `crown_bounds`.

    With `outward=False` this is the training objective's bound: one backward walk gives both sides, and the second
    hidden layer never forms its coefficients.
    """
    return crown_bounds(net, region, objective, rule="dual", intersect=False, outward=outward)


def intersection_boxes(net: Network, region: Region, *, outward: bool = True) -> dict[str, Bounds]:
    """Bounds of every node by CROWN, by the dual network and by intervals, the tightest of the three at each."""
    dual = layer_boxes(net, region, rule="dual", intersect=False, outward=outward)
    known = {name: dual[name] for name in net.pre_activations}
    return layer_boxes(net, region, rule="crown", outward=outward, known=known)


@in_blocks
def intersection_bounds(
    net: Network,
    region: Region,
    objective: Tensor | None = None,
    *,
    outward: bool = True,
    boxes: Mapping[str, Bounds] | None = None,
) -> Bounds:
    """The tightest of interval, CROWN and dual bounds at every layer and at the output; arguments as of `crown_bounds`.

    Better boxes can make a relaxation choose worse slopes, so each method's own bounds take part as well: the
    result is never worse than `crown_bounds`, `dual_bounds` or `interval_bounds`.
    """
    shared = intersection_boxes(net, region, outward=outward) if boxes is None else boxes
    found = [crown_bounds(net, region, objective, rule=r, outward=outward, boxes=shared) for r in ("crown", "dual")]
    if boxes is None:
        found += [f(net, region, objective, outward=outward) for f in (crown_bounds, dual_bounds)]
    lower, upper = (torch.stack(side) for side in zip(*found, strict=True))
    return Bounds(lower.amax(0), upper.amin(0))


def alpha_crown_bounds(
    net: Network,
    region: Region,
    objective: Tensor | None = None,
    *,
    steps: int = 20,
    lr: float = 0.1,
    outward: bool = True,
    boxes: Mapping[str, Bounds] | None = None,
) -> Bounds:
    """CROWN with lower slopes optimised for every bound by projected Adam (Xu et al. 2021), see `crown_bounds`.

    The layers' boxes are `intersection_boxes`; the result is the best over the trajectory, and never worse than
    `intersection_bounds`. Not differentiable: an optimisation is no training objective.
    """
    with torch.no_grad():
        start = intersection_bounds(net, region, objective, outward=outward, boxes=boxes)
        if boxes is None:
            boxes = intersection_boxes(net, region, outward=outward)
        c = as_objective(net, objective, region.lower)
        base = activation_lines(net, boxes)
        rows = 2 * c.shape[1]
        alphas = {
            node.name: base[node.name].lower_slope.unsqueeze(1).repeat(1, rows, *[1] * len(node.shape))
            for node in net.activations
            if isinstance(node.op, ReLU) and not node.op.leak
        }
    if not alphas:
        return start
    lower, negated = _ascend(net, torch.cat([c, -c], dim=1), region, boxes, alphas, steps, lr).chunk(2, dim=1)
    found = finish(net, Bounds(lower, -negated), objective, region, outward, None)
    return found.intersect(start)


def _ascend(
    net: Network,
    c: Tensor,
    region: Region,
    boxes: Mapping[str, Bounds],
    alphas: dict[str, Tensor],
    steps: int,
    lr: float,
) -> Tensor:
    """The best lower bounds (batch, rows) of the rows of `c` met while the slopes climb."""
    parameters = [alpha.requires_grad_() for alpha in alphas.values()]
    optimizer = torch.optim.Adam(parameters, lr=lr)
    best = torch.full((), -torch.inf, dtype=c.dtype, device=c.device)
    for step in range(steps + 1):
        with torch.enable_grad():
            lines = {n.name: n.op.lines(boxes[n.inputs[0]], alpha=alphas.get(n.name)) for n in net.activations}
            form = back_substitute(net, net.output.name, c, lines)
            value, deviation = linear_range(region, form.coefficients)
            lower = value - deviation + form.lower
            if step < steps:
                # not .backward(): that would leave gradients on the network's weights
                gradients = torch.autograd.grad(-lower.sum(), parameters)
        best = torch.maximum(best, lower.detach())
        if step < steps:
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            optimizer.step()
            with torch.no_grad():
                for parameter in parameters:
                    parameter.clamp_(0, 1)
    return best
