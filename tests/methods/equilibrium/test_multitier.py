"""The operator on several resolutions against the dense matrix that its definition gives."""

import itertools
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from robustrun.methods.equilibrium import (
    MonotoneMultiTier2d,
    MultiTierMonotone,
    Splitting,
    relu,
    residual,
    solve,
    solve_adjoint,
)
from robustrun.methods.equilibrium.folding import Folding
from robustrun.methods.equilibrium.grid import Torus, pixels
from robustrun.methods.equilibrium.workspace import Workspace
from tests.methods.equilibrium.operators import TIGHT, seeded

SIZES = [
    pytest.param((2, 3), 6, id="an odd half"),
    pytest.param((2, 3), 8, id="an even half"),
    pytest.param((2, 1, 2), 10, id="three tiers"),
]


def make(channels, side, margin=0.5, scale=3.0):
    seeded()
    operator = MultiTierMonotone(channels, side, 3, margin).double()
    with torch.no_grad():
        for parameter in (operator.g, operator.h, operator.gn):
            parameter.copy_(scale * torch.rand_like(parameter))
    return operator


def states(operator, batch=3):
    return tuple(
        torch.randn(batch, len(A), side, side, dtype=torch.float64)
        for A, side in zip(operator.A, operator.sides, strict=True)
    )


def flat(z):
    return torch.cat([tier.flatten(1) for tier in z], 1)


def circular(z, kernel, stride=1):
    return F.conv2d(F.pad(z, (1, 1, 1, 1), mode="circular"), kernel, stride=stride)


@torch.no_grad()
def defined(operator):
    """W = (1 - m) I - A^T A + B - B^T, from its blocks as spatial convolutions."""
    shapes = [(len(A), side, side) for A, side in zip(operator.A, operator.sides, strict=True)]
    ends = [0, *itertools.accumulate(torch.Size(shape).numel() for shape in shapes)]
    spans = [slice(*pair) for pair in itertools.pairwise(ends)]
    a, b = torch.zeros(2, ends[-1], ends[-1], dtype=torch.float64)

    def dense(function, i):
        size = torch.Size(shapes[i]).numel()
        return function(torch.eye(size, dtype=torch.float64).view(size, *shapes[i])).reshape(size, -1).T

    for i, here in enumerate(spans):
        A, B = operator.A[i], operator.B[i]
        a[here, here] = dense(lambda z, A=A, g=operator.g[i]: circular(z, g.sqrt() * A / A.norm()), i)
        b[here, here] = dense(lambda z, B=B, h=operator.h[i]: circular(z, h * B / B.norm()), i)
        if i:
            N, gn, above = operator.N[i - 1], operator.gn[i - 1], spans[i - 1]
            a[here, above] = dense(
                lambda z, N=N, g=gn: F.pad(circular(z, g.sqrt() * N / N.norm(), 2), (0, 1, 0, 1)), i - 1
            )
            b[here, above] = -a[here, here].T @ a[here, above]
    return (1 - operator.m) * torch.eye(ends[-1], dtype=torch.float64) - a.T @ a + b - b.T, spans


@pytest.mark.parametrize(("channels", "side"), SIZES)
def test_it_is_the_matrix_of_its_definition(channels, side):
    operator = make(channels, side)
    matrix, spans = defined(operator)
    for i, j in itertools.combinations(range(len(spans)), 2):
        assert matrix[spans[i], spans[j]].abs().max() < 1e-14, "nothing leads upwards"
    z, y = states(operator), states(operator)
    torch.testing.assert_close(flat(operator.apply(z)), flat(z) @ matrix.T, rtol=0, atol=1e-12)
    torch.testing.assert_close(flat(operator.apply(z, transpose=True)), flat(z) @ matrix, rtol=0, atol=1e-12)
    torch.testing.assert_close(operator.inner(y, z), (flat(y) * (flat(z) @ matrix.T)).sum(), rtol=0, atol=1e-11)


@pytest.mark.parametrize(("channels", "side"), SIZES)
@pytest.mark.parametrize("alpha", [0.05, 0.7, 5.0])
def test_the_resolvent_is_that_of_the_matrix(channels, side, alpha):
    operator = make(channels, side)
    matrix, _ = defined(operator)
    eye = torch.eye(len(matrix), dtype=torch.float64)
    cayley = 2 * torch.linalg.inv((1 + alpha) * eye - alpha * matrix) - eye
    resolvent, z = operator.factorize(alpha), states(operator)
    torch.testing.assert_close(flat(resolvent.cayley(z)), flat(z) @ cayley.T, rtol=0, atol=1e-11)
    torch.testing.assert_close(flat(resolvent.cayley(z, transpose=True)), flat(z) @ cayley, rtol=0, atol=1e-11)
    norm = torch.linalg.matrix_norm(cayley, 2)
    assert norm - 1e-12 <= resolvent.contraction() < 1, "a bound"


