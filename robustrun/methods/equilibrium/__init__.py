"""Equilibrium layers: monotone operators with solvers that provably converge, implicit differentiation."""

from robustrun.methods.equilibrium.activations import (
    ACTIVATIONS,
    Activation,
    Activations,
    leaky_relu,
    masked,
    relu,
    sigmoid,
    tanh,
)
from robustrun.methods.equilibrium.certificate import certified_radius, refine
from robustrun.methods.equilibrium.circular import CircularMonotone, border_mask
from robustrun.methods.equilibrium.deep import (
    DeepEquilibrium,
    Equation,
    Gradient,
    jacobian_penalty,
    spectral_radius,
    unrolled,
)
from robustrun.methods.equilibrium.dense import DenseMonotone, FreeMatrix, parameters_of
from robustrun.methods.equilibrium.fixed_point import FixedPoint, FixedPointSolver
from robustrun.methods.equilibrium.implicit import MonotoneLayer, tune_alpha
from robustrun.methods.equilibrium.layers import FreeMultiTier2d, MonotoneConv2d, MonotoneLinear, MonotoneMultiTier2d
from robustrun.methods.equilibrium.multitier import MultiTierMonotone
from robustrun.methods.equilibrium.splitting import Solution, Splitting, residual, solve, solve_adjoint
from robustrun.methods.equilibrium.unconstrained import FreeMultiTier

__all__ = [
    "ACTIVATIONS",
    "Activation",
    "Activations",
    "CircularMonotone",
    "DeepEquilibrium",
    "DenseMonotone",
    "Equation",
    "FixedPoint",
    "FixedPointSolver",
    "FreeMatrix",
    "FreeMultiTier",
    "FreeMultiTier2d",
    "Gradient",
    "MonotoneConv2d",
    "MonotoneLayer",
    "MonotoneLinear",
    "MonotoneMultiTier2d",
    "MultiTierMonotone",
    "Solution",
    "Splitting",
    "border_mask",
    "certified_radius",
    "jacobian_penalty",
    "leaky_relu",
    "masked",
    "parameters_of",
    "refine",
    "relu",
    "residual",
    "sigmoid",
    "solve",
    "solve_adjoint",
    "spectral_radius",
    "tanh",
    "tune_alpha",
    "unrolled",
]
