r"""Anderson acceleration of z <- f(z), each example with coefficients of its own.

The next iterate mixes the last m images, z = sum_i a_i (f_i - (1 - tau) g_i), with those a of sum 1 that minimise
|sum_i a_i g_i|^2, where g_i = f_i - z_i. The inner products of the g_i are kept: a step computes one row of them. On
linear problems with m large enough this is GMRES, one application of f later. Source: Walker and Ni, "Anderson
Acceleration for Fixed-Point Iterations", SIAM J. Numer. Anal. 49 (2011).
"""

import torch
from torch import Tensor

from robustrun.methods.equilibrium.workspace import Workspace


class Anderson:
    """The iteration; see the module.

    Args:
        start: the first iterate, (B, D).
        memory: m, images that are mixed.
        workspace: where they lie, 2 m B D numbers.
        damping: tau; 1 mixes the images alone.
        ridge: added to the diagonal of the inner products, relative to its mean. An absolute one, as in public code,
            turns mixing into averaging as soon as the squared residual falls below it.
    """

    def __init__(self, start: Tensor, memory: int, workspace: Workspace, damping: float = 1.0, ridge: float = 1e-8):
        batch, size = start.shape
        self.memory, self.damping, self.ridge, self.count = memory, damping, ridge, 0
        self.images = workspace.take("images", (batch, memory, size), start)
        self.gaps = workspace.take("gaps", (batch, memory, size), start)
        self.mixed = workspace.take("mixed", (batch, 1, size), start)
        self.gram = start.new_zeros((batch, memory, memory), dtype=torch.float64)

    def advance(self, z: Tensor, f: Tensor, g: Tensor) -> None:
        """Move z (B, D) in place to the next iterate; f = f(z), g = f(z) - z."""
        batch, slot = len(z), self.count % self.memory
        n = min(self.count + 1, self.memory)
        self.images[:batch, slot], self.gaps[:batch, slot] = f, g
        gaps = self.gaps[:batch, :n]
        products = torch.bmm(g[:, None], gaps.transpose(1, 2))[:, 0].double()
        gram = self.gram[:batch, :n, :n]
        gram[:, slot, :] = products
        gram[:, :, slot] = products
        mix = self._coefficients(gram, slot)[:, None].to(z.dtype)
        mixed = torch.bmm(mix, self.images[:batch, :n], out=self.mixed[:batch])
        if self.damping != 1.0:
            torch.baddbmm(mixed, mix, gaps, alpha=self.damping - 1, out=mixed)
        z.copy_(mixed[:, 0])
        self.count += 1

    def _coefficients(self, gram: Tensor, slot: int) -> Tensor:
        """a, (B, n), in double precision; the latest image alone where the system has no solution."""
        n = gram.shape[1]
        diagonal = gram.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
        scaled = torch.where(diagonal > 0, gram / diagonal, 0.0)
        scaled.diagonal(dim1=1, dim2=2).add_(self.ridge)
        a = torch.linalg.solve_ex(scaled, torch.ones_like(gram[:, 0])).result
        a = a / a.sum(1, keepdim=True)
        latest = torch.zeros_like(a[0]).index_fill(0, torch.tensor([slot], device=a.device), 1.0)
        return torch.where(a.isfinite().all(1, keepdim=True), a, latest) if n > 1 else torch.ones_like(a)

    def keep(self, rows: Tensor) -> None:
        """Go on with these examples of the batch alone."""
        n = min(self.count, self.memory)
        for buffer in (self.images, self.gaps):
            buffer[: len(rows), :n] = buffer[rows, :n]
        self.gram[: len(rows)] = self.gram[rows]
