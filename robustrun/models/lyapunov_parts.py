"""The parts that models of stable dynamics are configured from: networks and Lyapunov functions."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, model_validator
from torch import nn

from robustrun.methods.dynamics import FreeField, VectorField
from robustrun.methods.lyapunov import (
    ConvexNetwork,
    CouplingWarp,
    LeakyMaps,
    LeakyRelu,
    Lyapunov,
    PlainNetwork,
    ScalarWarp,
    SmoothRelu,
    StableDynamics,
    WarpedLyapunov,
    WrappedLyapunov,
)
from robustrun.numbers import NonNegative, Positive, PositiveInt, Probability


def mlp(dimension: int, hidden: tuple[int, ...]) -> nn.Sequential:
    """A ReLU network R^n -> R^n."""
    layers: list[nn.Module] = []
    for columns, rows in zip((dimension, *hidden), hidden, strict=False):
        layers += [nn.Linear(columns, rows), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(hidden[-1] if hidden else dimension, dimension))


class LyapunovConfig(BaseModel):
    """A Lyapunov function V(x) = s(g(x) - g(0)) + epsilon |x|^2 and its variants."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    network: Literal["convex", "relu", "leaky", "plain"] = "convex"  # g; see conf/model/stable_dynamics.yaml
    hidden: tuple[PositiveInt, ...] = (60, 60)
    inner_width: Positive = 1.0  # of the smoothed ReLUs in a convex g, or at the end of a plain one
    outer_width: NonNegative = 1.0  # of s; 0 is the plain ReLU
    leak: Probability = 0.3  # of a leaky g
    epsilon: Positive = 1e-3
    centred: bool = False
    quadratic: bool = False
    warp: Literal["none", "inside", "outside", "folded"] = "none"
    warp_couplings: PositiveInt = 4
    warp_units: PositiveInt = 64

    @model_validator(mode="after")
    def _centred_needs_convexity(self) -> "LyapunovConfig":
        if self.centred and self.network == "plain":
            raise ValueError(
                "only a convex network lies above its tangent: centred=true does not go with network=plain"
            )
        return self

    @property
    def shrinkable(self) -> bool:
        """Is V convex in coordinates in which a state can be moved to the origin?"""
        return self.network != "plain" and self.warp in ("none", "inside")

    def build(self, dimension: int) -> Lyapunov:
        """V on R^n."""
        radial = self.epsilon if self.warp in ("outside", "folded") else 0.0
        inner = WrappedLyapunov(
            self._network(dimension),
            dimension,
            epsilon=0.0 if radial else self.epsilon,
            outer_width=self.outer_width,
            centred=self.centred,
            quadratic=self.quadratic,
        )
        if self.warp == "none":
            return inner
        if self.warp == "folded":
            warp = LeakyMaps(dimension, units=self.warp_units)
        elif dimension == 1:
            warp = ScalarWarp(1, units=self.warp_units)
        else:
            warp = CouplingWarp(dimension, couplings=self.warp_couplings, units=self.warp_units)
        return WarpedLyapunov(inner, warp, radial_epsilon=radial)

    def _network(self, dimension: int) -> ConvexNetwork | PlainNetwork:
        match self.network:
            case "convex":
                return ConvexNetwork(dimension, self.hidden, SmoothRelu(self.inner_width))
            case "relu":
                return ConvexNetwork(dimension, self.hidden, LeakyRelu(0.0))
            case "leaky":
                scales = (*[self.leak] * (len(self.hidden) - 1), 1.0)
                return ConvexNetwork(dimension, self.hidden, LeakyRelu(self.leak), bias=False, scales=scales)
            case "plain":
                return PlainNetwork(dimension, self.hidden, self.inner_width)


class FieldConfig(BaseModel):
    """A vector field: a free network, or the same projected so that V decreases."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    stable: bool = True
    hidden: tuple[PositiveInt, ...] = (100, 100)  # of the nominal network, ReLU
    centre: bool = False
    alpha: NonNegative = 1e-3
    projection: Literal["euclidean", "unit_gradient"] = "euclidean"
    lyapunov: LyapunovConfig = LyapunovConfig()

    def build(self, dimension: int) -> VectorField:
        """x' = f(x) on R^n."""
        network = mlp(dimension, self.hidden)
        if not self.stable:
            return FreeField(network, centre=self.centre)
        return StableDynamics(
            network,
            self.lyapunov.build(dimension),
            alpha=self.alpha,
            centre=self.centre,
            projection=self.projection,
        )
