"""Monotone equilibrium networks as one would write them down first: what `equilibrium.py` measures against.

Full complex Fourier transforms between permutations, the inverse computed anew in every solve, one multiplication with
W an iteration for the residual that decides when to stop, one tracked step for autograd. The weights are those of a
network of this package, shared, so that both do the same.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustrun.roles import EquilibriumClassifier


def circular(z: Tensor, kernel: Tensor, stride: int = 1) -> Tensor:
    return F.conv2d(F.pad(z, (1, 1, 1, 1), mode="circular"), kernel, stride=stride)


def adjoint(kernel: Tensor) -> Tensor:
    return kernel.transpose(0, 1).flip(-1, -2)


def spectrum(kernel: Tensor, side: int) -> Tensor:
    """(side, side, out, in), complex."""
    padded = F.pad(kernel.flip(-1, -2), (0, side - 3, 0, side - 3)).roll((-1, -1), (-2, -1))
    return torch.fft.fft2(padded).permute(2, 3, 0, 1)


def forward_transform(z: Tensor) -> Tensor:
    return torch.fft.fft2(z).permute(2, 3, 1, 0)


def back_transform(spectrum: Tensor) -> Tensor:
    return torch.fft.ifft2(spectrum.permute(3, 2, 0, 1)).real


def identity(like: Tensor) -> Tensor:
    return torch.eye(like.shape[-1], dtype=like.dtype)


class _Attach(torch.autograd.Function):
    """The identity whose backward pass replaces the gradient g by g + W^T y."""

    @staticmethod
    def forward(ctx, network: "Plain", bias: tuple, z: tuple, *out: Tensor) -> tuple:
        ctx.network, ctx.z = network, z
        return tuple(tier.clone() for tier in out)

    @staticmethod
    def backward(ctx, *gradient: Tensor) -> tuple:
        moved = ctx.network.multiply(ctx.network.adjoint(gradient, ctx.z), True)
        return None, None, None, *(g + w for g, w in zip(gradient, moved, strict=True))


class Plain(nn.Module):
    """A network that stops where its residuals, forward and backward, are `targets` at most."""

    def __init__(self, network: EquilibriumClassifier):
        super().__init__()
        self.network, self.layer = network, network.layer
        self.operator, self.m = network.layer.operator, network.layer.operator.m
        self.targets = (1e-2, 1e-2)
        self.iterations = [0, 0]

    def forward(self, inputs: Tensor) -> Tensor:
        bias = self.layer.bias(self.network.embed(inputs))
        bias = tuple(tier.contiguous() for tier in bias)
        with torch.no_grad():
            z = self.solve(bias)
        out = tuple(self.masked(w + b) for w, b in zip(self.multiply(z), bias, strict=True))
        return self.network.readout(self.network.pool(_Attach.apply(self, bias, z, *out)[-1]))

    def masked(self, v: tuple) -> Tensor:
        mask = torch.zeros(v.shape[-2:])
        mask[1:-1, 1:-1] = 1
        return F.relu(v) * mask

    @torch.no_grad()
    def solve(self, bias: tuple) -> tuple:
        alpha = self.layer.settings.alpha
        inverse = self.inverse(alpha)
        z = u = tuple(torch.zeros_like(b) for b in bias)
        for iteration in range(1, 301):
            half = tuple(2 * z - u for z, u in zip(z, u, strict=True))
            middle = self.apply_inverse(inverse, tuple(u + alpha * b for u, b in zip(half, bias, strict=True)), False)
            u = tuple(2 * z - u for z, u in zip(middle, half, strict=True))
            z = tuple(self.masked(u) for u in u)
            f = tuple(self.masked(w + b) for w, b in zip(self.multiply(z), bias, strict=True))
            self.iterations[0] = iteration
            if distance(z, f) <= self.targets[0]:
                break
        return z

    @torch.no_grad()
    def adjoint(self, gradient: tuple, z: tuple) -> tuple:
        alpha = self.layer.settings.alpha
        inverse = self.inverse(alpha)
        slope = tuple((z > 0).float() for z in z)
        y = u = tuple(torch.zeros_like(g) for g in gradient)
        for iteration in range(1, 301):
            half = tuple(2 * y - u for y, u in zip(y, u, strict=True))
            middle = self.apply_inverse(inverse, half, True)
            u = tuple(2 * y - u for y, u in zip(middle, half, strict=True))
            y = tuple((u + alpha * g) * j for u, g, j in zip(u, gradient, slope, strict=True))
            moved = self.multiply(y, True)
            f = tuple((w + g) * j for w, g, j in zip(moved, gradient, slope, strict=True))
            self.iterations[1] = iteration
            if distance(y, f) <= self.targets[1]:
                break
        return y


def distance(z: tuple, f: tuple) -> float:
    """|z - f| / |z|, summed over tiers."""
    return sum(float((a - b).norm() / (1e-6 + a.norm())) for a, b in zip(z, f, strict=True))


class PlainConv(Plain):
    """One convolution; multiplied in the Fourier domain too, which is cheaper here than four convolutions."""

    def kernels(self) -> tuple[Tensor, Tensor]:
        operator = self.operator
        return operator.g.sqrt() * operator.A / operator.A.norm(), operator.h * operator.B / operator.B.norm()

    def spectra(self) -> Tensor:
        a, b = (spectrum(kernel, self.operator.side) for kernel in self.kernels())
        return (1 - self.m) * identity(a) - a.mH @ a + b - b.mH

    def multiply(self, z: tuple, transpose: bool = False) -> tuple:
        if torch.is_grad_enabled():  # the tracked step
            a, b = self.kernels()
            moved = circular(circular(z[0], a), adjoint(a))
            skew = circular(z[0], b) - circular(z[0], adjoint(b))
            return ((1 - self.m) * z[0] - moved + skew,)
        matrix = self.matrix  # of this solve
        return (back_transform((matrix.mH if transpose else matrix) @ forward_transform(z[0])),)

    def inverse(self, alpha: float) -> Tensor:
        self.matrix = matrix = self.spectra()
        return torch.linalg.inv((1 + alpha) * identity(matrix) - alpha * matrix)

    def apply_inverse(self, inverse: Tensor, u: tuple, transpose: bool) -> tuple:
        return (back_transform((inverse.mH if transpose else inverse) @ forward_transform(u[0])),)


def fold(y: Tensor) -> Tensor:
    half = y.shape[0] // 2
    return y.unflatten(1, (2, half)).unflatten(0, (2, half)).mean((0, 2))


def tile(y: Tensor) -> Tensor:
    return y.repeat(2, 2, 1, 1)


class PlainMultiTier(Plain):
    """Several resolutions: spatial convolutions for W, Woodbury's identity in the Fourier domain for the inverse."""

    def kernels(self) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        o = self.operator
        return (
            [g.sqrt() * A / A.norm() for g, A in zip(o.g, o.A, strict=True)],
            [h * B / B.norm() for h, B in zip(o.h, o.B, strict=True)],
            [g.sqrt() * N / N.norm() for g, N in zip(o.gn, o.N, strict=True)],
        )

    def multiply(self, z: tuple, transpose: bool = False) -> tuple:
        a, b, n = self.kernels()
        sign = -1 if transpose else 1
        out = []
        for i, tier in enumerate(z):
            skew = circular(tier, b[i]) - circular(tier, adjoint(b[i]))
            moved = (1 - self.m) * tier - circular(circular(tier, a[i]), adjoint(a[i])) + sign * skew
            if i < len(n):
                moved = moved - self.up(circular(tier, n[i], 2), n[i])
            if not transpose and i:
                moved = moved - 2 * circular(F.pad(circular(z[i - 1], n[i - 1], 2), (0, 1, 0, 1)), adjoint(a[i]))
            if transpose and i < len(n):
                moved = moved - 2 * self.up(circular(z[i + 1], a[i + 1])[..., :-1, :-1], n[i])
            out.append(moved)
        return tuple(out)

    def up(self, y: Tensor, kernel: Tensor) -> Tensor:
        """The adjoint of a strided circular convolution."""
        spread = y.new_zeros(*y.shape[:2], 2 * y.shape[2], 2 * y.shape[3])
        spread[..., ::2, ::2] = y
        return circular(spread, adjoint(kernel))

    def inverse(self, alpha: float) -> list:
        a, b, n = self.kernels()
        parts = []
        for i, side in enumerate(self.operator.sides):
            sa, sb = spectrum(a[i], side), spectrum(b[i], side)
            d = torch.linalg.inv((1 + alpha * self.m) * identity(sa) + alpha * (sa.mH @ sa - sb + sb.mH))
            if i == len(n):
                parts.append((d, sa, None, None))
                continue
            p = math.sqrt(alpha) * spectrum(n[i], side)
            inner = fold(p @ d @ p.mH)
            parts.append((d, sa, p, torch.linalg.inv(identity(inner) + inner)))
        return parts

    def apply_inverse(self, inverse: list, u: tuple, transpose: bool) -> tuple:
        alpha, out, come = self.layer.settings.alpha, [None] * len(u), None
        for i in reversed(range(len(u))) if transpose else range(len(u)):
            d, sa, p, h = inverse[i]
            r = forward_transform(u[i])
            if come is not None and transpose:
                r = r - 2 * math.sqrt(alpha) * (p.mH @ tile(forward_transform(come[..., :-1, :-1])))
            elif come is not None:
                r = r - 2 * math.sqrt(alpha) * (sa.mH @ forward_transform(F.pad(come, (0, 1, 0, 1))))
            x = self.solve_tier(d, p, h, r, transpose)
            out[i] = back_transform(x)
            if transpose and i:
                come = back_transform(sa @ x)
            elif not transpose and p is not None:
                come = back_transform(fold(p @ x))
        return tuple(out)

    def solve_tier(self, d: Tensor, p: Tensor | None, h: Tensor | None, r: Tensor, transpose: bool) -> Tensor:
        if transpose:
            d, h = d.mH, None if h is None else h.mH
        x = d @ r
        return x if p is None else x - d @ (p.mH @ tile(h @ fold(p @ x)))
