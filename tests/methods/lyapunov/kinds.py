"""The Lyapunov functions that the tests run over, in float64."""

import torch

from robustrun.methods.lyapunov import (
    ConvexNetwork,
    CouplingWarp,
    LeakyMaps,
    LeakyRelu,
    Lyapunov,
    PlainNetwork,
    SmoothRelu,
    WarpedLyapunov,
    WrappedLyapunov,
    leaky_lyapunov,
)


def convex_network(n: int, width: float = 1.0, hidden: tuple[int, ...] = (20, 20)) -> ConvexNetwork:
    return ConvexNetwork(n, hidden, SmoothRelu(width))


def scramble(lyapunov: Lyapunov) -> Lyapunov:
    """Move zero-initialised layers away from the identity."""
    with torch.no_grad():
        for parameter in lyapunov.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return lyapunov


def warped(n: int, radial_epsilon: float = 0.0) -> WarpedLyapunov:
    inner = WrappedLyapunov(convex_network(n), n, epsilon=0.1)
    return scramble(WarpedLyapunov(inner, CouplingWarp(n, units=16), radial_epsilon=radial_epsilon))


# Convex in the state.
CONVEX = {
    "wrap": lambda n: WrappedLyapunov(convex_network(n), n, epsilon=0.01),
    "sharp": lambda n: WrappedLyapunov(convex_network(n, 5e-3), n, epsilon=1e-3),
    "centred": lambda n: WrappedLyapunov(convex_network(n), n, epsilon=0.01, centred=True),
    "quadratic": lambda n: WrappedLyapunov(convex_network(n), n, epsilon=0.01, centred=True, quadratic=True),
    "deep": lambda n: WrappedLyapunov(convex_network(n, hidden=(12, 7, 9)), n, epsilon=0.01),
    "shallow": lambda n: WrappedLyapunov(convex_network(n, hidden=(12,)), n, epsilon=0.01),
    "relu": lambda n: WrappedLyapunov(ConvexNetwork(n, (20, 20), LeakyRelu(0.0)), n, epsilon=0.01),
    "leaky": lambda n: leaky_lyapunov(n, (20, 20)),
}

OTHERS = {
    "plain": lambda n: WrappedLyapunov(PlainNetwork(n, (20, 20)), n, epsilon=0.01),
    "warped": warped,
    "warped_outside": lambda n: warped(n, radial_epsilon=0.1),
    "folded": lambda n: WarpedLyapunov(leaky_lyapunov(n, (20, 20)), LeakyMaps(n, units=8), radial_epsilon=0.01),
}

ALL = CONVEX | OTHERS


def nominal(n: int, hidden: int = 30) -> torch.nn.Module:
    layers = torch.nn
    return layers.Sequential(
        layers.Linear(n, hidden), layers.ReLU(), layers.Linear(hidden, hidden), layers.ReLU(), layers.Linear(hidden, n)
    )
