import cvxpy
import numpy as np
import pytest
import torch

from robustrun.methods.lyapunov import (
    Lyapunov,
    StableDynamics,
    WrappedLyapunov,
    free_decrease,
    project,
    project_unit_gradient,
)

from .kinds import ALL, convex_network, nominal
from .test_functions import points


class Square(Lyapunov):
    """V = |x|^2."""

    convex = stationary_only_at_zero = shrinkable = True

    def value_and_gradient(self, x, prepared=None):
        return (x * x).sum(1), 2 * x


def linear(matrix) -> torch.nn.Module:
    layer = torch.nn.Linear(len(matrix), len(matrix), bias=False)
    layer.weight.data = torch.tensor(matrix)
    return layer


def test_is_the_euclidean_projection():
    free, gradient = torch.randn(20, 5), torch.randn(20, 5)
    value, alpha = torch.rand(20), 0.7
    projected = project(free, value, gradient, alpha)
    active = 0
    for f, v, g, p in zip(free.numpy(), value.numpy(), gradient.numpy(), projected.numpy(), strict=True):
        variable = cvxpy.Variable(5)
        problem = cvxpy.Problem(cvxpy.Minimize(cvxpy.sum_squares(variable - f)), [g @ variable <= -alpha * v])
        problem.solve(solver=cvxpy.CLARABEL)
        np.testing.assert_allclose(p, variable.value, atol=1e-6)
        if g @ f <= -alpha * v:
            assert (p == f).all()
        else:
            active += 1
            assert g @ p == pytest.approx(-alpha * v, rel=1e-12)
    assert 0 < active < 20


def test_idempotent_and_independent_of_the_scale_of_v():
    free, gradient, value = torch.randn(200, 5), torch.randn(200, 5), torch.rand(200)
    once = project(free, value, gradient, 0.3)
    torch.testing.assert_close(project(once, value, gradient, 0.3), once, rtol=1e-13, atol=1e-14)
    for c in (1e-6, 3.0, 1e5):
        torch.testing.assert_close(project(free, c * value, c * gradient, 0.3), once, rtol=1e-12, atol=1e-12)


def test_unit_gradient_form_is_the_weaker_condition():
    free, gradient, value = torch.randn(200, 5), 3 * torch.randn(200, 5), torch.rand(200)
    f = project_unit_gradient(free, value, gradient, 0.5)
    rate, norm = (gradient * f).sum(1), gradient.norm(dim=1)
    assert (rate <= -0.5 * value * norm + 1e-12 * norm).all()


def test_linear_field_and_square_norm_in_closed_form():
    matrix = [[0.3, -2.0], [1.0, 0.4]]
    field = StableDynamics(linear(matrix), Square(), alpha=0.2)
    x = torch.randn(50, 2)
    bx = x @ torch.tensor(matrix).T
    excess = torch.relu(2 * (x * bx).sum(1) + 0.2 * (x * x).sum(1)) / (2 * (x * x).sum(1))
    torch.testing.assert_close(field(x), bx - x * excess[:, None])


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("alpha", [0.0, 1e-3, 1.0, 10.0])
def test_decreases_whatever_the_weights(kind, alpha):
    for seed in range(5):
        torch.manual_seed(seed)
        field = StableDynamics(nominal(6), ALL[kind](6), alpha=alpha, centre=seed % 2 == 1)
        decrease = field.decrease(points(6, 2000, 1e-6, 1e3))
        assert decrease.relative.max() <= 1e-12
    # The free field is not so obliging: the test above could fail.
    free = free_decrease(field.nominal, field.lyapunov, points(6, 2000), alpha)
    assert free.relative.max() > 0.01


def test_correction_is_bounded_and_finite_at_every_scale():
    field = StableDynamics(nominal(4), WrappedLyapunov(convex_network(4), 4, epsilon=1e-3), alpha=0.5)
    x = torch.cat([points(4, 500, 1e-12, 1e3), torch.zeros(1, 4)])
    f, free = field(x), field.free(x)
    bound = free.norm(dim=1) + 0.5 * x.norm(dim=1)
    assert ((f - free).norm(dim=1) <= bound * (1 + 1e-9)).all()
    assert (f[-1] == 0).all()
    f.square().mean().backward()
    assert all(torch.isfinite(p.grad).all() for p in field.parameters())


def test_centred_field_is_continuous_at_the_origin():
    field = StableDynamics(nominal(4), WrappedLyapunov(convex_network(4), 4), centre=True)
    assert field(points(4, 100, 1e-9, 1.1e-9)).norm(dim=1).max() < 1e-7
    field.centre = False
    assert field(points(4, 100, 1e-9, 1.1e-9)).norm(dim=1).max() > 1e-3


def test_gradients_of_the_training_loss():
    """By every parameter, against finite differences; the output bias of V cancels."""
    lyapunov = WrappedLyapunov(convex_network(3, 0.5, (8, 8)), 3, epsilon=0.01)
    field = StableDynamics(nominal(3, 8), lyapunov, alpha=0.1)
    x, target = torch.randn(40, 3), torch.randn(40, 3)

    def loss():
        return ((field(x) - target) ** 2).mean()

    loss().backward()
    assert lyapunov.network.passthrough.bias.grad[-1].abs() <= 1e-12
    checked = 0
    with torch.no_grad():
        for parameter in field.parameters():
            flat = parameter.view(-1)
            for i in range(0, len(flat), max(1, len(flat) // 12)):
                here = flat[i].item()
                flat[i] = here + 1e-6
                up = loss()
                flat[i] = here - 1e-6
                numeric = (up - loss()) / 2e-6
                flat[i] = here
                assert numeric.item() == pytest.approx(parameter.grad.view(-1)[i].item(), rel=1e-5, abs=1e-8)
                checked += 1
    assert checked > 60


def test_bad_rates_are_refused():
    with pytest.raises(ValueError, match="alpha"):
        StableDynamics(nominal(2), Square(), alpha=-1.0)
