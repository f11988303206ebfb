r"""Broyden's good method for f(z) = z, each example with an inverse Jacobian of its own.

With g(z) = f(z) - z and B_0^{-1} = -I, the inverse Jacobian after k steps s_0, ..., s_{k-1} is a product that the steps
alone determine,

    B_k^{-1} = -(I + s_k s_{k-1}^T / |s_{k-1}|^2) ... (I + s_1 s_0^T / |s_0|^2),

so that half the memory of the usual rank-one pairs is enough. The inner products of g with the steps and of the steps
with each other turn the recursion for the next step into a triangular system of k numbers: the stored steps are read
twice an iteration, where the pairs are read six times. Sources: Broyden, Math. Comp. 19 (1965); Kelley, "Iterative
Methods for Linear and Nonlinear Equations", SIAM 1995, section 7.3; Bai, Koltun and Kolter (arXiv 2006.08656).
"""

import torch
from torch import Tensor

from robustrun.methods.equilibrium.workspace import Workspace


class Broyden:
    """The iteration; see the module.

    Args:
        start: the first iterate, (B, D).
        memory: steps that are kept; when they are that many, the inverse Jacobian starts again from -I.
        workspace: where the steps lie, memory * B * D numbers.
    """

    def __init__(self, start: Tensor, memory: int, workspace: Workspace):
        batch, size = start.shape
        self.memory, self.count = memory, 0
        self.steps = workspace.take("steps", (batch, memory, size), start)
        self.step = workspace.take("step", (batch, 1, size), start)
        # Inner products of the steps, and 1 / |s|^2 (0 where a factor is left out), in double precision.
        self.gram = start.new_zeros((batch, memory, memory), dtype=torch.float64)
        self.weight = start.new_zeros((batch, memory), dtype=torch.float64)

    def advance(self, z: Tensor, f: Tensor, g: Tensor) -> None:
        """Move z (B, D) in place to the next iterate; f = f(z), g = f(z) - z."""
        if self.count == self.memory:
            self.count = 0
        k, batch = self.count, len(z)
        self.steps[:batch, k] = g  # in the next step's place until that is known
        known = self.steps[:batch, : k + 1]
        products = torch.bmm(g[:, None], known.transpose(1, 2)).double()  # (B, 1, k + 1): <g, s_j>, last |g|^2
        gram = self.gram[:batch, : k + 1, : k + 1]
        gram[:, k, :] = products[:, 0]
        gram[:, :, k] = products[:, 0]
        coefficients = self._coefficients(gram, k)
        step = self.step[:batch]
        torch.bmm(coefficients.to(z.dtype), known, out=step)
        self.steps[:batch, k] = step[:, 0]
        z += step[:, 0]
        # The inner products of what replaced g follow from those that are known.
        row = torch.bmm(coefficients, gram)
        length = torch.bmm(row, coefficients.transpose(1, 2))[:, 0, 0]
        gram[:, k, :] = row[:, 0]
        gram[:, :, k] = row[:, 0]
        gram[:, k, k] = length
        self.weight[:batch, k] = torch.where(length > 0, 1 / length, 0.0)
        self.count += 1

    def _coefficients(self, gram: Tensor, k: int) -> Tensor:
        """Those of the next step, (B, 1, k + 1), as a combination of s_0, ..., s_{k-1} and g."""
        combination = torch.zeros_like(gram[:, :1])
        if k == 0:
            combination[..., 0] = 1.0
            return combination
        batch = len(gram)
        weight = self.weight[:batch, :k, None]
        # w <- w + c_j s_{j+1} with c_j = <s_j, w> / |s_j|^2 for j = 0, 1, ..., from w = g on; that is,
        # c_j |s_j|^2 = <s_j, g> + sum_{i<j} c_i <s_j, s_{i+1}>.
        lower = torch.zeros_like(gram[:, :k, :k])
        lower[:, :, : k - 1] = -weight * gram[:, :k, 1:k]
        c = torch.linalg.solve_triangular(lower, weight * gram[:, :k, k:], upper=False, unitriangular=True)
        scale = 1 / (1 - c[:, k - 1, 0])
        # Where the secant equation has no solution, the step goes on with the inverse Jacobian that was.
        sound = scale.isfinite()
        self.weight[:batch, k - 1] *= sound
        scale = torch.where(sound, scale, 1.0)
        combination[:, 0, 1:k] = scale[:, None] * c[:, : k - 1, 0]
        combination[:, 0, k] = scale
        return combination

    def keep(self, rows: Tensor) -> None:
        """Go on with these examples of the batch alone."""
        n = self.count
        self.steps[: len(rows), :n] = self.steps[rows, :n]
        self.gram[: len(rows)] = self.gram[rows]
        self.weight[: len(rows)] = self.weight[rows]
