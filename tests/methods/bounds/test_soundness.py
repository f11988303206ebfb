"""No point of a region may leave its bounds, whatever the network, the region and the method."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from robustrun.methods.bounds import (
    Box,
    alpha_crown_bounds,
    attained_range,
    crown_bounds,
    dual_bounds,
    intersection_bounds,
    interval_bounds,
    interval_boxes,
    layer_boxes,
    trace,
)

from .nets import Residual, SmoothNet, mlp, regions

METHODS = (interval_bounds, crown_bounds, dual_bounds, intersection_bounds, alpha_crown_bounds)


def _check(net, shape, x, epsilon, points=2000, methods=METHODS):
    network = trace(net, shape)
    generator = torch.Generator().manual_seed(1)
    for region in regions(x, epsilon):
        samples = region.sample(points // len(x), generator)
        with torch.no_grad():
            values = net(samples.flatten(0, 1)).unflatten(0, samples.shape[:2])
            assert torch.allclose(network(x), net(x), atol=1e-12)
        for method in methods:
            lower, upper = method(network, region)
            assert (values >= lower).all(), method.__name__
            assert (values <= upper).all(), method.__name__


@pytest.mark.parametrize("widths", [(5, 2), (5, 8, 2), (5, 8, 8, 2), (5, 8, 7, 6, 2), (5, 8, 7, 6, 5, 2)])
@pytest.mark.parametrize("epsilon", [0.05, 0.5])
def test_fully_connected(widths, epsilon):
    x = torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    _check(mlp(*widths, seed=len(widths)), (5,), x, epsilon)


def test_residual_convolutions():
    torch.manual_seed(0)
    _check(Residual().double().eval(), (1, 7, 7), torch.rand(3, 1, 7, 7, dtype=torch.float64), 0.1, 600)


@pytest.mark.parametrize("activation", [torch.tanh, torch.sigmoid, nn.functional.softplus, torch.square])
@pytest.mark.parametrize("epsilon", [0.05, 1.5])
def test_smooth_activations(activation, epsilon):
    torch.manual_seed(2)
    net = SmoothNet(activation).double()
    _check(net, (4,), torch.randn(4, 4, dtype=torch.float64), epsilon)
    if epsilon < 1:
        # and they are worth having: tighter than intervals
        network, box = trace(net, (4,)), Box.around(torch.randn(4, 4, dtype=torch.float64), epsilon)
        loose, tight = interval_bounds(network, box), crown_bounds(network, box)
        assert (tight.upper - tight.lower).mean() < 0.95 * (loose.upper - loose.lower).mean()


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    epsilon=st.floats(0, 1),
    widths=st.lists(st.integers(1, 9), min_size=2, max_size=5),
)
def test_any_network_in_single_precision(seed, epsilon, widths):
    """float32 bounds hold for the network evaluated in float64: the rounding margin is real."""
    net = mlp(*widths, seed=seed, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(3, widths[0], generator=generator)
    network, box = trace(net, (widths[0],)), Box.around(x, epsilon)
    with torch.no_grad():
        bounds = [method(network, box) for method in (interval_bounds, crown_bounds, dual_bounds)]
    exact, wide = trace(net.double(), (widths[0],)), box.to(torch.float64)
    corners = torch.where(torch.rand((200, 3, widths[0]), generator=generator) < 0.5, wide.lower, wide.upper)
    with torch.no_grad():
        values = exact(corners.flatten(0, 1)).unflatten(0, (200, 3))
    for lower, upper in bounds:
        assert (values >= lower.double()).all()
        assert (values <= upper.double()).all()


def test_attack_stays_inside():
    net = mlp(5, 16, 16, 1, seed=3)
    network, box = trace(net, (5,)), Box.around(torch.randn(30, 5, dtype=torch.float64), 0.2)
    found = attained_range(network, box, steps=30, generator=torch.Generator().manual_seed(0))
    for method in METHODS:
        lower, upper = method(network, box)
        assert (found.lower >= lower[:, 0]).all()
        assert (found.upper <= upper[:, 0]).all()


def test_every_layer_is_bounded():
    net = mlp(4, 9, 8, 7, 3, seed=5)
    network = trace(net, (4,))
    box = Box.around(torch.randn(6, 4, dtype=torch.float64), 0.3)
    with torch.no_grad():
        points = network.values(box.sample(500, torch.Generator().manual_seed(0)).flatten(0, 1))
        for boxes in (interval_boxes(network, box), *(layer_boxes(network, box, rule=r) for r in ("crown", "dual"))):
            for name, (lower, upper) in boxes.items():
                values = points[name].unflatten(0, (500, 6))
                assert (values >= lower).all(), name
                assert (values <= upper).all(), name


def test_objectives_are_bounded_directly():
    """Bounds of differences of outputs: sound, and tighter than differences of bounds."""
    net = mlp(4, 12, 12, 3, seed=6)
    network, box = trace(net, (4,)), Box.around(torch.randn(5, 4, dtype=torch.float64), 0.2)
    c = torch.tensor([[1.0, -1.0, 0.0], [0.0, 1.0, -1.0]], dtype=torch.float64)
    with torch.no_grad():
        values = net(box.sample(1000).flatten(0, 1)).unflatten(0, (1000, 5)) @ c.T
    each = crown_bounds(network, box)
    for method in (crown_bounds, dual_bounds, alpha_crown_bounds, intersection_bounds):
        lower, upper = method(network, box, c)
        assert lower.shape == (5, 2)
        assert (values >= lower).all()
        assert (values <= upper).all()
    lower, _ = crown_bounds(network, box, c)
    assert (lower[:, 0] > each.lower[:, 0] - each.upper[:, 1]).all()
