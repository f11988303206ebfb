"""Certified bounds of networks over sets of inputs."""

from .attack import Attained, attained_range
from .crown import (
    alpha_crown_bounds,
    crown_bounds,
    dual_bounds,
    intersection_bounds,
    intersection_boxes,
    layer_boxes,
)
from .interval import interval_bounds, interval_boxes
from .network import Network, Node, trace
from .regions import Ball, Bounds, Box, Region
from .relative_error import interval_weights, relative_error, worst_relative_error

__all__ = [
    "Attained",
    "Ball",
    "Bounds",
    "Box",
    "Network",
    "Node",
    "Region",
    "alpha_crown_bounds",
    "attained_range",
    "crown_bounds",
    "dual_bounds",
    "intersection_bounds",
    "intersection_boxes",
    "interval_bounds",
    "interval_boxes",
    "interval_weights",
    "layer_boxes",
    "relative_error",
    "trace",
    "worst_relative_error",
]
