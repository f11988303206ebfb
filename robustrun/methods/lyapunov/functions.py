"""Lyapunov functions: positive definite, with V(0) = 0 and grad V(0) = 0 exact, and their gradients in closed form."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from robustrun.methods.lyapunov.activations import Activation, LeakyRelu, SmoothRelu
from robustrun.methods.lyapunov.networks import ConvexNetwork, RiseNetwork, Weights
from robustrun.methods.lyapunov.warps import Warp


class Lyapunov(nn.Module):
    """A candidate V: R^n -> R with V(0) = 0 and V > 0 elsewhere.

    `stationary_only_at_zero` says whether the construction excludes other stationary points, which is what turns
    the projection into a proof of stability; `shrinkable` whether V is convex in the coordinates of `convex_form`,
    in which a state can be moved towards the origin until V is as small as wanted.
    """

    convex = False
    stationary_only_at_zero = False
    shrinkable = False

    def prepare(self) -> Any:
        """What depends on the parameters alone; pass it to `value_and_gradient` to save work in roll-outs."""
        return None

    def value_and_gradient(self, x: Tensor, prepared: Any = None) -> tuple[Tensor, Tensor]:
        """x (B, n) -> V(x) of shape (B,) and its gradient (B, n)."""
        raise NotImplementedError

    def forward(self, x: Tensor, prepared: Any = None) -> Tensor:
        """x (B, n) -> V(x) of shape (B,)."""
        return self.value_and_gradient(x, prepared)[0]

    def convex_form(self, x: Tensor) -> tuple["Lyapunov", Tensor]:
        """A convex function h and coordinates y (B, n) of the states with V(x) = h(y); y is 0 at the origin."""
        return self, x

    def from_convex_form(self, y: Tensor) -> Tensor:
        """The states x (B, n) whose coordinates are y."""
        return y


class KnownLyapunov(Lyapunov):
    """A V that is known, such as a physical energy: a function from states (B, n) to V (B,) and gradient (B, n).

    Where it is not convex, stationary points away from the origin are the user's concern, and no step is safe.
    """

    def __init__(self, value_and_gradient: Callable[[Tensor], tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self._value_and_gradient = value_and_gradient

    def value_and_gradient(self, x: Tensor, prepared: Any = None) -> tuple[Tensor, Tensor]:
        return self._value_and_gradient(x)


class Prepared(NamedTuple):
    """What V computes once while weights stand still: the network's own, and L^T L (n, n) of the quadratic part."""

    network: Weights
    quadratic: Tensor | None


class WrappedLyapunov(Lyapunov):
    """V(x) = s(g(x) - g(0)) + epsilon |x|^2 with s a smoothed ReLU of width `outer_width` (0: the plain ReLU).

    `centred` subtracts the tangent of g at the origin inside s, so that the convex part has its minimum there;
    `quadratic` adds |Lx|^2 with a free matrix L, the identity at first. With a convex g all forms are convex,
    2 epsilon-strongly so, and the origin is the only stationary point.

    Source: Manek and Kolter (2019); `centred` and `quadratic` are convexity-preserving variants.

    Raises:
        ValueError: epsilon is negative or not finite, or `centred` meets a network that is not convex.
    """

    def __init__(
        self,
        network: RiseNetwork,
        dimension: int,
        *,
        epsilon: float = 1e-3,
        outer_width: float = 1.0,
        centred: bool = False,
        quadratic: bool = False,
    ) -> None:
        super().__init__()
        if not epsilon >= 0 or not math.isfinite(epsilon):
            raise ValueError(f"epsilon must be finite and at least 0, not {epsilon}")
        if centred and not network.convex:
            raise ValueError("only a convex network lies above its tangent: centred=true needs one")
        self.network = network
        self.epsilon = epsilon
        self.outer: Activation = SmoothRelu(outer_width) if outer_width > 0 else LeakyRelu(0.0)
        self.centred = centred
        self.quadratic = nn.Parameter(torch.eye(dimension)) if quadratic else None
        self.stationary_only_at_zero = network.convex and epsilon > 0
        self.convex = self.shrinkable = network.convex

    def prepare(self) -> Prepared:
        gram = None if self.quadratic is None else self.quadratic.T @ self.quadratic
        return Prepared(self.network.weights(), gram)

    def value_and_gradient(self, x: Tensor, prepared: Prepared | None = None) -> tuple[Tensor, Tensor]:
        prepared = self.prepare() if prepared is None else prepared
        rise, gradient = self.network(x, prepared.network)
        if self.centred:
            tangent = prepared.network.gradient_at_zero
            rise, gradient = rise - x @ tangent, gradient - tangent
        radial = self._radial(x, prepared)
        value = self.outer(rise) + (radial * x).sum(1)
        return value, torch.addcmul(2 * radial, self.outer.slope(rise).unsqueeze(1), gradient)

    def forward(self, x: Tensor, prepared: Prepared | None = None) -> Tensor:
        prepared = self.prepare() if prepared is None else prepared
        rise = self.network.rise(x, prepared.network)
        if self.centred:
            rise = rise - x @ prepared.network.gradient_at_zero
        return self.outer(rise) + (self._radial(x, prepared) * x).sum(1)

    def _radial(self, x: Tensor, prepared: Prepared) -> Tensor:
        """Half the gradient of the quadratic part of V."""
        return self.epsilon * x if prepared.quadratic is None else self.epsilon * x + x @ prepared.quadratic

    def quadratic_upper_bound(self) -> Tensor:
        """A constant C with V(x) <= C |x|^2; then |x(t)| <= sqrt(C / epsilon) exp(-alpha t / 2) |x(0)|.

        Raises:
            ValueError: the outer ReLU is not smoothed, and no such constant exists.
        """
        if not isinstance(self.outer, SmoothRelu):
            raise ValueError("without a smoothed outer ReLU, V grows linearly at the origin: no quadratic bound")
        slope = self.network.lipschitz_bound()
        if self.centred:
            slope = slope + torch.linalg.vector_norm(self.network.weights().gradient_at_zero)
        bound = slope**2 / (2 * self.outer.width) + self.epsilon
        if self.quadratic is not None:
            bound = bound + torch.linalg.matrix_norm(self.quadratic, 2) ** 2
        return bound


