"""Dynamical systems: simulators, integrators, errors of trajectories, moving textures."""

from robustrun.methods.dynamics.errors import squared_error, wrap_angle
from robustrun.methods.dynamics.integrate import Field, euler_step, integrator, rk4_step, rollout
from robustrun.methods.dynamics.latent import (
    LatentLoss,
    latent_loss,
    sample_latent,
    standard_normal_divergence,
)
from robustrun.methods.dynamics.pendulum import NLinkPendulum
from robustrun.methods.dynamics.systems import FreeField, LatentVideo, RestMap, StateMap, VectorField
from robustrun.methods.dynamics.textures import TEXTURES, fire, pendulum_video, waves

__all__ = [
    "TEXTURES",
    "Field",
    "FreeField",
    "LatentLoss",
    "LatentVideo",
    "NLinkPendulum",
    "RestMap",
    "StateMap",
    "VectorField",
    "euler_step",
    "fire",
    "integrator",
    "latent_loss",
    "pendulum_video",
    "rk4_step",
    "rollout",
    "sample_latent",
    "squared_error",
    "standard_normal_divergence",
    "waves",
    "wrap_angle",
]
