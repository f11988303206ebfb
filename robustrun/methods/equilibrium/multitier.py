r"""A monotone operator on several resolutions at once, coupled by convolutions of stride two.

On tiers z = (z_0, z_1, ...), W = (1 - m) I - A^T A + B - B^T with A lower block-bidiagonal: A_ii circular on its tier,
A_{i+1,i} = E S N_i, a circular convolution N_i, every other row and column S, and a row and a column of zeros at the
end E. B_{i+1,i} = -A_{i+1,i+1}^T A_{i+1,i} cancels what would lead upwards, so that W is lower block-bidiagonal:

    W_ii     = (1 - m) I - A_ii^T A_ii - N_i^T S^T S N_i + B_ii - B_ii^T   (the middle term but for the last tier)
    W_{i+1,i} = -2 A_{i+1,i+1}^T A_{i+1,i}

The inverse is a substitution from tier to tier, within a tier one block for every four frequencies (`folding`).
Source: Winston and Kolter (arXiv 2006.08591), section 3.4 and appendix B.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustrun.methods.equilibrium.circular import check, monotone_kernel, uniform_kernel
from robustrun.methods.equilibrium.folding import Folding
from robustrun.methods.equilibrium.grid import Torus, images, pixels, planar, transfer
from robustrun.methods.equilibrium.splitting import State
from robustrun.methods.equilibrium.workspace import Workspace


@dataclass
class Tier:
    """A tier's maps in the Fourier domain, one block a frequency (the last tier) or four of them (the others).

    Attributes:
        torus: its transforms.
        folding: its groups of four frequencies; None for the last tier.
        diagonal: W_ii, complex (groups, 4c, 4c) or (frequencies, c, c).
        within: A_ii, real (frequencies, 2c, 2c).
        down: S N_i, real (groups, 2c', 8c); None for the last tier.
    """

    torus: Torus
    folding: Folding | None
    diagonal: Tensor
    within: Tensor
    down: Tensor | None


class TierMap:
    """A lower block-bidiagonal map: the operator itself, or its resolvent by substitution.

    `blocks` stand on the diagonal; what goes from one tier to the next is taken down from the tier's input (operator)
    or output (resolvent), and enters the next one's output (operator) or input (resolvent).
    """

    def __init__(self, tiers: list[Tier], blocks: list[Tensor], coupling: float, inverse: bool, scratch: Workspace):
        self.tiers, self.coupling, self.inverse, self._scratch = tiers, coupling, inverse, scratch
        self.blocks = [
            planar(block) if tier.folding is None else tier.folding.real(block)
            for tier, block in zip(tiers, blocks, strict=True)
        ]

    def __call__(self, u: State, transpose: bool = False, out: State | None = None) -> State:
        run = self._transposed if transpose else self._plain
        return run(u)

    def _plain(self, u: State) -> State:
        results, come = [], None
        for i, (tier, x) in enumerate(zip(self.tiers, u, strict=True)):
            spectrum = tier.torus.analysis(pixels(x), self._scratch)
            if come is not None:
                come = tier.within.mT @ tier.torus.analysis(come, self._scratch, "coupled")
                if self.inverse:
                    spectrum = torch.add(spectrum, come, alpha=self.coupling)
            taken = spectrum if tier.folding is None else tier.folding.gather(spectrum)
            moved = torch.bmm(self.blocks[i], taken)
            below = None
            if tier.folding is not None:
                below = torch.bmm(tier.down, moved if self.inverse else taken)
                below = F.pad(tier.folding.coarse.synthesis(below, self._scratch), (0, 0, 0, 0, 0, 1, 0, 1))
                moved = tier.folding.scatter(moved)
            if come is not None and not self.inverse:
                moved = moved.add_(come, alpha=self.coupling)
            results.append(images(tier.torus.synthesis(moved, self._scratch)))
            come = below
        return tuple(results)

    def _transposed(self, u: State) -> State:
        results, come = [], None
        for i in reversed(range(len(u))):
            tier = self.tiers[i]
            spectrum = tier.torus.analysis(pixels(u[i]), self._scratch)
            taken = spectrum if tier.folding is None else tier.folding.gather(spectrum)
            if come is not None:
                inside = come[:-1, :-1].contiguous()  # of the row and the column of zeros
                come = tier.down.mT @ tier.folding.coarse.analysis(inside, self._scratch, "coupled")
                come = come * 4  # S^T has no mean over four aliases
                if self.inverse:
                    taken = torch.add(taken, come, alpha=self.coupling)
            moved = torch.bmm(self.blocks[i].mT, taken)
            if come is not None and not self.inverse:
                moved = moved.add_(come, alpha=self.coupling)
            if tier.folding is not None:
                moved = tier.folding.scatter(moved)
            if i:
                above = tier.within @ (moved if self.inverse else spectrum)
                come = tier.torus.synthesis(above, self._scratch)
            results.append(images(tier.torus.synthesis(moved, self._scratch)))
        return tuple(reversed(results))


class MultiTierResolvent:
    """(I + alpha (I - W))^{-1} by substitution."""

    def __init__(self, operator: "MultiTierMonotone", alpha: float):
        self.alpha, self._operator = alpha, operator
        tiers = operator.tiers()
        blocks = [torch.linalg.inv(_identity(t.diagonal, 1 + alpha) - alpha * t.diagonal) for t in tiers]
        self._inverse = TierMap(tiers, blocks, -2 * alpha, True, operator.scratch)

    def cayley(self, u: State, transpose: bool = False, out: State | None = None) -> State:
        """2 V u - u, with the resolvent V = (I + alpha (I - W))^-1 or its transpose; tiers of shape (B, C, H, W)."""
        return tuple(v.mul_(2).sub_(u) for v, u in zip(self._inverse(u, transpose), u, strict=True))

    def contraction(self) -> Tensor:
        """A bound on |C|_2, from m and L: sqrt(1 - 4 a m / (1 + 2 a m + a^2 L^2)). Source: the paper, section 3.2."""
        m, norm = self._operator.monotonicity(), self._operator.lipschitz()
        return (1 - 4 * self.alpha * m / (1 + 2 * self.alpha * m + (self.alpha * norm) ** 2)).sqrt()


class MultiTierMonotone(nn.Module):
    """W on tiers of images (B, c_i, n_i, n_i), n_{i+1} = n_i / 2 + 1, monotone by construction.

    Args:
        channels: c_i, one a tier.
        side: n_0.
        kernel: odd size of the kernels of A and B.
        margin: m > 0.

    Raises:
        ValueError: the margin is not positive, the kernel is even or larger than a tier, or a tier above the last has
            an odd side.
    """

    def __init__(self, channels: Sequence[int], side: int, kernel: int = 3, margin: float = 1.0):
        super().__init__()
        self.m, self.sides = margin, halving(side, len(channels))
        check(margin, kernel, self.sides[-1])
        pairs = list(itertools.pairwise(channels))
        self.A = nn.ParameterList(uniform_kernel(c, c, kernel) for c in channels)
        self.B = nn.ParameterList(uniform_kernel(c, c, kernel) for c in channels)
        self.N = nn.ParameterList(uniform_kernel(below, above, kernel) for above, below in pairs)
        self.g = nn.Parameter(torch.ones(len(channels)))
        self.h = nn.Parameter(torch.ones(len(channels)))
        self.gn = nn.Parameter(torch.ones(len(pairs)))
        self.scratch = Workspace()

    def kernels(self) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Those of W_ii without the term of N_i, of A_ii and of N_i; differentiable in the parameters."""
        tiers = range(len(self.A))
        a, b = [A / A.norm() for A in self.A], [B / B.norm() for B in self.B]
        whole = [monotone_kernel(a[i], b[i], self.m, self.g[i], self.h[i]) for i in tiers]
        within = [_root(self.g[i]) * a[i] for i in tiers]
        return whole, within, [_root(g) * N / N.norm() for g, N in zip(self.gn, self.N, strict=True)]

    @torch.no_grad()
    def tiers(self) -> list[Tier]:
        """The present weights in the Fourier domain."""
        whole, within, strided = self.kernels()
        tiers = []
        for i, side in enumerate(self.sides):
            torus, last = Torus(side, whole[i]), i + 1 == len(self.sides)
            inside = transfer(within[i], torus.points(), side)
            if last:
                diagonal = transfer(whole[i], torus.points(), side)
                tiers.append(Tier(torus, None, diagonal, planar(inside), None))
                continue
            folding = Folding(side, whole[i])
            points = folding.points.flatten(0, 1)
            down = folding.strided(transfer(strided[i], points, side))
            # S^T has no mean over four aliases: N^T S^T S N is four times the square.
            diagonal = folding.diagonal(transfer(whole[i], points, side)) - 4 * down.mH @ down
            tiers.append(Tier(torus, folding, diagonal, planar(inside), folding.real(down, rows=False)))
        return tiers

    def apply(self, z: State, transpose: bool = False) -> State:
        return self.fixed()(z, transpose)

    def fixed(self) -> TierMap:
        tiers = self.tiers()
        return TierMap(tiers, [tier.diagonal for tier in tiers], -2.0, False, self.scratch)

    @torch.no_grad()
    def factorize(self, alpha: float) -> MultiTierResolvent:
        return MultiTierResolvent(self, alpha)

    def inner(self, y: State, z: State) -> Tensor:
        """<y, W z>, differentiable in the parameters."""
        whole, within, strided = self.kernels()
        total = whole[0].new_zeros(())
        for i, (kernel, a, b) in enumerate(zip(whole, y, z, strict=True)):
            with torch.no_grad():
                torus = Torus(self.sides[i], kernel)
                correlation = torus.correlation(pixels(a), pixels(b), kernel.shape[-1], self.scratch)
            total = total + (kernel * correlation).sum()
            if i < len(strided):
                half = self.sides[i] // 2
                above, from_z = (circular(tier, strided[i], 2) for tier in (a, b))
                below = circular(y[i + 1], within[i + 1])[..., :half, :half]
                total = total - (from_z * (above + 2 * below)).sum()
        return total

    @torch.no_grad()
    def monotonicity(self) -> Tensor:
        """A lower bound on the smallest eigenvalue of the symmetric part of I - W, from the weights: at least m.

        2 <z_{i+1}, A_{i+1,i+1}^T A_{i+1,i} z_i> is not below -|A_{i+1,i+1} z_{i+1}|^2 - |A_{i+1,i} z_i|^2, which
        I - W has on its diagonal: the bound is the least eigenvalue of what the tiers keep, one frequency at a time.
        """
        whole, within, _ = self.kernels()
        least = []
        for i, side in enumerate(self.sides):  # the terms of N_i, had and paid, cancel
            points = Torus(side, whole[i]).points()
            diagonal = transfer(whole[i].double(), points, side)
            paid = transfer(within[i].double(), points, side)
            kept = _identity(diagonal) - (diagonal + diagonal.mH) / 2 - (paid.mH @ paid if i else 0)
            least.append(torch.linalg.eigvalsh(kept).min())
        return torch.stack(least).min()

    @torch.no_grad()
    def lipschitz(self) -> Tensor:
        """A bound on L = |I - W|_2: the norm of the matrix of its blocks' norms."""
        tiers = self.tiers()
        norms = torch.zeros(len(tiers), len(tiers), dtype=torch.float64)
        for i, tier in enumerate(tiers):
            norms[i, i] = torch.linalg.matrix_norm(_identity(tier.diagonal) - tier.diagonal, 2).max()
            if i:
                within, down = (torch.linalg.matrix_norm(m, 2).max() for m in (tier.within, tiers[i - 1].down))
                norms[i, i - 1] = 4 * within * down  # 2 |A_{i+1,i+1}| |S N_i|, S N_i twice as large as its blocks
        return torch.linalg.matrix_norm(norms, 2)


def halving(side: int, tiers: int) -> list[int]:
    """The sides of all tiers: half the one before and one more.

    Raises:
        ValueError: one that must be halved is odd.
    """
    sides = [side]
    for _ in range(tiers - 1):
        if sides[-1] % 2:
            raise ValueError(f"{tiers} tiers need sides that halve: {sides} ends in an odd one")
        sides.append(sides[-1] // 2 + 1)
    return sides


def _identity(like: Tensor, scale: float = 1.0) -> Tensor:
    return scale * torch.eye(like.shape[-1], dtype=like.dtype, device=like.device)


def _root(g: Tensor) -> Tensor:
    """sqrt(g), and 0 with gradient 0 where g is not positive: monotonicity is never lost."""
    return torch.where(g > 0, g.clamp_min(1e-12).sqrt(), torch.zeros_like(g))


def circular(z: Tensor, kernel: Tensor, stride: int = 1) -> Tensor:
    """A circular convolution of z (B, C, H, W), every `stride`-th row and column of it."""
    return F.conv2d(F.pad(z, [kernel.shape[-1] // 2] * 4, mode="circular"), kernel, stride=stride)
