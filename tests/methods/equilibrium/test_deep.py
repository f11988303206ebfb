"""Implicit gradients against dense solves, differences and unrolled networks; memory; the Jacobian's penalty."""

import copy
import gc
import weakref
from dataclasses import replace

import pytest
import torch
from torch import nn

from robustrun.methods.equilibrium import (
    DeepEquilibrium,
    Equation,
    FixedPointSolver,
    Gradient,
    jacobian_penalty,
    spectral_radius,
    unrolled,
)

METHODS = ["broyden", "anderson", "picard"]
TIGHT = FixedPointSolver("broyden", max_iterations=100, rtol=1e-13)


class Cell(nn.Module):
    """tanh(W z + U x)."""

    def __init__(self, size: int = 5, given: int = 3, norm: float = 0.6):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        w = torch.randn(size, size, dtype=torch.float64, generator=generator)
        self.w = nn.Parameter(w * norm / torch.linalg.matrix_norm(w, 2))
        self.u = nn.Parameter(torch.randn(size, given, dtype=torch.float64, generator=generator))

    def forward(self, z, x):
        return torch.tanh(z @ self.w.T + x @ self.u.T)


def problem(norm: float = 0.6, size: int = 5, batch: int = 4):
    cell = Cell(size, norm=norm)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, 3, dtype=torch.float64, generator=generator).requires_grad_()
    return cell, x, torch.zeros(batch, size, dtype=torch.float64)


def gradients(layer, cell, x, start, weight):
    z = layer(Equation.of(cell, x), start)
    return torch.autograd.grad((z * weight).sum(), (x, *cell.parameters()))


WEIGHT = torch.linspace(-1, 1, 20, dtype=torch.float64).view(4, 5)


@pytest.mark.parametrize(
    ("forward", "backward"), [("broyden", "broyden"), ("anderson", "picard"), ("picard", "anderson")]
)
def test_implicit_gradients_are_those_of_finite_differences(forward, backward):
    cell, x, start = problem(size=3, batch=2)
    layer = DeepEquilibrium(replace(TIGHT, method=forward), replace(TIGHT, method=backward))

    def function(x, w, u):
        return layer(replace(Equation.of(cell, x), weights=(w, u)), start)

    assert torch.autograd.gradcheck(function, (x, cell.w, cell.u), atol=1e-7, rtol=1e-5)


def test_implicit_gradients_are_those_of_a_dense_solve():
    cell, x, start = problem(norm=2.0)
    layer = DeepEquilibrium(TIGHT)
    found = gradients(layer, cell, x, start, WEIGHT)
    z = layer(Equation.of(cell, x), start).detach()
    torch.testing.assert_close(cell(z, x), z)
    for i in range(4):
        one = x.detach()[i]
        jacobian = torch.func.jacrev(lambda z, one=one: cell(z, one))(z[i])
        w = torch.linalg.solve(torch.eye(5, dtype=torch.float64) - jacobian.T, WEIGHT[i])
        by_x = torch.func.jacrev(lambda x, i=i: cell(z[i], x))(one)
        torch.testing.assert_close(found[0][i], w @ by_x, rtol=0, atol=1e-8)