class WarpedLyapunov(Lyapunov):
    """V(x) = h(y) with y = F(x) - F(0) and an invertible, differentiable F: level sets are warped convex sets.

    With `radial_epsilon` > 0 the term epsilon |x|^2 is added outside the warp, as published; then V may have
    stationary points away from the origin. Without it (h brings its own epsilon |y|^2) there are none.

    Source: Manek and Kolter (2019).
    """

    def __init__(self, inner: Lyapunov, warp: Warp, *, radial_epsilon: float = 0.0) -> None:
        super().__init__()
        self.inner, self.warp, self.radial_epsilon = inner, warp, radial_epsilon
        self.stationary_only_at_zero = inner.stationary_only_at_zero and warp.invertible and radial_epsilon == 0
        self.shrinkable = inner.shrinkable and warp.invertible and radial_epsilon == 0

    def prepare(self) -> Any:
        return self.inner.prepare()

    def _warped(self, x: Tensor) -> tuple[Tensor, Any]:
        y, tape = self.warp.forward_with_tape(x)
        offset = y - self.warp(torch.zeros_like(x[:1]))
        # F(0) of a batch row and of a single row may differ by a rounding; the origin must map to the origin.
        return torch.where((x == 0).all(1, keepdim=True), torch.zeros_like(offset), offset), tape

    def value_and_gradient(self, x: Tensor, prepared: Any = None) -> tuple[Tensor, Tensor]:
        y, tape = self._warped(x)
        value, gradient = self.inner.value_and_gradient(y, prepared)
        gradient = self.warp.pull_back(tape, gradient)
        if self.radial_epsilon:
            value = value + self.radial_epsilon * (x * x).sum(1)
            gradient = gradient + 2 * self.radial_epsilon * x
        return value, gradient

    def forward(self, x: Tensor, prepared: Any = None) -> Tensor:
        value = self.inner(self._warped(x)[0], prepared)
        return value + self.radial_epsilon * (x * x).sum(1) if self.radial_epsilon else value

    def convex_form(self, x: Tensor) -> tuple[Lyapunov, Tensor]:
        return self.inner, self._warped(x)[0]

    def from_convex_form(self, y: Tensor) -> Tensor:
        return self.warp.inverse(y + self.warp(torch.zeros_like(y[:1])))


def leaky_lyapunov(
    dimension: int, hidden: tuple[int, ...] = (200, 200), *, leak: float = 0.3, epsilon: float = 1e-2
) -> WrappedLyapunov:
    """The V of the video models: a bias-free convex network with leaky ReLUs, ReLU(g(x)) + epsilon |x|^2.

    Convex, but only piecewise smooth. The couplings between hidden layers carry the leak as their scale.
    """
    scales = (*[leak] * (len(hidden) - 1), 1.0)
    network = ConvexNetwork(dimension, hidden, LeakyRelu(leak), bias=False, scales=scales)
    return WrappedLyapunov(network, dimension, epsilon=epsilon, outer_width=0.0)
