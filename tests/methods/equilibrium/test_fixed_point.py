"""Broyden, Anderson and plain iteration against dense recursions, GMRES and each other."""

import pytest
import torch

from robustrun.methods.equilibrium import FixedPointSolver
from robustrun.methods.equilibrium.workspace import Workspace

METHODS = ["broyden", "anderson", "picard"]


def linear(batch: int, size: int, norm: float, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(size, size, dtype=torch.float64, generator=generator)
    matrix *= norm / torch.linalg.matrix_norm(matrix, 2)
    bias = torch.randn(batch, size, dtype=torch.float64, generator=generator)
    return matrix, bias


class Tanh:
    """tanh(W z + b) that can be evaluated for some of the examples."""

    def __init__(self, matrix, bias):
        self.matrix, self.bias, self.sizes = matrix, bias, []

    def __call__(self, z):
        self.sizes.append(len(z))
        return torch.tanh(z @ self.matrix.T + self.bias)

    def take(self, rows):
        other = Tanh(self.matrix, self.bias[rows])
        other.sizes = self.sizes
        return other


def recorded(function):
    iterates = []

    def wrapped(z):
        iterates.append(z.clone())
        return function(z)

    return wrapped, iterates


def dense_broyden(function, start, steps):
    """The textbook recursion with an explicit inverse Jacobian, one example at a time: (B, steps, D)."""
    everything = []
    for i, z in enumerate(start):
        z, inverse = z.clone(), -torch.eye(len(z), dtype=z.dtype)

        def gap(z, i=i):
            return function(z.expand_as(start))[i] - z

        g = gap(z)
        s = -inverse @ g
        iterates = []
        for _ in range(steps):
            z = z + s
            iterates.append(z)
            g_new = gap(z)
            dg, g = g_new - g, g_new
            v = s @ inverse
            inverse = inverse + torch.outer((s - inverse @ dg) / (v @ dg), v)
            s = -inverse @ g
        everything.append(torch.stack(iterates))
    return torch.stack(everything)


@pytest.mark.parametrize("kind", ["linear", "tanh"])
@pytest.mark.parametrize("batch", [1, 3])
def test_broyden_is_the_dense_recursion(kind, batch):
    matrix, bias = linear(batch, 10, 1.6)
    function = Tanh(matrix, bias) if kind == "tanh" else (lambda z: z @ matrix.T + bias)
    start = torch.zeros_like(bias)
    wrapped, iterates = recorded(function)
    FixedPointSolver("broyden", max_iterations=9, rtol=0.0).solve(wrapped, start)
    expected = dense_broyden(function, start, 8)
    torch.testing.assert_close(torch.stack(iterates[1:9], dim=1), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("norm", [0.9, 3.0])
@pytest.mark.parametrize("size", [1, 3, 6])
def test_broyden_ends_on_linear_problems_after_twice_their_size(size, norm):
    """Also where plain iteration diverges (Gay, SIAM J. Numer. Anal. 16, 1979)."""
    matrix, bias = linear(4, size, norm)
    solution = FixedPointSolver("broyden", max_iterations=2 * size, rtol=0.0).solve(
        lambda z: z @ matrix.T + bias, torch.zeros_like(bias)
    )
    assert solution.absolute.max() < 1e-9


def test_the_first_step_goes_forwards():
    function, iterates = recorded(lambda z: 0.5 * z + 1)
    FixedPointSolver("broyden", max_iterations=1).solve(function, torch.zeros(1, 2))
    assert iterates[1].tolist() == [[1.0, 1.0]]


def test_anderson_is_gmres_one_application_later():
    matrix, bias = linear(1, 8, 0.95)
    function, iterates = recorded(lambda z: z @ matrix.T + bias)
    FixedPointSolver("anderson", max_iterations=6, rtol=0.0, memory=20, ridge=0.0).solve(
        function, torch.zeros_like(bias)
    )
    a = torch.eye(8, dtype=torch.float64) - matrix
    krylov = bias.T
    for k in range(1, 6):  # the GMRES iterate minimises |b - A x| over the Krylov space
        q = torch.linalg.qr(krylov).Q
        x = q @ torch.linalg.lstsq(a @ q, bias.T).solution
        torch.testing.assert_close(iterates[k + 1], (matrix @ x).T + bias, rtol=0, atol=1e-8)
        krylov = torch.cat([krylov, a @ krylov[:, -1:]], dim=1)


def test_anderson_ends_on_linear_problems():
    matrix, bias = linear(3, 6, 0.9)
    solution = FixedPointSolver("anderson", max_iterations=7, rtol=0.0, memory=8, ridge=0.0).solve(
        lambda z: z @ matrix.T + bias, torch.zeros_like(bias)
    )
    assert solution.absolute.max() < 1e-9


@pytest.mark.parametrize("damping", [1.0, 0.5])
def test_andersons_window_of_one_is_plain_iteration(damping):
    matrix, bias = linear(3, 6, 0.9)
    options = {"max_iterations": 5, "rtol": 0.0, "damping": damping}
    plain, mixed = (
        FixedPointSolver(method, memory=1, **options).solve(lambda z: z @ matrix.T + bias, torch.zeros_like(bias)).z
        for method in ("picard", "anderson")
    )
    torch.testing.assert_close(plain, mixed)


@pytest.mark.parametrize("method", METHODS)
def test_methods_agree(method):
    function = Tanh(*linear(5, 12, 0.8))
    tight = FixedPointSolver(method, max_iterations=200, rtol=1e-12)
    solution = tight.solve(function, torch.zeros_like(function.bias))
    assert solution.converged.all()
    torch.testing.assert_close(torch.tanh(solution.z @ function.matrix.T + function.bias), solution.z)
    other = FixedPointSolver("picard", max_iterations=400, rtol=1e-12).solve(function, torch.zeros_like(function.bias))
    torch.testing.assert_close(solution.z, other.z, rtol=0, atol=1e-9)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("rtol", [0.0, 1e-5])
def test_an_example_does_not_depend_on_its_companions(method, rtol):
    matrix, bias = linear(6, 10, 0.9)
    bias[:3] *= torch.tensor([1e-3, 10.0, 1e3])[:, None]  # they stop at different times, so some leave early
    solver = FixedPointSolver(method, max_iterations=25, rtol=rtol, memory=9)
    function = Tanh(matrix, bias)
    together = solver.solve(function, torch.zeros_like(bias))
    if rtol:
        assert len(set(together.iterations.tolist())) > 1
        assert min(function.sizes) < 6
    for i in range(6):
        alone = solver.solve(Tanh(matrix, bias[i : i + 1]), torch.zeros_like(bias[:1]))
        torch.testing.assert_close(alone.z[0], together.z[i], rtol=0, atol=1e-11)
        if rtol:  # at the end of all digits rounding decides
            assert alone.iterations[0] == together.iterations[i]
            torch.testing.assert_close(alone.trace[:, 0], together.trace[: len(alone.trace), i], rtol=1e-6, atol=1e-13)


@pytest.mark.parametrize("method", METHODS)
def test_looking_less_often_changes_nothing(method):
    function = Tanh(*linear(6, 10, 0.9))
    function.bias[0] *= 100
    results = [
        FixedPointSolver(method, max_iterations=30, rtol=1e-4, check_every=every).solve(
            function, torch.zeros_like(function.bias)
        )
        for every in (1, 5)
    ]
    torch.testing.assert_close(results[0].z, results[1].z, rtol=0, atol=1e-12)
    assert torch.equal(results[0].iterations, results[1].iterations)
    assert results[0].evaluations <= results[1].evaluations


def test_the_batch_can_be_judged_by_one_norm():
    function = Tanh(*linear(6, 10, 0.9))
    solver = FixedPointSolver("broyden", max_iterations=30, rtol=1e-4, per_example=False)
    solution = solver.solve(function, torch.zeros_like(function.bias))
    assert len(set(solution.iterations.tolist())) == 1
    gap = torch.tanh(solution.z @ function.matrix.T + function.bias) - solution.z
    assert float(gap.norm()) == pytest.approx(float(solution.absolute.norm()))
    assert solution.converged.all()


@pytest.mark.parametrize(("rtol", "atol"), [(1e-3, 0.0), (0.0, 1e-3), (1e-4, 1e-4)])
def test_tolerances(rtol, atol):
    function = Tanh(*linear(6, 10, 0.9))
    solution = FixedPointSolver("broyden", max_iterations=40, rtol=rtol, atol=atol).solve(
        function, torch.zeros_like(function.bias)
    )
    image = torch.tanh(solution.z @ function.matrix.T + function.bias)
    gap = (image - solution.z).norm(dim=1)
    assert (gap <= atol + rtol * image.norm(dim=1)).all()
    torch.testing.assert_close(solution.absolute, gap)
    torch.testing.assert_close(solution.residual, gap / image.norm(dim=1))


@pytest.mark.parametrize("method", METHODS)
def test_a_constant_function(method):
    target = torch.randn(3, 5)
    solution = FixedPointSolver(method, max_iterations=9, rtol=1e-6).solve(lambda z: target, torch.zeros(3, 5))
    torch.testing.assert_close(solution.z, target)
    assert solution.iterations.tolist() == [1, 1, 1]
    assert solution.converged.all()
    still = FixedPointSolver(method, max_iterations=9, rtol=0.0).solve(lambda z: target, torch.zeros(3, 5))
    torch.testing.assert_close(still.z, target)


@pytest.mark.parametrize("method", METHODS)
def test_the_identity_is_solved_at_once(method):
    start = torch.randn(3, 5)
    solution = FixedPointSolver(method).solve(lambda z: z, start)
    assert torch.equal(solution.z, start)
    assert solution.iterations.tolist() == [0, 0, 0]
    assert solution.evaluations == 1


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("rtol", [0.0, 1e-6])
def test_an_example_at_its_root_stays_there(method, rtol):
    matrix, bias = linear(2, 5, 0.8)
    bias[0] = 0
    solution = FixedPointSolver(method, max_iterations=12, rtol=rtol).solve(
        lambda z: torch.tanh(z @ matrix.T + bias), torch.zeros_like(bias)
    )
    assert torch.equal(solution.z[0], torch.zeros_like(bias[0]))
    assert solution.converged[0]
    assert solution.z.isfinite().all()
    assert solution.residual[1] < 0.1


@pytest.mark.parametrize("method", METHODS)
def test_few_steps(method):
    matrix, bias = linear(2, 5, 0.8)
    start = torch.ones_like(bias)
    none, one = (
        FixedPointSolver(method, max_iterations=steps).solve(lambda z: z @ matrix.T + bias, start) for steps in (0, 1)
    )
    assert torch.equal(none.z, start)
    assert (none.evaluations, one.evaluations) == (1, 2)
    following = start @ matrix.T + bias
    better = one.absolute < none.absolute
    torch.testing.assert_close(one.z[better], following[better])


@pytest.mark.parametrize("method", METHODS)
def test_what_is_not_finite_is_reported_and_the_best_is_kept(method):
    def function(z):
        return torch.where(z.abs() > 3, torch.nan, 2 * z + 1)

    start = torch.tensor([[0.5], [100.0]], dtype=torch.float64)
    solution = FixedPointSolver(method, max_iterations=30, memory=1).solve(function, start)
    assert not solution.converged[1]
    assert solution.residual[1] == torch.inf
    assert torch.equal(solution.z[1], start[1])
    assert solution.z.isfinite().all()
    assert solution.residual[0].isfinite()


def test_the_best_iterate_is_returned():
    function = Tanh(*linear(4, 8, 6.0, seed=2))  # expansive: residuals rise and fall
    solution = FixedPointSolver("picard", max_iterations=12, rtol=0.0).solve(function, torch.zeros_like(function.bias))
    assert (solution.trace[-1] > solution.trace.amin(0)).any()
    gap = torch.tanh(solution.z @ function.matrix.T + function.bias) - solution.z
    torch.testing.assert_close(gap.norm(dim=1), solution.trace.amin(0))


@pytest.mark.parametrize("method", ["broyden", "anderson"])
def test_a_short_memory_is_enough_for_a_contraction(method):
    function = Tanh(*linear(4, 20, 0.9))
    solution = FixedPointSolver(method, max_iterations=150, rtol=1e-8, memory=3).solve(
        function, torch.zeros_like(function.bias)
    )
    assert solution.converged.all()


@pytest.mark.parametrize("method", METHODS)
def test_no_buffer_is_made_twice(method):
    workspace = Workspace()
    function = Tanh(*linear(4, 20, 0.9))
    solver = FixedPointSolver(method, max_iterations=10, rtol=1e-6)
    first = solver.solve(function, torch.zeros_like(function.bias), workspace=workspace)
    kept, held = first.z.clone(), workspace.bytes
    pointers = {name: buffer.data_ptr() for name, buffer in workspace._buffers.items()}
    small = Tanh(function.matrix, function.bias[:2])
    solver.solve(small, torch.ones_like(small.bias), workspace=workspace)
    assert workspace.bytes == held
    assert {name: buffer.data_ptr() for name, buffer in workspace._buffers.items()} == pointers
    assert torch.equal(first.z, kept), "a result is nobody's buffer"


def test_single_precision_follows_double():
    matrix, bias = linear(4, 40, 1.5)
    traces = []
    for dtype in (torch.float32, torch.float64):
        function = Tanh(matrix.to(dtype), bias.to(dtype))
        solution = FixedPointSolver("broyden", max_iterations=60, rtol=1e-5).solve(
            function, torch.zeros_like(function.bias)
        )
        assert solution.converged.all()
        traces.append(solution.trace[:8].double())
    torch.testing.assert_close(traces[0], traces[1], rtol=1e-3, atol=0)
