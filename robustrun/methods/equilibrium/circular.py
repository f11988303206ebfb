r"""The monotone parameterisation of a circular convolution, in the Fourier domain.

On an s x s torus a convolution is one small matrix a frequency: W, its resolvent and its spectrum are exact
and cheap, $\hat W = (1 - m) I - g \hat A^H \hat A + h (\hat B - \hat B^H)$, with A and B divided by their norms.
Real inputs need only half of the frequencies. Source: Winston and Kolter (arXiv 2006.08591), sections 3.4 and E.
"""

import math

import torch
from torch import Tensor, nn

from robustrun.methods.equilibrium.splitting import State


def kernel_spectrum(kernel: Tensor, side: int) -> Tensor:
    """The transform of a circular cross-correlation (out, in, k, k): (side, side // 2 + 1, out, in) complex."""
    size = kernel.shape[-1]
    padded = kernel.new_zeros(*kernel.shape[:2], side, side)
    padded[..., :size, :size] = kernel.flip(-1, -2)
    centred = padded.roll((-(size // 2), -(size // 2)), (-2, -1))
    return torch.fft.rfft2(centred).permute(2, 3, 0, 1)


def to_spectrum(z: Tensor) -> Tensor:
    """(B, c, s, s) -> (s, s // 2 + 1, c, B), ready for one matrix product a frequency."""
    return torch.fft.rfft2(z).permute(2, 3, 1, 0)


def from_spectrum(spectrum: Tensor, side: int) -> Tensor:
    """The inverse of `to_spectrum`."""
    return torch.fft.irfft2(spectrum.permute(3, 2, 0, 1), s=(side, side))


def frequency_weights(side: int, like: Tensor) -> Tensor:
    """How often each frequency of the half spectrum counts in a sum over all of them: (1, side // 2 + 1)."""
    weights = torch.full((1, side // 2 + 1), 2.0, dtype=like.real.dtype, device=like.device)
    weights[:, 0] = 1
    if side % 2 == 0:
        weights[:, -1] = 1
    return weights


class CircularResolvent:
    """(I + alpha (I - W))^{-1}, one c x c Cayley matrix a frequency."""

    def __init__(self, spectrum: Tensor, side: int, alpha: float):
        self.alpha, self.side = alpha, side
        identity = torch.eye(spectrum.shape[-1], dtype=spectrum.dtype, device=spectrum.device)
        self.spectrum = 2 * torch.linalg.inv((1 + alpha) * identity - alpha * spectrum) - identity
        self._adjoint: Tensor | None = None

    def cayley(self, u: State, transpose: bool = False) -> State:
        if transpose and self._adjoint is None:
            self._adjoint = self.spectrum.mH.contiguous()
        matrix = self._adjoint if transpose else self.spectrum
        return (from_spectrum(matrix @ to_spectrum(u[0]), self.side),)

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
        if not margin > 0:
            raise ValueError(f"the margin must be positive, not {margin}")
        if kernel % 2 == 0 or kernel > side:
            raise ValueError(f"the kernel must be odd and fit into {side} pixels, not {kernel}")
        self.m, self.side = margin, side
        bound = 1 / math.sqrt(channels * kernel * kernel)
        self.A = nn.Parameter(torch.empty(channels, channels, kernel, kernel).uniform_(-bound, bound))
        self.B = nn.Parameter(torch.empty(channels, channels, kernel, kernel).uniform_(-bound, bound))
        self.g = nn.Parameter(torch.ones(()))
        self.h = nn.Parameter(torch.ones(()))

    def spectrum(self) -> Tensor:
        """W, a c x c matrix a frequency of the half spectrum, differentiable in the parameters."""
        a = kernel_spectrum(self.A / self.A.norm(), self.side)
        b = kernel_spectrum(self.B / self.B.norm(), self.side)
        identity = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
        # A negative g would lose monotonicity without a word: it is held at zero.
        return (1 - self.m) * identity - self.g.clamp_min(0) * (a.mH @ a) + self.h * (b - b.mH)

    def apply(self, z: State, transpose: bool = False) -> State:
        spectrum = self.spectrum()
        return (from_spectrum((spectrum.mH if transpose else spectrum) @ to_spectrum(z[0]), self.side),)

    @torch.no_grad()
    def factorize(self, alpha: float) -> CircularResolvent:
        return CircularResolvent(self.spectrum(), self.side, alpha)

    def inner(self, y: State, z: State) -> Tensor:
        """<y, W z>, differentiable in the parameters (Parseval: one product over the batch a frequency)."""
        with torch.no_grad():
            outer = to_spectrum(y[0]) @ to_spectrum(z[0]).mH
            outer = outer * (frequency_weights(self.side, outer) / self.side**2)[..., None, None]
        spectrum = self.spectrum()
        return (spectrum.real * outer.real).sum() + (spectrum.imag * outer.imag).sum()

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
