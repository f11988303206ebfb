"""Where the sign of every ReLU is decided, the network is linear: its optimum there is a small linear program.

Many such programs share one call of the solver, whose start-up takes longer than most of them.
"""

from collections.abc import Mapping

import numpy as np
import scipy
import torch
from torch import Tensor

from robustrun.methods.bounds.network import Network
from robustrun.methods.bounds.regions import Box

_TOLERANCE = 1e-7  # of the solver


@torch.no_grad()
def leaf_optima(
    net: Network, region: Box, active: Mapping[str, Tensor], sign: Mapping[str, Tensor], direction: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The least direction * output (n,) over each box where the units have these signs, less the solver's tolerance.

    region: n boxes. active, sign (n, *shape) by pre-activation: 1 where a unit passes its input on, else 0; and a
    sign, where not 0, that its input must have for the rest to hold. direction: (n,), 1 or -1. Returns the optima,
    infinite where no input has these signs; minimisers (n, *features); and where there are any.
    """
    n, size = len(direction), net.input.size
    # columns (n, 1 + inputs, *shape): the constant first, then the coefficient of every input
    columns = torch.cat([direction.new_zeros(1, size), torch.eye(size, dtype=direction.dtype)])
    forms = {net.input.name: columns.expand(n, -1, -1).reshape(n, 1 + size, *net.input.shape)}
    for node in net.nodes[1:]:
        inputs = [forms[name] for name in node.inputs]
        if node.is_activation:
            forms[node.name] = inputs[0] * active[node.inputs[0]].unsqueeze(1)
            continue
        form = node.op.forward(*(f.flatten(0, 1) for f in inputs)).unflatten(0, (n, 1 + size))
        form[:, 1:] -= node.op.forward(*(torch.zeros_like(f[0, :1]) for f in inputs))
        forms[node.name] = form
    goal = forms[net.output.name].flatten(1) * direction[:, None]
    rows = torch.cat([(forms[name] * sign[name].unsqueeze(1)).flatten(2) for name in sign], dim=2).mT
    used = torch.cat([s.flatten(1) for s in sign.values()], dim=1) != 0
    value, points = _solve(*(v.numpy() for v in (goal, rows, used, region.lower.flatten(1), region.upper.flatten(1))))
    found = torch.as_tensor(np.isfinite(value))
    points = region.project(torch.as_tensor(points, dtype=direction.dtype).view_as(region.lower))
    return torch.as_tensor(value, dtype=direction.dtype) - _TOLERANCE, points, found


def _solve(
    goal: np.ndarray, rows: np.ndarray, used: np.ndarray, lower: np.ndarray, upper: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Least values (n,) of n small linear programs, side by side in one call of the solver, and minimisers (n, k).

    Minimise goal (n, 1 + k) over lower <= x <= upper where rows (n, m, 1 + k) are not negative, those that `used`
    (n, m) counts; coefficients follow a constant. Infinite where nothing is feasible, -inf where the solver fails;
    the minimiser is then NaN.
    """
    n, k = lower.shape
    which, chosen = np.nonzero(used)
    constraints = rows[which, chosen]
    columns = which[:, None] * k + np.arange(k)
    matrix = scipy.sparse.csr_array(
        (constraints[:, 1:].ravel(), columns.ravel(), np.arange(len(which) + 1) * k), (len(which), n * k)
    )
    result = scipy.optimize.milp(
        goal[:, 1:].ravel(),
        bounds=scipy.optimize.Bounds(lower.ravel(), upper.ravel()),
        constraints=[scipy.optimize.LinearConstraint(matrix, -constraints[:, 0], np.inf)] if len(which) else [],
    )
    if result.status == 0:
        x = result.x.reshape(n, k)
        return goal[:, 0] + (goal[:, 1:] * x).sum(1), x
    if n == 1:
        return np.array([np.inf if result.status == 2 else -np.inf]), np.full((1, k), np.nan)
    # one of them is infeasible: look for it in halves
    halves = [_solve(*(v[part] for v in (goal, rows, used, lower, upper))) for part in np.array_split(np.arange(n), 2)]
    return tuple(np.concatenate(side) for side in zip(*halves, strict=True))
