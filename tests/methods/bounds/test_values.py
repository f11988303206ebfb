"""Bounds where they are known: closed forms, the papers' recursion, orders between methods, gradients."""

import pytest
import torch
from torch import nn

from robustrun.methods.bounds import (
    Box,
    alpha_crown_bounds,
    attained_range,
    crown_bounds,
    dual_bounds,
    intersection_bounds,
    interval_bounds,
    interval_weights,
    layer_boxes,
    relative_error,
    trace,
    worst_relative_error,
)

from .nets import mlp, regions

ALL = (interval_bounds, crown_bounds, dual_bounds, intersection_bounds, alpha_crown_bounds)


def _x(n: int, d: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def _plain_dual(net: nn.Sequential, x: torch.Tensor, epsilon: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The recursion of Wong and Kolter (2018) for any number of layers, unit by unit and objective by objective."""
    layers = [m for m in net if isinstance(m, nn.Linear)]
    bounds: list[tuple[torch.Tensor, torch.Tensor]] = []

    def lower(k: int, c: torch.Tensor) -> torch.Tensor:
        """J(c) for the output of layer k."""
        nu, value = -c.expand(len(x), -1), torch.zeros(len(x), dtype=x.dtype)
        for i in range(k, 0, -1):
            value = value - nu @ layers[i].bias
            hat = nu @ layers[i].weight
            l, u = bounds[i - 1]
            unstable = (l < 0) & (u > 0)
            slope = torch.where(unstable, u / torch.where(unstable, u - l, 1.0), (l >= 0).to(x.dtype))
            nu = slope * hat
            value = value + (torch.where(unstable, l, 0.0) * nu.clamp(min=0)).sum(1)
        value = value - nu @ layers[0].bias
        hat = nu @ layers[0].weight
        return value - (hat * x).sum(1) - (hat.abs() * epsilon).sum(1)

    for k, layer in enumerate(layers):
        eye = torch.eye(layer.out_features, dtype=x.dtype)
        bounds.append((torch.stack([lower(k, c) for c in eye], 1), -torch.stack([lower(k, -c) for c in eye], 1)))
    return bounds[-1]


@pytest.mark.parametrize("widths", [(6, 5, 1), (6, 9, 8, 2), (6, 8, 7, 6, 2)])
def test_dual_is_the_papers_recursion(widths):
    net, x = mlp(*widths, seed=1), _x(7, 6)
    epsilon = torch.linspace(0, 0.4, 6, dtype=torch.float64)
    lower, upper = dual_bounds(trace(net, (6,)), Box.around(x, epsilon), outward=False)
    expected = _plain_dual(net, x, epsilon)
    assert torch.allclose(lower, expected[0], atol=1e-12)
    assert torch.allclose(upper, expected[1], atol=1e-12)


@pytest.mark.parametrize("batch", [3, 7, 20])  # fewer and more examples than units, and several blocks
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dual_gradients_are_the_recursions(batch, dtype, monkeypatch):
    monkeypatch.setattr("robustrun.methods.bounds.second_layer._BLOCK", 400)
    net, x = mlp(6, 9, 8, 1, seed=2, dtype=dtype), _x(batch, 6).to(dtype)
    epsilon = torch.linspace(0.1, 0.3, 6, dtype=dtype)
    y = torch.rand(batch, dtype=dtype) + 0.5
    found = []
    for lower, upper in (
        dual_bounds(trace(net, (6,)), Box.around(x, epsilon), outward=False),
        _plain_dual(net, x, epsilon),
    ):
        loss = worst_relative_error(lower[:, 0], upper[:, 0], y).mean()
        found.append((lower, upper, *torch.autograd.grad(loss, list(net.parameters()))))
    for mine, plain in zip(*found, strict=True):
        torch.testing.assert_close(mine, plain, rtol=0, atol=1e-5 if dtype == torch.float32 else 1e-12)


def test_single_precision_agrees():
    net = mlp(21, 32, 32, 1, seed=3)
    x = _x(50, 21)
    exact = dual_bounds(trace(net, (21,)), Box.around(x, 0.05), outward=False)
    single = dual_bounds(trace(net.float(), (21,)), Box.around(x.float(), 0.05), outward=False)
    assert (exact.lower - single.lower).abs().max() < 1e-5
    assert (exact.upper - single.upper).abs().max() < 1e-5


@pytest.mark.parametrize("batch", [2, 6])
@pytest.mark.parametrize("method", [interval_bounds, crown_bounds, dual_bounds])
def test_gradcheck_in_weights_and_tolerances(method, batch):
    net = mlp(3, 5, 4, 1, seed=4)
    network, x = trace(net, (3,)), _x(batch, 3, seed=1)
    epsilon = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64, requires_grad=True)
    weights = [p.detach().clone().requires_grad_() for p in net.parameters()]

    def bound(epsilon, *weights):
        for layer, (w, b) in zip((net[0], net[2], net[4]), zip(weights[::2], weights[1::2], strict=True), strict=True):
            del layer.weight, layer.bias
            layer.weight, layer.bias = w, b
        return method(network, Box.around(x, epsilon), outward=False)

    assert torch.autograd.gradcheck(bound, (epsilon, *weights), eps=1e-7, atol=1e-6)


def test_no_tolerance_is_the_value():
    net, x = mlp(5, 8, 8, 2, seed=5), _x(6, 5)
    for region in (*regions(x, 0.0)[:2], *regions(x, 0.0)[3:]):
        for method in ALL:
            lower, upper = method(trace(net, (5,)), region)
            assert torch.allclose(lower, net(x), atol=1e-9)
            assert torch.allclose(upper, net(x), atol=1e-9)


def test_affine_network_is_exact():
    net, x = mlp(5, 2, seed=6), _x(6, 5)
    epsilon = torch.linspace(0.1, 0.5, 5, dtype=torch.float64)
    deviation = (net[0].weight.abs() * epsilon).sum(1)
    for method in ALL:
        lower, upper = method(trace(net, (5,)), Box.around(x, epsilon))
        assert torch.allclose(lower, net(x) - deviation, atol=1e-9)
        assert torch.allclose(upper, net(x) + deviation, atol=1e-9)


@pytest.mark.parametrize("w", [2.0, -2.0])
def test_one_unstable_unit(w):
    net = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1)).double()
    with torch.no_grad():
        for p, v in zip(net.parameters(), (1.0, 1.0, w, 0.0), strict=True):
            p.fill_(v)
    box = Box(torch.tensor([[-3.0]]).double(), torch.tensor([[2.0]]).double())  # pre-activation in [-2, 3]
    interval = interval_bounds(trace(net, (1,)), box)
    dual = dual_bounds(trace(net, (1,)), box)
    ends = sorted([0.0, w * 3])
    assert [b.item() for b in interval] == pytest.approx(ends)
    parallel = sorted([w * 3 * -2 / 5, w * 3])
    assert [b.item() for b in dual] == pytest.approx(parallel)


def test_stable_units_leave_nothing_to_relax():
    net, x = mlp(4, 8, 8, 1, seed=7), _x(5, 4)
    with torch.no_grad():
        net[0].bias.copy_(torch.tensor([50.0, -50.0] * 4))
        net[2].bias.copy_(torch.tensor([500.0, -500.0] * 4))
    box, network = Box.around(x, 0.3), trace(net, (4,))
    point = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(net(point).sum(), point)
    expected = (slope.abs() * 0.3).sum(1)
    for method in (crown_bounds, dual_bounds):
        lower, upper = method(network, box)
        assert torch.allclose(upper[:, 0] - net(x)[:, 0], expected, atol=1e-9)
        assert torch.allclose(net(x)[:, 0] - lower[:, 0], expected, atol=1e-9)


@pytest.mark.parametrize("seed", range(8))
def test_order_of_the_methods(seed):
    net, x = mlp(5, 10, 10, 10, 1, seed=seed), _x(8, 5, seed)
    network = trace(net, (5,))
    for region in regions(x, 0.2):
        alpha, both, crown, interval = (
            f(network, region) for f in (alpha_crown_bounds, intersection_bounds, crown_bounds, interval_bounds)
        )
        dual = dual_bounds(network, region)
        for inner, outer in ((alpha, both), (both, crown), (both, dual), (crown, interval)):
            assert (inner.lower >= outer.lower - 1e-12).all()
            assert (inner.upper <= outer.upper + 1e-12).all()
    box = Box.around(x, 0.2)
    gain = crown_bounds(network, box).lower - alpha_crown_bounds(network, box).lower
    assert gain.min() < -1e-3  # optimising the slopes does something


def test_cut_boxes_are_tighter():
    net, x = mlp(5, 10, 10, 1, seed=8), _x(8, 5).clamp(-1, 1)
    network = trace(net, (5,))
    for method in ALL:
        wide = method(network, Box.around(x, 0.2))
        uncut = method(network, Box.around(x, 0.2, -2.0, 2.0))
        assert torch.allclose(wide.lower, uncut.lower, atol=1e-12)
    wide, cut = (interval_bounds(network, Box.around(x, 0.2, *limits)) for limits in ((), (-1.0, 1.0)))
    assert (cut.lower >= wide.lower).all()
    assert (cut.upper < wide.upper).any()


def test_edges_have_finite_gradients():
    """Bounds of exactly zero and layers that never fire."""
    net = mlp(3, 6, 6, 1, seed=9)
    with torch.no_grad():
        net[0].bias.zero_()
        net[2].bias.fill_(-100.0)
    network = trace(net, (3,))
    for x, epsilon in ((torch.zeros(2, 3, dtype=torch.float64), 0.0), (_x(2, 3), 0.1)):
        for method in (interval_bounds, crown_bounds, dual_bounds):
            lower, upper = method(network, Box.around(x, epsilon), outward=False)
            gradients = torch.autograd.grad(
                (upper - lower).sum() + lower.sum(), list(net.parameters()), allow_unused=True
            )
            assert all(g is None or torch.isfinite(g).all() for g in gradients)
            assert torch.allclose(lower, net[4].bias.expand_as(lower))
            assert torch.allclose(upper, net[4].bias.expand_as(upper))
    for boxes in (layer_boxes(network, Box.around(x, 0.1), rule=r, outward=False) for r in ("crown", "dual")):
        for node in network.activations:
            for rule in ("crown", "dual"):
                lines = node.op.lines(boxes[node.inputs[0]], rule)
                for slope in (lines.lower_slope, lines.upper_slope):
                    assert (slope >= 0).all()
                    assert (slope <= 1).all()


def test_worst_relative_error_and_its_gradient():
    y = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    l = torch.tensor([0.3, 0.9, 1.0], dtype=torch.float64, requires_grad=True)
    u = torch.tensor([0.6, 1.4, 2.5], dtype=torch.float64, requires_grad=True)
    worst = worst_relative_error(l, u, y)
    grid = l + torch.linspace(0, 1, 1001, dtype=torch.float64).view(-1, 1) * (u - l)
    assert torch.allclose(worst, relative_error(grid, y).amax(0), atol=1e-12)
    gl, gu = torch.autograd.grad(worst.sum(), (l, u))
    assert gl.tolist() == pytest.approx([-2.0, 0.0, -0.5])
    assert gu.tolist() == pytest.approx([0.0, 1.0, 0.0])


def test_small_quantities():
    with pytest.raises(ValueError, match="target of zero"):
        relative_error(torch.ones(1), torch.zeros(1))
    assert relative_error(torch.tensor([0.2]), torch.tensor([0.0]), floor=0.1).item() == pytest.approx(2.0)
    assert relative_error(torch.tensor([0.2]), torch.tensor([0.4]), floor=0.1).item() == pytest.approx(0.5)
    y = torch.tensor([0.1, 0.6, 0.8, 1.0])
    assert torch.allclose(interval_weights(y, 0.6, 0.8, 0.02), torch.tensor([0.02, 1.0, 1.0, 0.02]))


def test_attack_uses_both_signs():
    """f = -x rises only downwards; f = |x| has its least value inside and no gradient to follow there."""

    def down(x):
        return -x.sum(1)

    box = Box.around(torch.zeros(2, 3, dtype=torch.float64), torch.tensor([0.1, 0.2, 0.0]))
    found = attained_range(down, box, steps=10)
    assert found.lower.tolist() == pytest.approx([-0.3, -0.3])
    assert found.upper.tolist() == pytest.approx([0.3, 0.3])
    assert torch.allclose(down(found.at_lower), found.lower)
    assert torch.allclose(found.at_upper, -found.at_lower)


@pytest.mark.parametrize("method", [crown_bounds, dual_bounds, intersection_bounds])
@pytest.mark.parametrize("objective", [None, "shared", "own"])
def test_blocks_of_examples_change_nothing(method, objective, monkeypatch):
    net = trace(mlp(3, 8, 7, 2), (3,))
    box = Box.around(_x(13, 3), 0.3)
    if objective is not None:
        objective = torch.randn((4, 2) if objective == "shared" else (13, 4, 2), dtype=torch.float64)
    with torch.no_grad():
        whole = method(net, box, objective)
        boxed = crown_bounds(net, box, objective, boxes=layer_boxes(net, box))
        monkeypatch.setattr("robustrun.methods.bounds.blocks._EXAMPLES", 5)
        for blocked, expected in (
            (method(net, box, objective), whole),
            (crown_bounds(net, box, objective, boxes=layer_boxes(net, box)), boxed),
        ):
            torch.testing.assert_close(blocked.lower, expected.lower, atol=1e-12, rtol=1e-12)
            torch.testing.assert_close(blocked.upper, expected.upper, atol=1e-12, rtol=1e-12)
    assert method(net, box, objective).lower.requires_grad  # with gradients, the whole batch at once
