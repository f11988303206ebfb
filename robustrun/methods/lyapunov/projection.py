"""The projection that makes any vector field decrease a Lyapunov function."""

import torch
from torch import Tensor

# A squared gradient below this is treated as zero: above it, its reciprocal and its square root are normal numbers.
_TINY = {torch.float64: 1e-200}


def _direction(gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The unit gradient, its norm (B, 1), and where it is large enough to be divided by (B, 1)."""
    squared = (gradient * gradient).sum(1, keepdim=True)
    nonzero = squared > _TINY.get(gradient.dtype, 1e-24)
    # Both branches of the `where` must be finite, or the unused one would put a NaN into the derivative.
    norm = torch.where(nonzero, squared, 1.0).sqrt()
    return gradient / norm, norm, nonzero


def project(nominal: Tensor, value: Tensor, gradient: Tensor, alpha: float) -> Tensor:
    """The closest vector to `nominal` (B, n) with <gradient, v> <= -alpha value; zero where the gradient is zero.

    f = f^ - p relu(<p, f^> + alpha V / |grad V|) with p = grad V / |grad V|. For a convex V the correction is at
    most |f^| + alpha |x|, however small the gradient. Where the constraint holds already, f is f^ itself.

    Args:
        nominal: the free vector field f^ at the states, (B, n).
        value: V at the states, (B,).
        gradient: its gradient there, (B, n).
        alpha: the rate at which V must decay, per unit of time.

    Source: Manek and Kolter (2019).
    """
    unit, norm, nonzero = _direction(gradient)
    excess = torch.relu((unit * nominal).sum(1, keepdim=True) + alpha * value.unsqueeze(1) / norm)
    return torch.where(nonzero, nominal - unit * excess, 0.0)


def project_unit_gradient(nominal: Tensor, value: Tensor, gradient: Tensor, alpha: float) -> Tensor:
    """As `project` with alpha V not divided by |grad V|: dV/dt <= -alpha V |grad V|, which is not exponential."""
    unit, _, nonzero = _direction(gradient)
    excess = torch.relu((unit * nominal).sum(1, keepdim=True) + alpha * value.unsqueeze(1))
    return torch.where(nonzero, nominal - unit * excess, 0.0)
