r"""Activations that are proximal operators, as splitting methods need them.

An activation $\sigma$ is $\mathrm{prox}_f$ of a convex f; a splitting step of length alpha needs
$\mathrm{prox}_{\alpha f}$ (equal to $\sigma$ for every alpha only where f is the indicator of a cone, as for ReLU),
and the derivative J in [0, 1] of $\sigma$. Source: Winston and Kolter (arXiv 2006.08591), sections 3 and A.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Activation:
    """`prox(v, alpha)` = argmin_z 1/2 (z - v)^2 + alpha f(z); `slope(z)` = J where the activation's output is z.

    `part(first, last)`, if it is not the same everywhere, is the activation of these rows of an image.
    """

    prox: Callable[[Tensor, float], Tensor]
    slope: Callable[[Tensor], Tensor]
    part: Callable[[int, int], "Activation"] | None = None

    def __call__(self, v: Tensor) -> Tensor:
        """The activation itself, prox_f."""
        return self.prox(v, 1.0)

    def rows(self, first: int, last: int) -> "Activation":
        """The activation of a slice of an image's rows."""
        return self if self.part is None else self.part(first, last)


Activations = tuple[Activation, ...]
"""One a tier."""


def each_tier(activation: Activation | Activations, tiers: int) -> Activations:
    """One activation for each of the tiers: one alone stands for all."""
    return activation if isinstance(activation, tuple) else (activation,) * tiers


def backward_prox(v: Tensor, slope: Tensor, alpha: float) -> Tensor:
    """The proximal step of the backward problem, elementwise: v / (1 + alpha D), D = (1 - J) / J, and 0 where J = 0.

    The denominator is that of the paper's theorem 3; its printed algorithms 3 and 4 have 1 + alpha (1 + D), which
    gives wrong gradients.
    """
    if alpha == 1.0:
        return slope * v
    return slope * v / (slope + alpha * (1 - slope))


relu = Activation(lambda v, alpha: v.clamp_min(0), lambda z: (z > 0).to(z.dtype))


def leaky_relu(a: float) -> Activation:
    """Leaky ReLU with slope 0 < a <= 1 for negative inputs.

    Raises:
        ValueError: a is not in (0, 1].
    """
    if not 0 < a <= 1:
        raise ValueError(f"the slope of a leaky ReLU must lie in (0, 1], not {a}")

    def prox(v: Tensor, alpha: float) -> Tensor:
        return torch.where(v >= 0, v, v / (1 + alpha * (1 - a) / a))

    return Activation(prox, lambda z: torch.where(z > 0, torch.ones_like(z), torch.full_like(z, a)))


def masked(activation: Activation, mask: Tensor) -> Activation:
    """The activation where `mask` (rows, columns) is 1, and zero where it is 0: a projection, so still a prox."""
    return Activation(
        lambda v, alpha: activation.prox(v, alpha).mul_(mask),
        lambda z: activation.slope(z).mul_(mask),
        lambda first, last: masked(activation.rows(first, last), mask[first:last]),
    )


def _newton(sigma: Callable[[Tensor], Tensor], derivative: Callable[[Tensor], Tensor]):
    """prox of f for a bounded, smooth sigma: solves (1 - alpha) z + alpha sigma^{-1}(z) = v.

    With z = sigma(p) the equation is (1 - alpha) sigma(p) + alpha p = v, increasing in p since sigma' <= 1. Newton
    steps that leave the bracket are replaced by its middle.
    """

    def prox(v: Tensor, alpha: float) -> Tensor:
        if alpha == 1.0:
            return sigma(v)
        reach = abs(1 - alpha)  # |sigma| <= 1
        low, high = (v - reach) / alpha, (v + reach) / alpha
        p = v.clamp(low, high)
        for _ in range(60):
            value = (1 - alpha) * sigma(p) + alpha * p - v
            low, high = torch.where(value < 0, p, low), torch.where(value > 0, p, high)
            step = p - value / ((1 - alpha) * derivative(p) + alpha)
            following = torch.where((step >= low) & (step <= high), step, (low + high) / 2)
            settled = (following - p).abs() <= 4 * torch.finfo(v.dtype).eps * (1 + following.abs())
            p = following
            if settled.all():
                break
        return sigma(p)

    return prox


tanh = Activation(_newton(torch.tanh, lambda p: 1 - torch.tanh(p) ** 2), lambda z: 1 - z * z)
sigmoid = Activation(_newton(torch.sigmoid, lambda p: torch.sigmoid(p) * (1 - torch.sigmoid(p))), lambda z: z * (1 - z))

ACTIVATIONS: dict[str, Activation] = {"relu": relu, "tanh": tanh, "sigmoid": sigmoid}
