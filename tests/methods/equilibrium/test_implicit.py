"""Implicit gradients and the layers, against finite differences and dense solves."""

from dataclasses import replace

import pytest
import torch

from robustrun.methods.equilibrium import (
    MonotoneConv2d,
    MonotoneLinear,
    Splitting,
    border_mask,
    leaky_relu,
    masked,
    relu,
    solve,
    solve_adjoint,
    tanh,
    tune_alpha,
)
from tests.methods.equilibrium.operators import TIGHT, dense, seeded


@pytest.mark.parametrize("activation", [relu, leaky_relu(0.3), tanh], ids=["relu", "leaky", "tanh"])
@pytest.mark.parametrize("method", ["peaceman_rachford", "forward_backward"])
def test_gradients_of_the_dense_layer(activation, method):
    seeded(1)
    settings = Splitting(method, 0.3, 1e-11, 4000)
    layer = MonotoneLinear(3, 4, activation=activation, settings=settings).double()
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in layer.named_parameters()]

    def function(x, *parameters):
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (x,))

    assert torch.autograd.gradcheck(function, (x, *layer.parameters()), fast_mode=True)


def test_gradients_of_the_convolutional_layer():
    seeded(2)
    layer = MonotoneConv2d(1, 2, 4, settings=replace(TIGHT, alpha=0.5)).double()
    x = torch.randn(2, 1, 4, 4, dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in layer.named_parameters()]

    def function(x, *parameters):
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (x,))[..., 1:-1, 1:-1].sum(
            1
        )

    assert torch.autograd.gradcheck(function, (x, *layer.parameters()), fast_mode=True)


def test_the_printed_denominator_would_be_wrong():
    """The paper's algorithms print 1 + alpha (1 + D) where its theorem has 1 + alpha D: another fixed point."""
    seeded(3)
    operator = dense(6, scale=2.0)
    bias = torch.randn(2, 6, dtype=torch.float64)
    z = solve(operator, (bias,), tanh, TIGHT).z[0]
    g, j = torch.randn_like(z), tanh.slope(z)
    y = solve_adjoint(operator, (g,), (j,), replace(TIGHT, alpha=0.5)).z[0]
    matrix = operator.matrix()
    for row in range(2):
        d = 1 / j[row] - 1
        exact = torch.linalg.solve(torch.diag(1 + d) - matrix.T, g[row])
        printed = torch.linalg.solve(
            torch.diag(2 + d) - matrix.T, g[row]
        )  # y (1 + a (1 + D)) = (1 - a) y + a (W'y + g)
        assert torch.allclose(y[row], exact, atol=1e-10)
        assert (printed - exact).norm() > 0.05 * exact.norm()


def test_memory_does_not_grow_with_iterations():
    layer = MonotoneLinear(4, 8).double()
    x = torch.randn(3, 4, dtype=torch.float64)
    sizes = []
    for iterations in (10, 200):
        layer.settings = Splitting(rtol=0.0, max_iterations=iterations)
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, saved=saved: saved.append(t.numel()) or t, lambda t: t):
            layer(x).sum().backward()
        sizes.append(sum(saved))
        assert int(layer.statistics.forward.iterations.max()) == iterations
    assert sizes[0] == sizes[1]


def test_attacks_see_gradients_in_evaluation_mode():
    layer = MonotoneLinear(4, 8).eval()
    x = torch.randn(3, 4, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad.abs().max() > 0


def test_the_factorisation_follows_the_weights():
    layer = MonotoneLinear(3, 4).eval()
    first = layer.resolvent()
    assert layer.resolvent() is first
    with torch.no_grad():
        layer.operator.A.add_(1)
    assert layer.resolvent() is not first


def test_divergence_is_an_error_and_not_a_result():
    settings = Splitting("forward_backward", 50.0, 1e-9, 1000)
    layer = MonotoneLinear(3, 4, activation=leaky_relu(0.9), settings=settings).double()
    with pytest.raises(FloatingPointError, match="use peaceman_rachford"):
        layer(torch.randn(2, 3, dtype=torch.float64))


def test_tuning_never_needs_more_iterations():
    seeded()
    layer = MonotoneLinear(6, 10, settings=Splitting(rtol=1e-5)).double()
    with torch.no_grad():
        layer.operator.A.mul_(8)
    x = torch.randn(20, 6, dtype=torch.float64)
    layer(x)
    before = int(layer.statistics.forward.iterations.max())
    alpha = tune_alpha(layer, x)
    layer(x)
    assert int(layer.statistics.forward.iterations.max()) <= before
    assert alpha == layer.settings.alpha <= 1.0


def test_a_fused_optimiser_does_not_leave_an_old_factorisation_behind():
    """It changes weights without counting their versions up."""
    seeded()
    layer = MonotoneLinear(4, 8, settings=Splitting(rtol=1e-6))
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1, fused=True)
    x = torch.randn(5, 4)
    layer.eval()(x)
    for _ in range(3):
        optimizer.zero_grad()
        layer.train()(x).sum().backward()
        optimizer.step()
    after = layer.eval()(x)
    torch.testing.assert_close(after, layer.train()(x), rtol=0, atol=0)


def test_a_step_length_that_diverges_is_not_taken_for_a_quick_one():
    seeded()
    settings = Splitting(method="forward_backward", alpha=0.01, rtol=1e-3, max_iterations=5000)
    layer = MonotoneLinear(4, 6, settings=settings)
    with torch.no_grad():
        layer.operator.B.mul_(40)
        layer.operator.A.mul_(40)
    assert tune_alpha(layer, torch.randn(8, 4), start=1e6) == 0.01


def test_a_mask_is_part_of_the_projection():
    mask = border_mask(5)
    z = masked(relu, mask).prox(torch.ones(1, 1, 5, 5), 0.3)
    assert z.sum() == 9
    assert masked(relu, mask).slope(z).sum() == 9


def test_the_input_output_map_is_lipschitz():
    """|z(x) - z(x')| <= |U|_2 / m |x - x'| (Pabbaraju et al. 2021)."""
    seeded()
    layer = MonotoneLinear(4, 6, margin=0.5, settings=TIGHT).double()
    constant = float(torch.linalg.matrix_norm(layer.injection.weight.detach(), 2)) / 0.5
    x, other = torch.randn(50, 4).double(), torch.randn(50, 4).double()
    with torch.no_grad():
        ratio = (layer(x) - layer(other)).norm(dim=1) / (x - other).norm(dim=1)
    assert ratio.max() <= constant
