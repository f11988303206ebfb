"""Back-substitution: a linear function of a layer becomes one of the input (Zhang et al. 2018; Wong and Kolter 2018).

Coefficients walk backwards through the network. At an affine node they are multiplied by its matrix; at an
activation, positive ones take its lower line and negative ones its upper line, so that what arrives at the input
is a sound lower bound of the function. An upper bound is minus the lower bound of minus the function. Where the
two lines are parallel (the dual network's choice) one walk gives both.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from robustrun.methods.bounds.activations import Lines
from robustrun.methods.bounds.network import Network
from robustrun.methods.bounds.regions import Bounds, Region, dot, linear_range


class InputForm(NamedTuple):
    """A linear lower bound  coefficients . x + lower  (batch, rows); `upper` where the same coefficients give both."""

    coefficients: Tensor
    lower: Tensor
    upper: Tensor | None


def _through(lines: Lines, a: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """Coefficients on the pre-activation; what the intercepts add to the lower and, if parallel, the upper bound."""

    def per_row(v: Tensor) -> Tensor:
        return v if v.dim() == a.dim() else v.unsqueeze(1)

    def total(coefficients: Tensor, intercept: Tensor) -> Tensor:
        if intercept.dim() == a.dim():
            return (coefficients * intercept).flatten(2).sum(-1)
        return dot(coefficients, intercept)

    negative = a.clamp(max=0)
    low = total(negative, lines.upper_intercept)
    if lines.parallel:
        return a * per_row(lines.upper_slope), low, total(a.clamp(min=0), lines.upper_intercept)
    if lines.lower_intercept is not None:
        low = low + total(a.clamp(min=0), lines.lower_intercept)
    a = a * torch.where(a > 0, per_row(lines.lower_slope), per_row(lines.upper_slope))
    return (a if lines.multiplier is None else a + lines.multiplier), low, None


def back_substitute(
    net: Network,
    start: str,
    coefficients: Tensor,
    lines: Mapping[str, Lines],
    seen: dict[str, Tensor] | None = None,
) -> InputForm:
    """A lower bound of sum(coefficients * value of node `start`) that is linear in the input.

    coefficients: (1 or batch, rows, *shape of start); lines: of every activation before `start`, by name.
    `seen`, if given, receives the coefficients on every activation's output.
    """
    names = [node.name for node in net.nodes]
    pending = {start: coefficients}
    zeros = coefficients.new_zeros(coefficients.shape[:2])
    lower, upper = zeros, zeros if all(line.parallel for line in lines.values()) else None
    for node in reversed(net.nodes[1 : names.index(start) + 1]):
        a = pending.pop(node.name, None)
        if a is None:
            continue
        if node.is_activation:
            if seen is not None:
                seen[node.name] = a
            back, low, high = _through(lines[node.name], a)
            lower = lower + low
            upper = None if upper is None else upper + high
            back = (back,)
        else:
            back, constant = node.op.backward(a)
            if constant is not None:
                lower = lower + constant
                upper = None if upper is None else upper + constant
        for name, b in zip(node.inputs, back, strict=True):
            pending[name] = pending[name] + b if name in pending else b
    a = pending.get(net.input.name)
    if a is None:
        a = zeros.view(*zeros.shape, *[1] * len(net.input.shape)).expand(*zeros.shape, *net.input.shape)
    return InputForm(a, lower, upper)


def linear_bounds(net: Network, start: str, coefficients: Tensor, lines: dict[str, Lines], region: Region) -> Bounds:
    """Bounds (batch, rows) of sum(coefficients * value of node `start`) over the region."""
    if all(line.parallel for line in lines.values()):
        form = back_substitute(net, start, coefficients, lines)
        value, deviation = linear_range(region, form.coefficients)
        return Bounds(value - deviation + form.lower, value + deviation + form.upper)
    both = torch.cat([coefficients, -coefficients], dim=1)
    form = back_substitute(net, start, both, lines)
    value, deviation = linear_range(region, form.coefficients)
    lower, negated = (value - deviation + form.lower).chunk(2, dim=1)
    return Bounds(lower, -negated)
