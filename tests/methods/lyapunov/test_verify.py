import pytest
import torch
from torch import nn

from robustrun.methods.bounds import Box
from robustrun.methods.lyapunov import (
    GradientBounds,
    PlainNetwork,
    WrappedLyapunov,
    branch_and_bound,
    decreasing,
    only_equilibrium,
)

from .kinds import ALL, CONVEX

KINDS = [*CONVEX, "plain"]
CORNER = torch.tensor([3.0, 3.0], dtype=torch.float64)


def boxes(count: int, width: float) -> Box:
    lower = 2 * torch.randn(count, 2)
    return Box(lower, lower + width * torch.rand(count, 2))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [0.01, 0.3, 3.0])
def test_bounds_hold_on_every_sample(kind, width):
    lyapunov, region = ALL[kind](2), boxes(300, width)
    value, gradient = GradientBounds(lyapunov)(region)
    samples = torch.cat([region.sample(50), region.lower[None], region.upper[None]])
    values, gradients = (t.unflatten(0, samples.shape[:2]) for t in lyapunov.value_and_gradient(samples.flatten(0, 1)))
    assert ((values >= value.lower) & (values <= value.upper)).all()
    assert ((gradients >= gradient.lower) & (gradients <= gradient.upper)).all()
    if width == 0.01:  # and are not idle
        spread = gradients.amax(0) - gradients.amin(0)
        assert ((gradient.upper - gradient.lower) < 50 * spread + 1e-6).double().mean() > 0.9


@pytest.mark.parametrize("kind", CONVEX)
def test_a_convex_function_is_stationary_at_the_origin_alone(kind):
    coverage = only_equilibrium(CONVEX[kind](2), -CORNER, CORNER)
    assert coverage.proved == pytest.approx(1.0, abs=1e-12)
    assert len(coverage.undecided.lower) == 0


def test_a_stationary_point_elsewhere_is_never_proved_away():
    """A plain network trained to bend down away from the origin: the remaining boxes hold the minimum."""
    torch.manual_seed(1)
    lyapunov = WrappedLyapunov(PlainNetwork(2, (16, 16)), 2, epsilon=0.05)
    minimum = torch.tensor([[2.0, 1.0]])
    optimizer = torch.optim.Adam(lyapunov.parameters(), lr=1e-2)
    ring = minimum + torch.randn(200, 2)
    for _ in range(300):
        optimizer.zero_grad()
        ((lyapunov(ring) - 1 - (ring - minimum).square().sum(1)) ** 2).mean().backward()
        optimizer.step()
    grid = torch.cartesian_prod(*(torch.linspace(-3, 3, 301),) * 2)
    values = lyapunov(grid).detach().view(301, 301)
    inner = values[1:-1, 1:-1]
    neighbours = [values[1 + i : 300 + i, 1 + j : 300 + j] for i in (-1, 0, 1) for j in (-1, 0, 1) if (i, j) != (0, 0)]
    lowest = (inner < torch.stack(neighbours).amin(0)) & (grid.view(301, 301, 2)[1:-1, 1:-1].norm(dim=2) > 0.2)
    assert lowest.any(), "the test needs a spurious minimum"
    coverage = only_equilibrium(lyapunov, -CORNER, CORNER, budget=20_000)
    assert coverage.proved < 1
    for place in grid.view(301, 301, 2)[1:-1, 1:-1][lowest]:
        step = 0.02  # the true minimum lies within a cell of the grid's
        near = (coverage.undecided.lower - step <= place).all(1) & (coverage.undecided.upper + step >= place).all(1)
        assert near.any()


def test_decrease_of_a_contraction_is_proved_and_of_an_expansion_is_not():
    lyapunov = CONVEX["quadratic"](2)
    contraction = nn.Linear(2, 2)
    contraction.weight.data, contraction.bias.data = -torch.eye(2), torch.zeros(2)
    assert decreasing(contraction, lyapunov, 0.1, -CORNER, CORNER, hole=0.1).proved == pytest.approx(1.0)
    contraction.weight.data[0, 0] = 1.0
    found = decreasing(contraction, lyapunov, 0.1, -CORNER, CORNER, hole=0.1, budget=3000)
    assert 0.05 < found.proved < 0.95
    # What is proved is true: where it fails, the boxes are among the undecided.
    x = 6 * torch.rand(3000, 2) - 3
    value, gradient = lyapunov.value_and_gradient(x)
    fails = x[(gradient * contraction(x)).sum(1) + 0.1 * value > 0]
    fails = fails[fails.abs().amax(1) > 0.1]
    left = found.undecided
    inside = ((fails[:, None] >= left.lower) & (fails[:, None] <= left.upper)).all(2).any(1)
    assert len(fails) > 100
    assert inside.all()


def test_branch_and_bound_accounts_for_the_volume():
    def right_half(region: Box) -> torch.Tensor:
        return region.lower[:, 0] >= 0.5

    found = branch_and_bound(right_half, torch.tensor([-1.0, -1.0]), torch.tensor([1.0, 1.0]), hole=0.0, budget=2000)
    assert found.proved == pytest.approx(0.25, abs=1e-12)
    assert found.evaluated <= 2000
    left = found.undecided
    assert float((left.upper - left.lower).prod(1).sum()) == pytest.approx(4 * 0.75, abs=1e-9)
