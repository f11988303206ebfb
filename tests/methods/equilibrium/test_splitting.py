"""Monotone equilibria against closed forms, dense solves, finite differences and each other."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from robustrun.methods.equilibrium import (
    CircularMonotone,
    DenseMonotone,
    Splitting,
    border_mask,
    leaky_relu,
    parameters_of,
    relu,
    residual,
    sigmoid,
    solve,
    solve_adjoint,
    tanh,
)
from robustrun.methods.equilibrium.grid import Torus, images, pixels, planar, transfer
from robustrun.methods.equilibrium.workspace import Workspace
from tests.methods.equilibrium.operators import TIGHT, circular, dense, materialised, seeded

OPERATORS = [
    pytest.param(lambda: (dense(6, scale=2.0), (6,)), id="dense"),
    pytest.param(lambda: (circular(3, 6, g=2.0, h=3.0), (3, 6, 6)), id="even side"),
    pytest.param(lambda: (circular(2, 5, g=2.0, h=3.0), (2, 5, 5)), id="odd side"),
]


# --------------------------------------------------------------------------------------------- closed forms


@pytest.mark.parametrize("alpha", [0.1, 1.0, 10.0])
def test_one_unit_has_a_closed_form(alpha):
    m, a, b = 0.7, 1.3, torch.tensor([[2.0], [-1.0]], dtype=torch.float64)
    operator = dense(1, m)
    with torch.no_grad():
        operator.A.fill_(a)
    z = solve(operator, (b,), relu, replace(TIGHT, alpha=alpha)).z[0]
    assert torch.allclose(z, b.clamp_min(0) / (m + a * a), atol=1e-11)
    y = solve_adjoint(operator, (torch.ones_like(b),), (relu.slope(z),), replace(TIGHT, alpha=alpha)).z[0]
    assert torch.allclose(y, (b > 0).double() / (m + a * a), atol=1e-11)


def rotation(beta=3.0):
    operator = dense(2, 1.0)
    with torch.no_grad():
        operator.A.zero_()
        operator.B.copy_(torch.tensor([[0.0, beta], [0.0, 0.0]]))
    return operator, (torch.tensor([[1.0, 4.0]], dtype=torch.float64),)


def test_a_rotation_tells_the_methods_apart():
    operator, bias = rotation()
    exact = torch.tensor([[1.3, 0.1]], dtype=torch.float64)
    assert float(operator.lipschitz()) == pytest.approx(math.sqrt(10))
    for alpha, contraction in ((0.1, 0.83205), (0.1**0.5, 0.72076), (1.0, 0.83205)):
        settings = replace(TIGHT, alpha=alpha)
        assert torch.allclose(solve(operator, bias, relu, settings).z[0], exact, atol=1e-10)
        assert float(operator.factorize(alpha).contraction()) == pytest.approx(contraction, abs=1e-5)
    for alpha in (0.05, 0.1, 0.19):
        settings = replace(TIGHT, method="forward_backward", alpha=alpha)
        assert torch.allclose(solve(operator, bias, relu, settings).z[0], exact, atol=1e-9)
    for settings in (
        Splitting("forward_backward", 0.21, 1e-9, 500),
        Splitting("forward_backward", 1.0, 1e-9, 500),
        Splitting("picard", 1.0, 1e-9, 500),
    ):
        solution = solve(operator, bias, relu, settings)
        assert not solution.converged.any()


# ----------------------------------------------------------------------------------------------- the operators


@pytest.mark.parametrize("make", OPERATORS)
@pytest.mark.parametrize("margin", [1.0, 0.1])
def test_the_margin_holds_and_is_what_is_reported(make, margin):
    seeded()
    operator, shape = make()
    operator.m = margin
    matrix = materialised(operator, shape)
    eye = torch.eye(len(matrix), dtype=torch.float64)
    smallest = torch.linalg.eigvalsh(eye - (matrix + matrix.T) / 2)[0]
    assert smallest >= margin - 1e-10
    assert torch.allclose(operator.monotonicity(), smallest, atol=1e-10)
    assert torch.allclose(operator.lipschitz(), torch.linalg.matrix_norm(eye - matrix, 2), atol=1e-10)


@pytest.mark.parametrize("make", OPERATORS)
@pytest.mark.parametrize("alpha", [0.05, 0.7, 5.0])
def test_adjoint_and_resolvent_are_those_of_the_dense_matrix(make, alpha):
    seeded()
    operator, shape = make()
    matrix = materialised(operator, shape)
    eye = torch.eye(len(matrix), dtype=torch.float64)
    v = torch.linalg.inv((1 + alpha) * eye - alpha * matrix)
    z = torch.randn(4, *shape, dtype=torch.float64)
    flat = z.reshape(4, -1)
    assert torch.allclose(operator.apply((z,), transpose=True)[0].reshape(4, -1), flat @ matrix, atol=1e-12)
    resolvent = operator.factorize(alpha)
    assert torch.allclose(resolvent.cayley((z,))[0].reshape(4, -1), flat @ (2 * v - eye).T, atol=1e-11)
    assert torch.allclose(resolvent.cayley((z,), transpose=True)[0].reshape(4, -1), flat @ (2 * v - eye), atol=1e-11)
    assert torch.allclose(resolvent.contraction(), torch.linalg.matrix_norm(2 * v - eye, 2), atol=1e-10)
    y = torch.randn(4, *shape, dtype=torch.float64)
    inner = operator.inner((y,), (z,))
    assert torch.allclose(inner, (y * operator.apply((z,))[0]).sum(), atol=1e-10)


def test_every_monotone_matrix_has_parameters():
    seeded()
    free = torch.randn(5, 5, dtype=torch.float64)
    matrix = free - (torch.linalg.eigvalsh((free + free.T) / 2)[-1] - 0.7) * torch.eye(5, dtype=torch.float64)
    operator = dense(5, 0.2)
    a, b = parameters_of(matrix, 0.2)
    with torch.no_grad():
        operator.A.copy_(a)
        operator.B.copy_(b)
    assert torch.allclose(operator.matrix(), matrix, atol=1e-10)
    with pytest.raises(ValueError, match=r"not with 0\.9"):
        parameters_of(matrix, 0.9)


@pytest.mark.parametrize("side", [5, 6])
def test_a_spectrum_is_a_circular_convolution(side):
    seeded()
    kernel, z = torch.randn(4, 3, 3, 3).double().requires_grad_(), torch.randn(2, 3, side, side).double()
    padded = nn.functional.pad(z, (1, 1, 1, 1), mode="circular")
    expected = nn.functional.conv2d(padded, kernel)
    torus, scratch = Torus(side, z), Workspace()
    spectrum = torus.analysis(pixels(z), scratch)
    reference = torch.fft.fft2(z)[:, :, : torus.half].permute(2, 3, 1, 0).flatten(0, 1)
    assert torch.allclose(spectrum, torch.cat((reference.real, reference.imag), 1), atol=1e-12)
    moved = planar(transfer(kernel.detach(), torus.points(), side)) @ spectrum
    assert torch.allclose(images(torus.synthesis(moved, scratch)), expected, atol=1e-12)
    y = torch.randn_like(expected)
    (gradient,) = torch.autograd.grad((expected * y).sum(), kernel)
    assert torch.allclose(torus.correlation(pixels(y), pixels(z), 3, scratch), gradient, atol=1e-11)


def test_with_the_border_held_at_zero_nothing_wraps_around():
    seeded()
    small, large = circular(2, 6), circular(2, 10)
    large.load_state_dict(small.state_dict())
    z = torch.randn(1, 2, 6, 6).double() * border_mask(6)
    padded = nn.functional.pad(z, (2, 2, 2, 2))
    inside = (slice(None), slice(None), slice(1, 5), slice(1, 5))
    assert torch.allclose(small.apply((z,))[0][inside], large.apply((padded,))[0][..., 2:8, 2:8][inside], atol=1e-12)


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan])
def test_a_margin_must_be_positive(bad):
    with pytest.raises(ValueError, match="margin must be positive"):
        DenseMonotone(3, bad)
    with pytest.raises(ValueError, match="margin must be positive"):
        CircularMonotone(3, 6, margin=bad)


# ------------------------------------------------------------------------------------------- the equilibrium


@pytest.mark.parametrize("make", OPERATORS)
def test_one_equilibrium_from_everywhere_and_by_every_method(make):
    seeded()
    operator, shape = make()
    bias = (torch.randn(3, *shape, dtype=torch.float64),)
    exact = solve(operator, bias, relu, TIGHT).z
    assert (residual(operator, exact, bias, relu) < 1e-10).all()
    for alpha in (0.3, 3.0):
        start = (torch.randn(3, *shape, dtype=torch.float64),)
        assert torch.allclose(
            solve(operator, bias, relu, replace(TIGHT, alpha=alpha), start=start).z[0], exact[0], atol=1e-9
        )
    step = float(operator.m / operator.lipschitz() ** 2)
    forward_backward = solve(operator, bias, relu, Splitting("forward_backward", step, 1e-13, 20000))
    assert torch.allclose(forward_backward.z[0], exact[0], atol=1e-9)


@pytest.mark.parametrize("make", OPERATORS)
@pytest.mark.parametrize("method", ["peaceman_rachford", "forward_backward"])
def test_examples_stop_on_their_own_with_the_same_result(make, method):
    seeded()
    operator, shape = make()
    bias = torch.randn(5, *shape, dtype=torch.float64) * torch.tensor([0.0, 1, 10, 100, 1]).double().reshape(
        5, *[1] * len(shape)
    )
    settings = Splitting(method, 0.1, 1e-9, 5000, per_example=True)
    together = solve(operator, (bias,), relu, settings)
    assert together.converged.all()
    for row in range(5):
        alone = solve(operator, (bias[row : row + 1],), relu, settings)
        assert torch.allclose(alone.z[0][0], together.z[0][row], atol=1e-12)
        assert alone.iterations[0] == together.iterations[row]
    whole = solve(operator, (bias,), relu, replace(settings, per_example=False, rtol=1e-12))
    assert torch.allclose(whole.z[0], together.z[0], atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("make", OPERATORS)
def test_peaceman_rachford_contracts_as_fast_as_it_says(make):
    seeded()
    operator, shape = make()
    bias, alpha = (torch.randn(2, *shape, dtype=torch.float64),), 0.6
    exact = solve(operator, bias, relu, replace(TIGHT, alpha=alpha)).z[0]
    rate = float(operator.factorize(alpha).contraction())
    first = None
    for k in range(1, 12):
        z = solve(operator, bias, relu, Splitting(alpha=alpha, rtol=0.0, max_iterations=k)).z[0]
        error = float((z - exact).norm())
        first = first or float((exact - alpha * (exact - operator.apply((exact,))[0] - bias[0])).norm())
        assert error <= rate ** (k - 1) * first * (1 + 1e-9) + 1e-9


@pytest.mark.parametrize("activation", [leaky_relu(0.2), tanh, sigmoid], ids=["leaky", "tanh", "sigmoid"])
@pytest.mark.parametrize("alpha", [0.3, 1.0, 2.5])
def test_other_activations_need_their_own_prox(activation, alpha):
    seeded()
    operator = dense(5, scale=2.0)
    bias = (torch.randn(4, 5, dtype=torch.float64),)
    z = solve(operator, bias, activation, replace(TIGHT, alpha=alpha)).z
    assert (residual(operator, z, bias, activation) < 1e-9).all()
    if alpha != 1.0:
        naive = replace(activation, prox=lambda v, _: activation(v))
        wrong = solve(operator, bias, naive, replace(TIGHT, alpha=alpha)).z
        assert (residual(operator, wrong, bias, activation) > 1e-4).any()


def test_degenerate_input():
    operator = dense(4)
    with torch.no_grad():
        operator.A.zero_()
        operator.B.zero_()
    bias = (torch.randn(1, 4, dtype=torch.float64),)
    solution = solve(operator, bias, relu, TIGHT)
    assert torch.equal(solution.z[0], bias[0].clamp_min(0))
    assert solution.iterations[0] == 2
    negative = (-torch.ones(2, 4, dtype=torch.float64),)
    assert torch.equal(solve(operator, negative, relu, TIGHT).z[0], torch.zeros(2, 4, dtype=torch.float64))
    for per_example in (False, True):
        nan = (torch.full((1, 4), torch.nan, dtype=torch.float64),)
        settings = Splitting(rtol=1e-3, max_iterations=20, per_example=per_example)
        assert not solve(operator, nan, relu, settings).converged.any(), "NaN never counts as converged"
