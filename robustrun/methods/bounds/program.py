"""A ReLU network on a box as linear constraints, for the solvers: the LP relaxation and the exact MILP.

Variables are the inputs and the outputs z of every unstable ReLU; a stable ReLU is the identity or zero and needs
none. Every value of the network is then an affine function  M v + c  of these variables, found by sending the
columns of M through the affine nodes, so that convolutions and residual connections need nothing special.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import scipy
import torch
from torch import Tensor

from robustrun.methods.bounds.activations import ReLU
from robustrun.methods.bounds.network import Network
from robustrun.methods.bounds.regions import Bounds, Box
from robustrun.methods.bounds.unsupported import Unsupported


@dataclass(frozen=True)
class Program:
    """Affine forms of a network with `n_inputs` inputs on one box, over n variables (inputs, then unstable units).

    lower, upper (n,): bounds of the variables. pre (k, n), pre_constant (k,): pre-activations of the k unstable
    units, with bounds pre_lower < 0 < pre_upper (k,). output (m, n), output_constant (m,).
    """

    n_inputs: int
    lower: np.ndarray
    upper: np.ndarray
    pre: np.ndarray
    pre_constant: np.ndarray
    pre_lower: np.ndarray
    pre_upper: np.ndarray
    output: np.ndarray
    output_constant: np.ndarray

    @property
    def unstable(self) -> int:
        """How many units are unstable, k."""
        return len(self.pre_lower)

    def triangle(self, binary: bool) -> "scipy.optimize.LinearConstraint":
        """z >= pre and, in the LP, the chord above; in the MILP (variables followed by k binaries b),
        z <= pre - lower (1 - b) and z <= upper b. z >= 0 is in the variables' bounds."""
        k, n = self.unstable, len(self.lower)
        z = scipy.sparse.csr_array((np.ones(k), (np.arange(k), self.n_inputs + np.arange(k))), (k, n))
        above = z - scipy.sparse.csr_array(self.pre)
        if not binary:
            slope = self.pre_upper / (self.pre_upper - self.pre_lower)
            chord = z - scipy.sparse.csr_array(slope[:, None] * self.pre)
            rows = scipy.sparse.vstack([above, chord])
            low = np.concatenate([self.pre_constant, np.full(k, -np.inf)])
            high = np.concatenate([np.full(k, np.inf), slope * (self.pre_constant - self.pre_lower)])
            return scipy.optimize.LinearConstraint(rows, low, high)
        none, eye = scipy.sparse.csr_array((k, k)), scipy.sparse.eye_array(k, format="csr")
        rows = scipy.sparse.vstack(
            [
                scipy.sparse.hstack([above, none]),
                scipy.sparse.hstack([above, -scipy.sparse.diags_array(self.pre_lower) @ eye]),
                scipy.sparse.hstack([z, -scipy.sparse.diags_array(self.pre_upper) @ eye]),
            ]
        )
        low = np.concatenate([self.pre_constant, np.full(2 * k, -np.inf)])
        high = np.concatenate([np.full(k, np.inf), self.pre_constant - self.pre_lower, np.zeros(k)])
        return scipy.optimize.LinearConstraint(scipy.sparse.csr_array(rows), low, high)


def program(
    net: Network,
    box: Box,
    boxes: Mapping[str, Bounds],
    until: str | None = None,
) -> Program:
    """The program of one example; `box` and the tensors of `boxes` (pre-activations) have batch 1.

    until: the node that counts as the output (the network's own if None). Raises Unsupported for activations other
    than ReLU, which no linear program describes.
    """
    n_inputs = box.lower[0].numel()
    nodes = net.nodes if until is None else net.nodes[: [n.name for n in net.nodes].index(until) + 1]
    units = sum(node.size for node in nodes if node.is_activation)
    total = n_inputs + units
    # columns (1 + total, *shape): the constant first, then the coefficient of every variable
    columns = torch.zeros((1 + total, n_inputs), dtype=box.lower.dtype)
    columns[1 + torch.arange(n_inputs), torch.arange(n_inputs)] = 1
    forms: dict[str, Tensor] = {net.input.name: columns.view(1 + total, *net.input.shape)}
    pre, low, high, used = [], [], [], n_inputs
    for node in nodes[1:]:
        inputs = [forms[name] for name in node.inputs]
        if not node.is_activation:
            at_zero = node.op.forward(*(torch.zeros_like(f[:1]) for f in inputs))
            form = node.op.forward(*inputs)
            form[1:] -= at_zero
            forms[node.name] = form
            continue
        if not (isinstance(node.op, ReLU) and not node.op.leak):
            raise Unsupported("exact bounds are known for ReLU networks only")
        form, (l, u) = inputs[0].flatten(1), (b.flatten() for b in boxes[node.inputs[0]])
        unstable = ((l < 0) & (u > 0)).nonzero().squeeze(1)
        out = form * (l >= 0)
        out[:, unstable] = 0
        out[1 + used + torch.arange(len(unstable)), unstable] = 1
        pre.append(form[:, unstable])
        low.append(l[unstable])
        high.append(u[unstable])
        used += len(unstable)
        forms[node.name] = out.view_as(inputs[0])
    output = forms[nodes[-1].name].flatten(1)[: 1 + used].T.double().numpy()
    rows = torch.cat(pre, dim=1)[: 1 + used].T.double().numpy() if pre else np.zeros((0, 1 + used))
    low, high = (torch.cat(v).double().numpy() if v else np.zeros(0) for v in (low, high))
    ends = [b[0].flatten().double().numpy() for b in (box.lower, box.upper)]
    return Program(
        n_inputs,
        np.concatenate([ends[0], np.zeros(len(low))]),
        np.concatenate([ends[1], high]),
        rows[:, 1:],
        rows[:, 0],
        low,
        high,
        output[:, 1:],
        output[:, 0],
    )
