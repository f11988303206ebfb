r"""Fourier transforms of real images on a torus as matrix products, in the layout that the products want.

A state (B, c, s, s) is kept with the batch innermost in memory (`batch_last`), so that a transform is two matrix
products over contiguous rows of c B numbers, and what follows it one product (2c, 2c) (2c, B) a frequency: nothing is
ever permuted. Spectra are real tensors: half of the frequencies, real parts before imaginary ones. On images of up to
some dozens of pixels a side this is two to three times as fast as fast Fourier transforms between permutations.
"""

import math
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustrun.methods.equilibrium.workspace import Workspace


def batch_last(z: Tensor) -> Tensor:
    """The same state, images with the batch innermost in memory, vectors (B, n) as usual; no copy if it is so."""
    return images(pixels(z)) if z.ndim == 4 else z.contiguous()


def pixels(z: Tensor) -> Tensor:
    """(B, c, s, s) -> contiguous (s, s, c, B)."""
    return z.permute(2, 3, 1, 0).contiguous()


def images(x: Tensor) -> Tensor:
    """(s, s, c, B) -> (B, c, s, s), a view."""
    return x.permute(3, 2, 0, 1)


class BatchLastConv2d(nn.Conv2d):
    """A convolution (stride 1) whose result lies in memory with the batch innermost: one product a pixel."""

    def forward(self, x: Tensor) -> Tensor:
        size = self.kernel_size[0]
        x = F.pad(pixels(x), (0, 0, 0, 0, self.padding[1], self.padding[1], self.padding[0], self.padding[0]))
        height, width = x.shape[0] - size + 1, x.shape[1] - size + 1
        shifted = [x[i : i + height, j : j + width] for i in range(size) for j in range(size)]
        columns = torch.stack(shifted, 3).view(height * width, -1, x.shape[3])  # (c, size^2) as the weight has them
        weight = self.weight.flatten(1).expand(height * width, -1, -1)
        moved = torch.baddbmm(self.bias[:, None], weight, columns)
        return images(moved.view(height, width, -1, x.shape[3]))


class _AveragePool(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z: Tensor, size: int) -> Tensor:
        ctx.shape, ctx.size = z.shape, size
        height, width = z.shape[2] // size, z.shape[3] // size
        windows = z[:, :, : height * size, : width * size].unflatten(3, (width, size)).unflatten(2, (height, size))
        return windows.mean((3, 5))

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        batch, channels, rows, columns = ctx.shape
        out = images(gradient.new_zeros(rows, columns, channels, batch))
        height, width = (side * ctx.size for side in gradient.shape[2:])
        windows = out[:, :, :height, :width].unflatten(3, (-1, ctx.size)).unflatten(2, (-1, ctx.size))
        windows.copy_((gradient / ctx.size**2)[:, :, :, None, :, None].expand(windows.shape))
        return out, None


def average_pool(z: Tensor, size: int) -> Tensor:
    """`avg_pool2d(z, size)` whose gradient lies in memory with the batch innermost."""
    return _AveragePool.apply(z, size)


