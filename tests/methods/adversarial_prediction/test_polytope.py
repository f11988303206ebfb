"""The projection onto the marginal polytope: worked examples, a QP solver, optimality conditions."""

import cvxpy as cp
import numpy as np
import pytest
import torch

from robustrun.methods.adversarial_prediction import label_marginals, project
from robustrun.methods.adversarial_prediction.polytope import _SortedRows


def _rows(*rows):
    return torch.tensor(rows, dtype=torch.float64)


def _suboptimality(points, projection):
    """max over the polytope's vertices V of <A - P, V - P>: zero exactly at the projection (variational inequality)."""
    rest = points - projection
    sums = rest.sort(-1, descending=True).values.cumsum(-1)
    best = sums.diagonal(dim1=-2, dim2=-1).amax(-1).clamp(min=0.0)
    return best - (rest * projection).sum((-1, -2))


def _violation(projection):
    n = projection.shape[-1]
    probability = projection.sum(-1) / torch.arange(1, n + 1)
    over = torch.maximum(projection.amax(-1) - probability, -projection.amin(-1)).amax(-1)
    return torch.maximum(over, probability.sum(-1) - 1.0)


def _cases(seed=0):
    generator = torch.Generator().manual_seed(seed)
    for n in (1, 2, 3, 5, 8, 25):
        for scale in (0.01, 0.3, 10.0):
            for mean in (-1.0, 0.1, 1.0):
                points = (torch.randn(8, n, n, generator=generator, dtype=torch.float64) + mean) * scale
                yield points
                yield (points / scale * 2).round() / 2 * scale  # full of ties


def test_worked_examples():
    inner, _ = project(_rows([0.3, 0.4], [0.2, 0.21]))
    torch.testing.assert_close(inner, _rows([0.3, 0.4], [0.205, 0.205]))
    corner, _ = project(_rows([3.0, 0.4], [0.2, 0.21]))
    torch.testing.assert_close(corner, _rows([1.0, 0.0], [0.0, 0.0]), atol=1e-12, rtol=0)
    assert not project(-torch.rand(5, 5, dtype=torch.float64))[0].any()


def test_feasible_optimal_and_idempotent():
    for points in _cases():
        projection, _ = project(points)
        size = max(1.0, points.abs().max().item())
        assert _violation(projection).max() < 1e-9
        assert _suboptimality(points, projection).max() < 1e-8 * size
        again, _ = project(projection)
        torch.testing.assert_close(again, projection, atol=1e-9, rtol=0)
        torch.testing.assert_close(projection[..., -1, :], projection[..., -1, :1].expand_as(projection[..., -1, :]))


def test_warm_starts_and_bisection_agree_with_a_cold_newton():
    for points in _cases(1):
        projection, multipliers = project(points)
        moved = points + 0.05 * torch.randn(
            points.shape, generator=torch.Generator().manual_seed(0), dtype=points.dtype
        )
        torch.testing.assert_close(project(moved, multipliers)[0], project(moved)[0], atol=1e-10, rtol=1e-10)
        if points.shape[-1] <= 5:
            torch.testing.assert_close(project(points, rounds=0)[0], projection, atol=1e-9, rtol=1e-9)


def test_batches_are_independent():
    points = torch.randn(7, 2, 6, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    together, _ = project(points)
    for i in range(7):
        torch.testing.assert_close(together[i, 1], project(points[i, 1])[0], atol=1e-12, rtol=0)


def test_a_cycle_of_newton_is_ended_by_bisection():
    """Found by random search: the active sets of these points repeat with a period."""
    generator = torch.Generator().manual_seed(1)
    used = []
    original = _SortedRows.bisect
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_SortedRows, "bisect", lambda rows: used.append(1) or original(rows))
        for _ in range(300):
            points = (torch.randn(64, 5, 5, generator=generator, dtype=torch.float64) + 0.1) * 10
            projection, _ = project(points, rounds=12)
            assert _violation(projection).max() < 1e-9
            assert _suboptimality(points, projection).max() < 1e-7
            if used:
                return
    pytest.fail("no case needed the bisection")


@pytest.mark.parametrize("n", [2, 4, 7])
def test_against_a_qp_solver(n):
    generator = torch.Generator().manual_seed(n)
    level = np.arange(1, n + 1)
    for scale in (0.1, 1.0):
        points = torch.randn(n, n, generator=generator, dtype=torch.float64) * scale + 0.1
        variable = cp.Variable((n, n), nonneg=True)
        probability = cp.multiply(1 / level, cp.sum(variable, axis=1))
        limits = [cp.sum(probability) <= 1, *(variable[k] <= probability[k] for k in range(n))]
        problem = cp.Problem(cp.Minimize(cp.sum_squares(variable - points.numpy())), limits)
        problem.solve(solver=cp.CLARABEL, tol_gap_abs=1e-12, tol_gap_rel=1e-12, tol_feas=1e-12)
        np.testing.assert_allclose(project(points)[0], variable.value, atol=1e-6)


def test_label_marginals_are_vertices():
    labels = torch.tensor([[0, 0, 0], [1, 0, 1], [1, 1, 1]])
    vertices = label_marginals(labels)
    torch.testing.assert_close(project(vertices)[0], vertices)
    assert vertices.sum((-1, -2)).tolist() == [0, 2, 3]
