"""Certified bounds of networks over sets of inputs."""

from robustrun.methods.bounds.attack import Attained, attained_range
from robustrun.methods.bounds.branch_and_bound import branch_and_bound
from robustrun.methods.bounds.crown import (
    alpha_crown_bounds,
    crown_bounds,
    dual_bounds,
    intersection_bounds,
    intersection_boxes,
    layer_boxes,
)
from robustrun.methods.bounds.exact import Optimum, lp_bounds, milp_bounds
from robustrun.methods.bounds.interval import interval_bounds, interval_boxes
from robustrun.methods.bounds.network import Network, Node, trace
from robustrun.methods.bounds.regions import Ball, Bounds, Box, Region
from robustrun.methods.bounds.relative_error import interval_weights, relative_error, worst_relative_error
from robustrun.methods.bounds.unsupported import Unsupported
from robustrun.methods.bounds.vnnlib import vnnlib

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
