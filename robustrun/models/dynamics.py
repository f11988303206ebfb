"""Learned dynamics on states: free, stable by construction, or at rest.

Source: Manek and Kolter (arXiv 2001.06116); maps: Lawrence et al. (NeurIPS 2020).
"""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from robustrun.errors import ConfigError
from robustrun.methods.dynamics import FreeField, NLinkPendulum, RestMap, StateMap, VectorField
from robustrun.methods.lyapunov import KnownLyapunov, StableDynamics, StableMap
from robustrun.models.lyapunov_parts import FieldConfig, LyapunovConfig, mlp
from robustrun.numbers import NonNegative, PositiveInt, parse_number
from robustrun.registry import models
from robustrun.roles import DynamicsSpec, PendulumSpec

Rate = Annotated[float, BeforeValidator(parse_number), Field(gt=0, le=1)]


@models.register("free_dynamics")
def free_dynamics(spec: DynamicsSpec, *, hidden: list[PositiveInt] = [116, 116], centre: bool = False) -> VectorField:  # noqa: B006
    """A ReLU network x' = f(x) without any constraint: the naive model."""
    (dimension,) = spec.input_shape
    return FreeField(mlp(dimension, tuple(hidden)), centre=centre)


@models.register("stable_dynamics")
def stable_dynamics(
    spec: DynamicsSpec,
    *,
    hidden: list[PositiveInt] = [100, 100],  # noqa: B006
    centre: bool = False,
    alpha: NonNegative = 1e-3,
    projection: Literal["euclidean", "unit_gradient"] = "euclidean",
    lyapunov: LyapunovConfig = LyapunovConfig(),  # noqa: B008
) -> VectorField:
    """A nominal network, projected so that a learned V decreases along every solution (arXiv 2001.06116)."""
    (dimension,) = spec.input_shape
    config = FieldConfig(hidden=tuple(hidden), centre=centre, alpha=alpha, projection=projection, lyapunov=lyapunov)
    return config.build(dimension)


@models.register("energy_dynamics")
def energy_dynamics(
    spec: PendulumSpec,
    *,
    hidden: list[PositiveInt] = [100, 100],  # noqa: B006
    centre: bool = False,
    alpha: NonNegative = 1e-3,
) -> VectorField:
    """The same with the pendulum's true energy as V: not convex, at rest also upside down."""
    (dimension,) = spec.input_shape
    system = NLinkPendulum(
        dimension // 2, masses=spec.masses, lengths=spec.lengths, damping=spec.damping, gravity=spec.gravity
    )
    lyapunov = KnownLyapunov(system.energy_and_gradient)
    return StableDynamics(mlp(dimension, tuple(hidden)), lyapunov, alpha=alpha, centre=centre)


@models.register("stable_map")
def stable_map(
    spec: DynamicsSpec,
    *,
    hidden: list[PositiveInt] = [100, 100],  # noqa: B006
    beta: Rate = 0.9999,
    contraction: Literal["scaled", "tight"] = "tight",
    lyapunov: LyapunovConfig = LyapunovConfig(),  # noqa: B008
) -> StateMap:
    """A discrete-time map with V(x') <= beta V(x) (Lawrence et al. 2020), or its tight form."""
    if not lyapunov.shrinkable or lyapunov.warp != "none":
        raise ConfigError("a stable map needs a convex V: model.lyapunov.warp=none and any network but plain")
    (dimension,) = spec.input_shape
    network = mlp(dimension, tuple(hidden))
    return StableMap(network, lyapunov.build(dimension), beta=beta, contraction=contraction)


@models.register("rest")
def rest(spec: DynamicsSpec) -> StateMap:
    """Predicts rest from the first step on: the yardstick of late errors. Nothing to train."""
    return RestMap()