def test_implicit_gradients_are_those_of_a_deep_unrolled_network():
    cell, x, start = problem()
    implicit = gradients(DeepEquilibrium(TIGHT), cell, x, start, WEIGHT)
    deep = gradients(DeepEquilibrium(unroll=70), cell, x, start, WEIGHT)
    for a, b in zip(implicit, deep, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def test_phantom_gradients_approach_the_implicit_ones():
    cell, x, start = problem()
    exact = gradients(DeepEquilibrium(TIGHT), cell, x, start, WEIGHT)
    errors = []
    for steps in (1, 5, 20, 100):
        layer = DeepEquilibrium(TIGHT, gradient=Gradient("phantom", steps, damping=0.5))
        found = gradients(layer, cell, x, start, WEIGHT)
        errors.append(max(float((a - b).abs().max()) for a, b in zip(exact, found, strict=True)))
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 1e-2
    assert errors[-1] < 1e-9


def test_a_jacobian_free_gradient_is_one_step():
    cell, x, start = problem()
    layer = DeepEquilibrium(TIGHT, gradient=Gradient("phantom", 1, damping=1.0))
    z = TIGHT.solve(Equation.of(cell, x), start).z
    expected = torch.autograd.grad((cell(z, x) * WEIGHT).sum(), (x, *cell.parameters()))
    for a, b in zip(gradients(layer, cell, x, start, WEIGHT), expected, strict=True):
        torch.testing.assert_close(a, b)


def test_a_truncated_backward_solve_is_a_truncated_series():
    cell, x, start = problem()
    layer = DeepEquilibrium(TIGHT, FixedPointSolver("picard", max_iterations=3, rtol=0.0))
    found = gradients(layer, cell, x, start, WEIGHT)[0]
    z = TIGHT.solve(Equation.of(cell, x), start).z
    slope = 1 - z**2
    w = WEIGHT
    for _ in range(2):  # the third iterate from zero on
        w = (slope * w) @ cell.w + WEIGHT
    torch.testing.assert_close(found, (slope * w) @ cell.u)


def test_evaluation_mode_has_the_same_gradients():
    cell, x, start = problem()
    layer = DeepEquilibrium(TIGHT)
    training = gradients(layer.train(), cell, x, start, WEIGHT)
    evaluation = gradients(layer.eval(), cell, x, start, WEIGHT)
    assert all(float(g.abs().max()) > 0 for g in evaluation)
    for a, b in zip(training, evaluation, strict=True):
        torch.testing.assert_close(a, b)


def test_frozen_weights_leave_the_gradient_of_the_input():
    cell, x, start = problem()
    expected = gradients(DeepEquilibrium(TIGHT), cell, x, start, WEIGHT)[0]
    cell.requires_grad_(False)
    (DeepEquilibrium(TIGHT)(Equation.of(cell, x), start) * WEIGHT).sum().backward()
    torch.testing.assert_close(x.grad, expected)


def test_no_gradients_where_none_are_wanted():
    cell, x, start = problem()
    layer = DeepEquilibrium(TIGHT)
    with torch.no_grad():
        z = layer(Equation.of(cell, x), start)
    assert not z.requires_grad
    torch.testing.assert_close(layer(Equation.of(cell, x), start), z)


def test_a_second_backward_pass_gives_the_same():
    cell, x, start = problem()
    z = DeepEquilibrium(TIGHT)(Equation.of(cell, x), start)
    first = torch.autograd.grad((z * WEIGHT).sum(), x, retain_graph=True)[0]
    torch.testing.assert_close(torch.autograd.grad((z * WEIGHT).sum(), x)[0], first)


def saved_bytes(action) -> int:
    seen = {}

    def pack(tensor):
        seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        kept = action()  # alive while it is counted, so that no storage is used again
    del kept
    return sum(seen.values())


def test_memory_does_not_grow_with_iterations():
    cell, x, start = problem()

    def size(layer):
        return saved_bytes(lambda: layer(Equation.of(cell, x), start))

    implicit = [size(DeepEquilibrium(FixedPointSolver("broyden", max_iterations=k, rtol=0.0))) for k in (2, 10, 40)]
    deep = [size(DeepEquilibrium(unroll=k)) for k in (2, 10, 18)]
    assert implicit[0] == implicit[1] == implicit[2] > 0
    assert deep[2] - deep[1] == deep[1] - deep[0] > 0


def test_a_forward_pass_leaves_nothing_behind():
    cell, x, start = problem()
    layer = DeepEquilibrium(TIGHT)
    z = layer(Equation.of(cell, x), start)
    taped = weakref.ref(z.grad_fn.tape[2])
    z.sum().backward()
    gc.disable()  # so that nothing may lie in a cycle
    try:
        del z
        assert taped() is None
    finally:
        gc.enable()


def test_statistics():
    cell, x, start = problem()
    layer = DeepEquilibrium(replace(TIGHT, rtol=1e-6), replace(TIGHT, rtol=1e-4))
    gradients(layer, cell, x, start, WEIGHT)
    forward, backward = layer.statistics.forward, layer.statistics.backward
    assert (forward.residual <= 1e-6).all()
    assert (backward.residual <= 1e-4).all()
    assert forward.trace.shape == (int(forward.iterations.max()) + 1, 4)
    assert copy.deepcopy(layer).statistics.forward is None


def test_the_jacobian_penalty_is_the_mean_square_of_its_entries():
    torch.manual_seed(0)
    matrix = nn.Parameter(torch.randn(6, 6, dtype=torch.float64))
    equation = Equation(lambda z, inputs, weights: z @ weights[0].T, weights=(matrix,))
    z = torch.randn(5, 6, dtype=torch.float64)
    estimate = jacobian_penalty(equation, z, probes=4000)
    expected = matrix.square().sum() / 6
    assert estimate.item() == pytest.approx(expected.item(), rel=0.05)
    (gradient,) = torch.autograd.grad(estimate, matrix)
    torch.testing.assert_close(gradient, matrix.detach() / 3, rtol=0, atol=0.15)


def test_the_layer_gives_the_penalty_when_it_is_asked():
    cell, x, start = problem()
    layer = DeepEquilibrium(TIGHT)
    layer(Equation.of(cell, x), start)
    assert layer.statistics.jacobian is None
    layer.probes = 2
    layer(Equation.of(cell, x), start)
    layer.statistics.jacobian.backward()
    assert cell.w.grad.abs().max() > 0


@pytest.mark.parametrize("kind", ["symmetric", "rotation"])
def test_spectral_radius(kind):
    torch.manual_seed(0)
    if kind == "symmetric":
        q = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64)).Q
        matrix = q @ torch.diag(torch.tensor([0.9, -0.6, 0.5, 0.3, 0.2, 0.1], dtype=torch.float64)) @ q.T
    else:  # a complex pair of size 0.9
        turn = torch.tensor([[0.6, -0.8], [0.8, 0.6]], dtype=torch.float64)
        matrix = 0.9 * torch.block_diag(turn, 0.5 * turn, 0.3 * turn)
    equation = Equation(lambda z, inputs, weights: z @ matrix.T)
    radius = spectral_radius(equation, torch.zeros(3, 6, dtype=torch.float64))
    torch.testing.assert_close(radius, torch.full((3,), 0.9, dtype=torch.float64), rtol=0, atol=1e-3)


def test_unrolling_is_repeated_application():
    cell, x, start = problem()
    equation = Equation.of(cell, x)
    by_hand = cell(cell(cell(start, x), x), x)
    torch.testing.assert_close(unrolled(equation, start, 3), by_hand)
    torch.testing.assert_close(DeepEquilibrium(unroll=3)(equation, start), by_hand)


def test_half_precision_of_the_function_leaves_the_solver_in_single():
    cell, x, start = problem()
    cell, x, start = cell.float(), x.float(), start.float()
    layer = DeepEquilibrium(FixedPointSolver("broyden", max_iterations=20, rtol=1e-2))
    exact = layer(Equation.of(cell, x), start)
    equation = Equation.of(cell, x)
    typed = replace(equation, function=lambda z, i, w: equation.function(z, i, w).to(z.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z = layer(typed, start)
    assert z.dtype == torch.float32
    torch.testing.assert_close(z, exact, rtol=0, atol=0.05)
    assert layer.statistics.forward.z.dtype == torch.float32
