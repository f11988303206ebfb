r"""What the monotonicity of an equilibrium layer proves of its output.

With I - W strongly monotone with m, |z*(b) - z*(b')| <= |b - b'| / m. Hence a bound on the error of any approximate z,
and l2 radii within which a prediction cannot change. Source: Pabbaraju, Winston and Kolter, ICLR 2021.
"""

import torch
from torch import Tensor

from robustrun.methods.equilibrium.activations import Activation, Activations, each_tier
from robustrun.methods.equilibrium.splitting import LinearOperator, State


def refine(
    operator: LinearOperator, z: State, bias: State, activation: Activation | Activations, margin: float
) -> tuple[State, Tensor]:
    """f = sigma(W z + b) for an approximate equilibrium z, and a proved bound (B,) on |f - z*|.

    f is the exact equilibrium for the bias b + W (z - f), so it is |W (z - f)| / m away at most.

    Args:
        margin: m > 0, a lower bound on the monotonicity of I - W.
    """
    linear, tiers = operator.fixed(), each_tier(activation, len(z))
    f = tuple(tier(w + b) for tier, w, b in zip(tiers, linear(z), bias, strict=True))
    gap = linear(tuple(a - b for a, b in zip(z, f, strict=True)))
    squares = torch.stack([tier.flatten(1).square().sum(1) for tier in gap]).sum(0)
    return f, squares.sqrt() / margin


def certified_radius(logits: Tensor, readout: Tensor, error: Tensor, lipschitz: float) -> Tensor:
    """The l2 distance (B,) of inputs within which the largest logit stays the largest; 0 where nothing is proved.

    Args:
        logits: (B, classes), at an approximate z; float64, its rounding is accounted for.
        readout: (classes, k), with logits = readout z + constant.
        error: (B,), by how much z may be off.
        lipschitz: how far z moves at most for a unit of distance of inputs.
    """
    top = logits.argmax(1)
    distance = torch.linalg.vector_norm(readout[:, None] - readout, dim=2)[top]  # (B, classes)
    gap = logits.gather(1, top[:, None]) - logits
    gap = gap - 1e-9 * (1 + logits.abs().amax(1, keepdim=True))  # rounding in float64, many times over
    others = torch.ones_like(gap, dtype=torch.bool).scatter_(1, top[:, None], False)
    # Classes with equal weights keep their gap whatever z does: no bound, or no radius at all.
    reach = torch.where(distance > 0, gap / distance, torch.where(gap > 0, torch.inf, -torch.inf))
    least = torch.where(others, reach, torch.inf).amin(1)
    radius = (least - error) / lipschitz * (1 - 1e-9)
    return torch.where(radius > 0, radius, 0.0)  # NaN proves nothing