@pytest.mark.parametrize(("channels", "side"), SIZES)
@pytest.mark.parametrize("margin", [1.0, 0.1])
def test_the_bounds_hold(channels, side, margin):
    operator = make(channels, side, margin)
    matrix, _ = defined(operator)
    rest = torch.eye(len(matrix), dtype=torch.float64) - matrix
    least = torch.linalg.eigvalsh((rest + rest.T) / 2)[0]
    assert margin - 1e-10 <= operator.monotonicity() <= least + 1e-10
    norm = torch.linalg.matrix_norm(rest, 2)
    assert norm - 1e-10 <= operator.lipschitz() <= 2 * norm


def test_a_negative_scale_does_not_lose_the_margin():
    operator = make((2, 3), 6, margin=0.5)
    with torch.no_grad():
        operator.g.fill_(-2.0)
        operator.gn.fill_(-2.0)
    assert operator.monotonicity() >= 0.5 - 1e-10
    z = states(operator)
    operator.inner(z, z).backward()
    assert all(parameter.grad.isfinite().all() for parameter in operator.parameters())


def test_both_splittings_find_the_same_equilibrium_and_gradient():
    operator = make((1, 2), 6, margin=1.0, scale=1.0)
    bias = tuple(torch.randn_like(tier) for tier in states(operator))
    z = solve(operator, bias, relu, replace(TIGHT, alpha=0.4)).z
    assert (residual(operator, z, bias, relu) < 1e-10).all()
    step = operator.m / float(operator.lipschitz()) ** 2
    slow = Splitting("forward_backward", step, 1e-13, 20000)
    other = solve(operator, bias, relu, slow).z
    torch.testing.assert_close(flat(other), flat(z), rtol=0, atol=1e-9)
    gradient, slope = states(operator), tuple(relu.slope(tier) for tier in z)
    y = solve_adjoint(operator, gradient, slope, replace(TIGHT, alpha=0.4)).z
    other = solve_adjoint(operator, gradient, slope, slow).z
    torch.testing.assert_close(flat(other), flat(y), rtol=0, atol=1e-9)
    matrix, _ = defined(operator)
    j = flat(slope)
    exact = torch.linalg.solve(torch.eye(len(matrix)) - j[:, :, None] * matrix.T, (j * flat(gradient))[..., None])[
        ..., 0
    ]
    torch.testing.assert_close(flat(y), exact, rtol=0, atol=1e-9)


def test_examples_stop_on_their_own():
    operator = make((2, 3), 6)
    bias = tuple(torch.randn_like(tier) * torch.tensor([0.1, 1, 30]).view(3, 1, 1, 1) for tier in states(operator))
    settings = Splitting(alpha=0.3, rtol=1e-9, max_iterations=2000, per_example=True)
    together = solve(operator, bias, relu, settings)
    assert together.converged.all()
    for row in range(3):
        alone = solve(operator, tuple(tier[row : row + 1] for tier in bias), relu, settings)
        assert alone.iterations[0] == together.iterations[row]
        torch.testing.assert_close(flat(alone.z)[0], flat(together.z)[row], rtol=0, atol=1e-12)


def test_gradients_of_the_layer():
    seeded()
    layer = MonotoneMultiTier2d(1, (2, 2), 4, settings=Splitting(alpha=0.5, rtol=1e-12, max_iterations=2000)).double()
    x = torch.randn(1, 1, 4, 4, dtype=torch.float64, requires_grad=True)
    names, direction = [name for name, _ in layer.named_parameters()], torch.randn(2, 4, 4, dtype=torch.float64)

    def function(x, *parameters):
        z = torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (x,))
        return (z * direction).sum()

    assert torch.autograd.gradcheck(function, (x, *layer.parameters()), fast_mode=True)


@pytest.mark.parametrize("side", [4, 6])
def test_folding_is_taking_every_other_pixel(side):
    seeded()
    z, scratch = torch.randn(2, 3, side, side, dtype=torch.float64), Workspace()
    folding, torus = Folding(side, z), Torus(side, z)
    spectrum = torus.analysis(pixels(z), scratch).clone()
    groups = folding.gather(spectrum)
    torch.testing.assert_close(folding.scatter(groups), spectrum, rtol=0, atol=1e-12)
    identity = torch.eye(3, dtype=torch.complex128).expand(4 * len(groups), 3, 3)
    folded = folding.real(folding.strided(identity), rows=False) @ groups
    torch.testing.assert_close(folding.coarse.synthesis(folded, scratch), pixels(z[..., ::2, ::2]), rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="even"):
        Folding(5, z)
