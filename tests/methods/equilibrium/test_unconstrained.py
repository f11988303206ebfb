"""A free operator on tiers, and root finders on one that is monotone."""

import pytest
import torch

from robustrun.methods.equilibrium import FreeMultiTier, Splitting, relu, residual, solve, solve_adjoint
from tests.methods.equilibrium.operators import TIGHT, seeded
from tests.methods.equilibrium.test_multitier import flat, make, states


def free(scale=1.0):
    seeded()
    operator = FreeMultiTier((2, 1, 2), 10).double()
    with torch.no_grad():
        for parameter in operator.parameters():
            parameter.mul_(scale)
    return operator


def tiers(batch, scale=1.0):
    shapes = ((2, 10, 10), (1, 6, 6), (2, 4, 4))
    return tuple(scale * torch.randn(batch, *shape, dtype=torch.float64) for shape in shapes)


def matrix(operator):
    n = 200 + 36 + 32
    basis = torch.eye(n, dtype=torch.float64).split((200, 36, 32), 1)
    shapes = ((2, 10, 10), (1, 6, 6), (2, 4, 4))
    with torch.no_grad():
        return flat(operator.apply(tuple(b.reshape(n, *s) for b, s in zip(basis, shapes, strict=True)))).T


def test_its_adjoint_and_what_it_says_of_itself():
    operator = free(3.0)
    dense, z, y = matrix(operator), tiers(2), tiers(2)
    assert dense[:200, 200:].abs().max() == 0, "nothing leads upwards"
    torch.testing.assert_close(flat(operator.apply(z, transpose=True)), flat(z) @ dense, rtol=0, atol=1e-12)
    torch.testing.assert_close(operator.inner(y, z), (flat(y) * (flat(z) @ dense.T)).sum(), rtol=0, atol=1e-10)
    rest = torch.eye(len(dense), dtype=torch.float64) - dense
    least = torch.linalg.eigvalsh((rest + rest.T) / 2)[0]
    assert operator.monotonicity() <= least < 0, "not monotone, and it says so"
    assert operator.lipschitz() >= torch.linalg.matrix_norm(rest, 2)


@pytest.mark.parametrize("method", ["anderson", "broyden"])
def test_root_finders_agree_with_splitting_where_there_is_one_equilibrium(method):
    operator = make((1, 2), 6, margin=1.0, scale=1.0)
    bias = tuple(torch.randn_like(tier) for tier in states(operator))
    exact = solve(operator, bias, relu, TIGHT).z
    found = solve(operator, bias, relu, Splitting(method, 1.0, 1e-11, 300))
    assert found.converged.all()
    assert (residual(operator, found.z, bias, relu) < 1e-9).all()
    torch.testing.assert_close(flat(found.z), flat(exact), rtol=0, atol=1e-8)
    gradient, slope = states(operator), tuple(relu.slope(tier) for tier in exact)
    y = solve_adjoint(operator, gradient, slope, TIGHT).z
    found = solve_adjoint(operator, gradient, slope, Splitting(method, 1.0, 1e-11, 300))
    torch.testing.assert_close(flat(found.z), flat(y), rtol=0, atol=1e-8)


def test_what_has_no_equilibrium_is_not_said_to_have_converged():
    operator = free(30.0)
    solution = solve(operator, tiers(3), relu, Splitting("broyden", 1.0, 1e-6, 20))
    assert not solution.converged.any()
