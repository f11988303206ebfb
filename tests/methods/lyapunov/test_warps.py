import pytest
import torch

from robustrun.methods.lyapunov import (
    CouplingWarp,
    KnownLyapunov,
    Lyapunov,
    ScalarWarp,
    SmoothRelu,
    Warp,
    WarpedLyapunov,
)

from .kinds import scramble, warped
from .test_functions import points
from .test_projection import Square


class Sine(Warp):
    """F(x) = (x_1, x_2 + 10 sin x_1)."""

    def forward_with_tape(self, x):
        return torch.stack([x[:, 0], x[:, 1] + 10 * torch.sin(x[:, 0])], 1), x

    def pull_back(self, tape, gradient):
        return torch.stack([gradient[:, 0] + 10 * torch.cos(tape[:, 0]) * gradient[:, 1], gradient[:, 1]], 1)


@pytest.mark.parametrize("n", [1, 2, 3, 8])
def test_inverse_and_identity_at_first(n):
    warp = CouplingWarp(n) if n > 1 else ScalarWarp(n)
    x = points(n, 200)
    if n > 1:
        torch.testing.assert_close(warp(x), x, rtol=0, atol=0)
    scramble(warp)
    assert (warp(x) - x).abs().max() > 0.1
    torch.testing.assert_close(warp.inverse(warp(x)), x, rtol=1e-10, atol=1e-10)


def test_every_coordinate_is_moved_by_others():
    warp = scramble(CouplingWarp(6))
    jacobian = torch.autograd.functional.jacobian(lambda x: warp(x[None])[0], torch.randn(6))
    assert (jacobian.abs() > 1e-12).double().mean() > 0.9


def test_inside_the_only_stationary_point_is_the_origin():
    lyapunov = warped(2)
    axis = torch.linspace(-4, 4, 201)
    grid = torch.cartesian_prod(axis, axis)
    norm = lyapunov.value_and_gradient(grid)[1].norm(dim=1)
    at = grid.norm(dim=1) < 1e-12
    assert norm[at] < 1e-14
    assert (norm[~at] > 1e-4 * grid[~at].norm(dim=1)).all()
    assert (lyapunov(grid)[~at] > 0).all()


def test_outside_the_warp_there_may_be_others():
    """The published place of epsilon |x|^2 can trap trajectories: a warp with a spurious minimum."""
    outside = WarpedLyapunov(Square(), Sine(), radial_epsilon=0.1)
    assert not outside.stationary_only_at_zero
    minimum = torch.tensor([[2.77366, -3.26987]])
    value, gradient = outside.value_and_gradient(torch.cat([minimum, -minimum]))
    assert gradient.norm(dim=1).max() < 1e-3  # the place is rounded to 1e-5 and V bends by 30
    torch.testing.assert_close(value, torch.full((2,), 9.63864), rtol=0, atol=1e-5)
    # With the outer smoothed ReLU the points stay and the value falls by half its width.
    width = SmoothRelu(1.0)

    def smoothed(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        value, gradient = Square().value_and_gradient(x)
        return width(value), width.slope(value)[:, None] * gradient

    smooth: Lyapunov = WarpedLyapunov(KnownLyapunov(smoothed), Sine(), radial_epsilon=0.1)
    value, gradient = smooth.value_and_gradient(minimum)
    assert gradient.norm() < 1e-3
    assert value.item() == pytest.approx(9.63864 - 0.5, abs=1e-5)
    # Inside, the gradient vanishes nowhere but at the origin.
    assert WarpedLyapunov(Square(), Sine()).value_and_gradient(minimum)[1].norm() > 0.1


def test_couplings_need_two_dimensions():
    with pytest.raises(ValueError, match="two dimensions"):
        CouplingWarp(1)
