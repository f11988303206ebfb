r"""A stride of two in the Fourier domain: the four frequencies of an n x n torus that fold onto one of n/2 x n/2.

With S "take every other row and column", S y has at a frequency the mean of y's four aliases over four, and S^T S
couples just these four. So a convolution plus N^T S^T S N is one block of four frequencies at a time, and its inverse
is as cheap as the blocks are small. Source: Winston and Kolter (arXiv 2006.08591), appendix B, there by Woodbury's
identity.
"""

import torch
from torch import Tensor

from robustrun.methods.equilibrium.grid import Torus, planar


class Folding:
    """The frequencies of an even torus in groups of four, those of the half torus in their usual order.

    `points` (groups, 4, 2) are the frequencies (k, l), (k, l + n/2), (k + n/2, l), (k + n/2, l + n/2). The last two lie
    outside the half that is kept: there the conjugate of their mirror image stands for them.

    Raises:
        ValueError: the side is odd.
    """

    def __init__(self, side: int, like: Tensor):
        if side % 2:
            raise ValueError(f"a stride of two needs an even side, not {side}")
        half = side // 2
        self.side = side
        self.coarse = Torus(half, like)
        shifts = torch.tensor([[0, 0], [0, half], [half, 0], [half, half]])
        self.points = self.coarse.points()[:, None] + shifts
        sign = torch.tensor([1, 1, -1, -1])[:, None]
        rows, columns = (self.points * sign % side).unbind(-1)
        place = rows * side + columns
        self.place = place.flatten().to(like.device)
        source = torch.empty(Torus(side, like).frequencies, dtype=torch.int64)
        source[place.flatten()] = torch.arange(place.numel())
        self.source = source.to(like.device)

    def gather(self, spectrum: Tensor) -> Tensor:
        """(frequencies, 2c, B) -> (groups, 8c, B): four frequencies below each other."""
        return spectrum.index_select(0, self.place).view(len(self.points), -1, spectrum.shape[2])

    def scatter(self, groups: Tensor) -> Tensor:
        """The inverse of `gather`, for the real spectrum of an image."""
        flat = groups.reshape(4 * len(self.points), -1, groups.shape[2])
        return flat.index_select(0, self.source)

    def diagonal(self, spectrum: Tensor) -> Tensor:
        """A circular convolution at `points`, complex (groups * 4, c, c), as blocks (groups, 4c, 4c)."""
        blocks = spectrum.view(-1, 4, *spectrum.shape[1:])
        channels = spectrum.shape[-1]
        out = spectrum.new_zeros(len(blocks), 4, channels, 4, channels)
        for alias in range(4):
            out[:, alias, :, alias] = blocks[:, alias]
        return out.view(-1, 4 * channels, 4 * channels)

    def strided(self, spectrum: Tensor) -> Tensor:
        """A circular convolution at `points`, every other row and column of its result: (groups, c', 4c)."""
        return spectrum.view(-1, 4, *spectrum.shape[1:]).transpose(1, 2).flatten(2) / 4

    @staticmethod
    def real(blocks: Tensor, rows: bool = True) -> Tensor:
        """Complex blocks (groups, a, b) as real ones (groups, 2a, 2b), for what `gather` gives.

        Args:
            blocks: from the four aliases to the four aliases, or to one frequency of the half torus (not `rows`).
        """
        groups, many = len(blocks), 4 if rows else 1
        parts = blocks.unflatten(2, (4, -1)).unflatten(1, (many, -1)).transpose(2, 3)  # (groups, p, 4, a, b)
        out = planar(parts)
        out[:, :, 2:, :, out.shape[-1] // 2 :] *= -1  # kept as conjugates
        if rows:
            out[:, 2:, :, out.shape[-2] // 2 :] *= -1
        return out.transpose(2, 3).reshape(groups, many * out.shape[3], 4 * out.shape[4])
