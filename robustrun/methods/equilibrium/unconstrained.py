"""A free W on several resolutions, for comparison.

Nothing promises that z = sigma(W z + b) has a solution, one solution, or that a solver finds it. The paper compares
with deep equilibrium models of this structure, solved by Broyden's method (arXiv 2006.08591, section 4).
"""

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustrun.methods.equilibrium.circular import uniform_kernel
from robustrun.methods.equilibrium.grid import Torus, transfer
from robustrun.methods.equilibrium.multitier import circular, halving
from robustrun.methods.equilibrium.splitting import LinearMap, State


class FreeMultiTier(nn.Module):
    """A lower block-bidiagonal W on tiers (B, c_i, n_i, n_i) as of `MultiTierMonotone`, of free kernels.

    Args: as of `MultiTierMonotone`.

    Raises:
        ValueError: a tier above the last has an odd side.
    """

    def __init__(self, channels: Sequence[int], side: int, kernel: int = 3):
        super().__init__()
        self.sides = halving(side, len(channels))
        self.W = nn.ParameterList(uniform_kernel(c, c, kernel) for c in channels)
        self.N = nn.ParameterList(uniform_kernel(low, high, kernel) for high, low in itertools.pairwise(channels))

    def apply(self, z: State, transpose: bool = False) -> State:
        moved = []
        for i, (tier, kernel) in enumerate(zip(z, self.W, strict=True)):
            out = circular(tier, _adjoint(kernel) if transpose else kernel)
            if transpose and i < len(self.N):
                spread = torch.zeros_like(tier[:, :1]).expand(-1, self.N[i].shape[0], -1, -1).clone()
                spread[..., ::2, ::2] = z[i + 1][..., :-1, :-1]
                out = out + circular(spread, _adjoint(self.N[i]))
            if not transpose and i:
                out = out + F.pad(circular(z[i - 1], self.N[i - 1], 2), (0, 1, 0, 1))
            moved.append(out)
        return tuple(moved)

    def fixed(self) -> LinearMap:
        def linear(u: State, transpose: bool = False, out: State | None = None) -> State:
            with torch.no_grad():
                return self.apply(u, transpose)

        return linear

    def inner(self, y: State, z: State) -> Tensor:
        """<y, W z>, differentiable in the parameters."""
        return torch.stack([(a * b).sum() for a, b in zip(y, self.apply(z), strict=True)]).sum()

    @torch.no_grad()
    def monotonicity(self) -> Tensor:
        """A lower bound on the smallest eigenvalue of the symmetric part of I - W."""
        spectra, couplings = self._norms()
        least = [torch.linalg.eigvalsh(torch.eye(s.shape[-1]).to(s) - (s + s.mH) / 2).min() for s in spectra]
        bound = torch.diag(torch.stack(least))
        for i, coupling in enumerate(couplings):
            bound[i, i + 1] = bound[i + 1, i] = -coupling / 2
        return torch.linalg.eigvalsh(bound)[0]

    @torch.no_grad()
    def lipschitz(self) -> Tensor:
        """A bound on |I - W|_2."""
        spectra, couplings = self._norms()
        norms = [torch.linalg.matrix_norm(torch.eye(s.shape[-1]).to(s) - s, 2).max() for s in spectra]
        bound = torch.diag(torch.stack(norms))
        for i, coupling in enumerate(couplings):
            bound[i + 1, i] = coupling
        return torch.linalg.matrix_norm(bound, 2)

    def _norms(self) -> tuple[list[Tensor], list[Tensor]]:
        """The tiers' own spectra and bounds on the norms of what leads from one to the next."""
        points = [Torus(side, self.W[0].double()).points() for side in self.sides]
        spectra = [transfer(k.double(), p, side) for k, p, side in zip(self.W, points, self.sides, strict=True)]
        above = zip(self.N, points[:-1], self.sides[:-1], strict=True)
        return spectra, [torch.linalg.matrix_norm(transfer(k.double(), p, s), 2).max() for k, p, s in above]


def _adjoint(kernel: Tensor) -> Tensor:
    return kernel.transpose(0, 1).flip(-1, -2)
