"""Lyapunov functions as networks, and dynamics that are stable by construction.

Source: Manek and Kolter, "Learning Stable Deep Dynamics Models" (NeurIPS 2019).
"""

from robustrun.methods.lyapunov.activations import LeakyRelu, SmoothRelu
from robustrun.methods.lyapunov.attack import Attack, attack_decrease, radial_starts
from robustrun.methods.lyapunov.dynamics import (
    Decrease,
    StableDynamics,
    StableMap,
    feasible_factor,
    free_decrease,
)
from robustrun.methods.lyapunov.functions import (
    KnownLyapunov,
    Lyapunov,
    WarpedLyapunov,
    WrappedLyapunov,
    leaky_lyapunov,
)
from robustrun.methods.lyapunov.networks import ConvexNetwork, PlainNetwork, RiseNetwork
from robustrun.methods.lyapunov.projection import project, project_unit_gradient
from robustrun.methods.lyapunov.stepping import Descent, SafeStep, descent_along
from robustrun.methods.lyapunov.verify import Coverage, GradientBounds, branch_and_bound, decreasing, only_equilibrium
from robustrun.methods.lyapunov.warps import CouplingWarp, LeakyMaps, ScalarWarp, Warp

__all__ = [
    "Attack",
    "ConvexNetwork",
    "CouplingWarp",
    "Coverage",
    "Decrease",
    "Descent",
    "GradientBounds",
    "KnownLyapunov",
    "LeakyMaps",
    "LeakyRelu",
    "Lyapunov",
    "PlainNetwork",
    "RiseNetwork",
    "SafeStep",
    "ScalarWarp",
    "SmoothRelu",
    "StableDynamics",
    "StableMap",
    "Warp",
    "WarpedLyapunov",
    "WrappedLyapunov",
    "attack_decrease",
    "branch_and_bound",
    "decreasing",
    "descent_along",
    "feasible_factor",
    "free_decrease",
    "leaky_lyapunov",
    "only_equilibrium",
    "project",
    "project_unit_gradient",
    "radial_starts",
]
