r"""The monotone parameterisation of a circular convolution, in the Fourier domain.

On an s x s torus a convolution is one small matrix a frequency: W, its resolvent and its spectrum are exact
and cheap, $\hat W = (1 - m) I - g \hat A^H \hat A + h (\hat B - \hat B^H)$, with A and B divided by their norms.
Real inputs need only half of the frequencies. Source: Winston and Kolter (arXiv 2006.08591), sections 3.4 and E.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustrun.methods.equilibrium.grid import Torus, images, pixels, planar, transfer
from robustrun.methods.equilibrium.splitting import State
from robustrun.methods.equilibrium.workspace import Workspace


def monotone_kernel(a: Tensor, b: Tensor, margin: float, g: Tensor, h: Tensor) -> Tensor:
    """The kernel (c, c, 2k - 1, 2k - 1) of (1 - m) I - g A^T A + h (B - B^T), for kernels a, b (c, c, k, k).

    A negative g would lose monotonicity without a word: it is held at zero.
    """
    reach = a.shape[-1] - 1
    gram = F.conv2d(a.transpose(0, 1), a.transpose(0, 1), padding=reach).transpose(0, 1)
    skew = F.pad(b, [reach // 2] * 4)
    skew = skew - skew.transpose(0, 1).flip(-1, -2)
    kernel = h * skew - g.clamp_min(0) * gram
    centre = torch.zeros_like(kernel)
    centre[:, :, reach, reach] = (1 - margin) * torch.eye(len(a), dtype=a.dtype, device=a.device)
    return kernel + centre


def uniform_kernel(out: int, into: int, kernel: int) -> nn.Parameter:
    """A convolution's default initialisation."""
    bound = 1 / math.sqrt(into * kernel * kernel)
    return nn.Parameter(torch.empty(out, into, kernel, kernel).uniform_(-bound, bound))


def check(margin: float, kernel: int, side: int) -> None:
    """Raises: ValueError: the margin is not positive, or the kernel is even or larger than the image."""
    if not margin > 0:
        raise ValueError(f"the margin must be positive, not {margin}")
    if kernel % 2 == 0 or kernel > side:
        raise ValueError(f"the kernel must be odd and fit into {side} pixels, not {kernel}")


class CircularMap:
    """A circular convolution for many applications: one real (2c, 2c) matrix a frequency."""

    def __init__(self, spectrum: Tensor, side: int, scratch: Workspace):
        self.blocks, self._scratch = planar(spectrum), scratch
        self._torus = Torus(side, self.blocks)

    def __call__(self, u: State, transpose: bool = False, out: State | None = None) -> State:
        x = pixels(u[0])
        spectrum = self._torus.analysis(x, self._scratch)
        moved = self._scratch.take("moved", spectrum.shape, x)
        torch.bmm(self.blocks.mT if transpose else self.blocks, spectrum, out=moved)
        return (images(self._torus.synthesis(moved, self._scratch, None if out is None else pixels(out[0]))),)


class CircularResolvent:
    """(I + alpha (I - W))^{-1} as its Cayley matrices 2V - I, complex (f, c, c)."""

    def __init__(self, spectrum: Tensor, side: int, alpha: float, scratch: Workspace):
        self.alpha = alpha
        identity = torch.eye(spectrum.shape[-1], dtype=spectrum.dtype, device=spectrum.device)
        self.spectrum = 2 * torch.linalg.inv((1 + alpha) * identity - alpha * spectrum) - identity
        self.cayley = CircularMap(self.spectrum, side, scratch)

    def contraction(self) -> Tensor:
        """|C|_2, the largest over frequencies."""
        return torch.linalg.matrix_norm(self.spectrum, 2).max()


class CircularMonotone(nn.Module):
    """W on images (B, c, s, s), circular, monotone by construction.

    Args:
        channels: c.
        side: s.
        kernel: odd size of A's and B's kernels; W's is twice that less one.
        margin: m > 0.

    Raises:
        ValueError: the margin is not positive, or the kernel is even or larger than the image.
    """

    def __init__(self, channels: int, side: int, kernel: int = 3, margin: float = 1.0):
        super().__init__()
        check(margin, kernel, side)
        self.m, self.side = margin, side
        self.A = uniform_kernel(channels, channels, kernel)
        self.B = uniform_kernel(channels, channels, kernel)
        self.g = nn.Parameter(torch.ones(()))
        self.h = nn.Parameter(torch.ones(()))
        self._scratch = Workspace()

    def kernel(self) -> Tensor:
        """W's own kernel, differentiable in the parameters."""
        return monotone_kernel(self.A / self.A.norm(), self.B / self.B.norm(), self.m, self.g, self.h)

    def spectrum(self) -> Tensor:
        """W, a complex c x c matrix a frequency of the half spectrum, (f, c, c)."""
        kernel = self.kernel()
        return transfer(kernel, Torus(self.side, kernel).points(), self.side)

    def apply(self, z: State, transpose: bool = False) -> State:
        return self.fixed()(z, transpose)

    @torch.no_grad()
    def fixed(self) -> CircularMap:
        return CircularMap(self.spectrum(), self.side, self._scratch)

    @torch.no_grad()
    def factorize(self, alpha: float) -> CircularResolvent:
        return CircularResolvent(self.spectrum(), self.side, alpha, self._scratch)

    def inner(self, y: State, z: State) -> Tensor:
        """<y, W z>, differentiable in the parameters (Parseval: one product over the batch a frequency)."""
        kernel = self.kernel()
        with torch.no_grad():
            torus = Torus(self.side, kernel)
            correlation = torus.correlation(pixels(y[0]), pixels(z[0]), kernel.shape[-1], self._scratch)
        return (kernel * correlation).sum()

    @torch.no_grad()
    def monotonicity(self) -> Tensor:
        """The smallest eigenvalue of the symmetric part of I - W, exact: the smallest over frequencies."""
        spectrum = self.spectrum().to(torch.complex128)
        identity = torch.eye(spectrum.shape[-1], dtype=spectrum.dtype, device=spectrum.device)
        return torch.linalg.eigvalsh(identity - (spectrum + spectrum.mH) / 2).min()

    @torch.no_grad()
    def lipschitz(self) -> Tensor:
        """L = |I - W|_2, the largest over frequencies."""
        spectrum = self.spectrum().to(torch.complex128)
        identity = torch.eye(spectrum.shape[-1], dtype=spectrum.dtype, device=spectrum.device)
        return torch.linalg.matrix_norm(identity - spectrum, 2).max()


def border_mask(side: int, width: int = 1) -> Tensor:
    """(side, side): one inside, zero on the border. With it a circular 5 x 5 kernel does not wrap around."""
    mask = torch.zeros(side, side)
    mask[width : side - width, width : side - width] = 1
    return mask