class Torus:
    """The s x s torus: `half` x `side` frequencies are kept, half = side // 2 + 1.

    Args:
        side: s.
        like: tells dtype and device.
    """

    def __init__(self, side: int, like: Tensor):
        self.side, self.half = side, side // 2 + 1
        self._matrices = _matrices(side, like.dtype, like.device)

    @property
    def frequencies(self) -> int:
        """How many frequencies are kept: those of a real signal, up to conjugates."""
        return self.half * self.side

    def analysis(self, x: Tensor, scratch: Workspace, name: str = "spectrum") -> Tensor:
        """(s, s, c, B) -> (frequencies, 2c, B), in a buffer of `scratch`.

        The frequency (k, l) is row k side + l; its first c rows are real parts, the others imaginary ones.
        """
        rows, columns, _, _ = self._matrices
        channels, batch = x.shape[2:]
        first = scratch.take("transform", (2 * self.half, self.side * channels * batch), x)
        torch.mm(rows, x.reshape(self.side, -1), out=first)
        shape = (self.half, 2 * self.side, channels * batch)
        out = scratch.take(name, shape, x)
        torch.bmm(columns.expand(self.half, -1, -1), first.view(shape), out=out)
        return out.view(self.frequencies, 2 * channels, batch)

    def synthesis(self, spectrum: Tensor, scratch: Workspace, out: Tensor | None = None) -> Tensor:
        """The inverse of `analysis`; into `out` (s, s, c, B), if it is given."""
        _, _, columns, rows = self._matrices
        channels, batch = spectrum.shape[1] // 2, spectrum.shape[2]
        shape = (self.half, 2 * self.side, channels * batch)
        first = scratch.take("transform", shape, spectrum)
        torch.bmm(columns.expand(self.half, -1, -1), spectrum.reshape(shape), out=first)
        if out is None:
            out = spectrum.new_empty(self.side, self.side, channels, batch)
        torch.mm(rows, first.view(2 * self.half, -1), out=out.view(self.side, -1))
        return out

    def correlation(self, y: Tensor, z: Tensor, kernel: int, scratch: Workspace) -> Tensor:
        """(o, i, kernel, kernel): sum over batch and pixels of y[o, x] z[i, x + t], t = -(kernel // 2), ...

        The gradient of <y, K z> with respect to K's kernel.
        """
        a, b = self.analysis(y, scratch), self.analysis(z, scratch, "second")
        out, into = a.shape[1] // 2, b.shape[1] // 2
        product = a @ b[:, :into].mT  # (f, 2 out, in)
        other = a @ b[:, into:].mT
        real, imaginary = product[:, :out] + other[:, out:], product[:, out:] - other[:, :out]
        weights = torch.full((self.half, 1), 2.0, dtype=y.dtype, device=y.device)
        weights[0] = 1
        if self.side % 2 == 0:
            weights[-1] = 1
        weights = weights.expand(-1, self.side).reshape(-1, 1, 1) / self.side**2
        phase = phases(self.points(), self.side, kernel, y) * weights
        both = torch.stack((real, imaginary), 1).reshape(2 * self.frequencies, -1)
        # y z^H has the phase exp(-i w t) of a kernel's transform exp(i w t) conjugated.
        return (phase.reshape(2 * self.frequencies, -1).T @ both).T.reshape(out, into, kernel, kernel)

    def points(self) -> Tensor:
        """The frequencies that are kept, (frequencies, 2), in order."""
        return torch.cartesian_prod(torch.arange(self.half), torch.arange(self.side))


def phases(points: Tensor, side: int, kernel: int, like: Tensor) -> Tensor:
    """(f, 2, kernel^2): cosine and sine of w t for frequencies `points` (f, 2) and a kernel's offsets t."""
    offsets = torch.arange(kernel) - kernel // 2
    offsets = torch.cartesian_prod(offsets, offsets)
    angle = (points @ offsets.T % side).double() * (2 * math.pi / side)  # reduced first: exact
    return torch.stack((angle.cos(), angle.sin()), 1).to(like)


def transfer(kernel: Tensor, points: Tensor, side: int) -> Tensor:
    """The transform of a circular cross-correlation (out, in, k, k) at `points`: complex (f, out, in).

    Differentiable in the kernel; one matrix product.
    """
    size = kernel.shape[-1]
    phase = phases(points, side, size, kernel).flatten(0, 1)
    both = phase @ kernel.permute(2, 3, 0, 1).reshape(size * size, -1)
    both = both.reshape(len(points), 2, *kernel.shape[:2])
    return torch.complex(both[:, 0], both[:, 1])


def planar(matrix: Tensor) -> Tensor:
    """Complex (..., a, b) as real (..., 2a, 2b), for vectors with real parts before imaginary ones."""
    *batch, rows, columns = matrix.shape
    out = torch.empty(*batch, 2, rows, 2, columns, dtype=matrix.real.dtype, device=matrix.device)
    out[..., 0, :, 0, :] = out[..., 1, :, 1, :] = matrix.real
    out[..., 1, :, 0, :] = matrix.imag
    torch.neg(matrix.imag, out=out[..., 0, :, 1, :])
    return out.view(*batch, 2 * rows, 2 * columns)


@cache
def _matrices(side: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of the analysis of rows (2h, s) and columns (2s, 2s), and of the synthesis of columns and rows (s, 2h)."""
    half = side // 2 + 1
    index = torch.arange(side)
    angle = (torch.outer(index, index) % side).double() * (2 * math.pi / side)
    cosine, sine = angle.cos(), angle.sin()
    rows = torch.stack((cosine[:half], -sine[:half]), 1).reshape(2 * half, side)
    # Columns: (2, s) real and imaginary planes in, (s, 2) out.
    columns = torch.stack((torch.cat((cosine, sine), 1), torch.cat((-sine, cosine), 1)), 1).reshape(2 * side, 2 * side)
    back_columns = columns.T / side
    weights = torch.full((half, 1), 2.0, dtype=torch.float64)
    weights[0] = 1
    if side % 2 == 0:
        weights[-1] = 1
    back_rows = (rows.view(half, 2, side) * weights[..., None] / side).reshape(2 * half, side).T
    return tuple(m.to(device=device, dtype=dtype).contiguous() for m in (rows, columns, back_columns, back_rows))
