"""Certified bounds of networks over sets of inputs."""

from .attack import Attained, attained_range
from .branch_and_bound import branch_and_bound
from .crown import (
    alpha_crown_bounds,
    crown_bounds,
    dual_bounds,
    intersection_bounds,
    intersection_boxes,
    layer_boxes,
)
from .exact import Optimum, lp_bounds, milp_bounds
from .interval import interval_bounds, interval_boxes
from .network import Network, Node, trace
from .regions import Ball, Bounds, Box, Region
from .relative_error import interval_weights, relative_error, worst_relative_error
from .unsupported import Unsupported
from .vnnlib import vnnlib

__all__ = [
    "Attained",
    "Ball",
    "Bounds",
    "Box",
    "Network",
    "Node",
    "Optimum",
    "Region",
    "Unsupported",
    "alpha_crown_bounds",
    "attained_range",
    "branch_and_bound",
    "crown_bounds",
    "dual_bounds",
    "intersection_bounds",
    "intersection_boxes",
    "interval_bounds",
    "interval_boxes",
    "interval_weights",
    "layer_boxes",
    "lp_bounds",
    "milp_bounds",
    "relative_error",
    "trace",
    "vnnlib",
    "worst_relative_error",
]
