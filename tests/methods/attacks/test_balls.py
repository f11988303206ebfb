import hypothesis.strategies as st
import pytest
import scipy.stats
import torch
from hypothesis import given, settings

from robustrun.methods.attacks import Ball, norms, steepest


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    norm=st.sampled_from(["linf", "l2"]),
    epsilon=st.floats(0, 2),
    per_example=st.booleans(),
    box=st.sampled_from([(0.0, 1.0), (-1.0, 3.0), None]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_projection_is_in_ball_and_box_and_leaves_members_alone(seed, norm, epsilon, per_example, box, dtype):
    torch.manual_seed(seed)
    x = torch.rand(8, 2, 3, dtype=dtype)
    radius = epsilon * torch.rand(8, dtype=dtype) if per_example else epsilon
    ball = Ball(x, norm, radius, box)
    delta = ball.project(torch.randn_like(x))
    assert (norms(delta, norm) <= torch.as_tensor(radius) * (1 + 1e-6) + 1e-7).all()
    if box is not None:
        assert (x + delta >= box[0] - 1e-7).all()
        assert (x + delta <= box[1] + 1e-6).all()
    torch.testing.assert_close(ball.project(delta), delta, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_no_member_is_nearer_than_the_projection_onto_the_ball(norm):
    torch.manual_seed(0)
    x, outside = torch.full((1, 6), 0.5), torch.randn(1, 6)
    ball = Ball(x, norm, 0.3, box=None)
    nearest = torch.linalg.vector_norm(ball.project(outside) - outside)
    members = ball.project(torch.randn(5000, 6))
    assert torch.linalg.vector_norm(members - outside, dim=1).min() >= nearest - 1e-6


def test_box_after_ball_never_grows_the_norm():
    torch.manual_seed(0)
    x, delta = torch.rand(1000, 12), torch.randn(1000, 12)
    assert (norms(Ball(x, "l2", 1.0).to_box(delta), "l2") <= norms(delta, "l2")).all()


def test_selection_equals_a_ball_of_the_part():
    torch.manual_seed(0)
    x, epsilon, index = torch.rand(6, 3), torch.rand(6), torch.tensor([4, 1])
    for norm in ("linf", "l2"):
        part, fresh = Ball(x, norm, epsilon).select(index), Ball(x[index], norm, epsilon[index])
        delta = torch.randn(2, 3)
        assert torch.equal(part.project(delta), fresh.project(delta))


def test_steepest_direction():
    gradient = torch.tensor([[3.0, -4.0], [0.0, 0.0], [3e-30, -4e-30], [3e30, -4e30]])
    unit = torch.tensor([[0.6, -0.8], [0.0, 0.0], [0.6, -0.8], [0.6, -0.8]])
    torch.testing.assert_close(steepest(gradient, "l2"), unit)
    assert torch.equal(steepest(gradient, "linf"), gradient.sign())


def test_l2_start_has_uniform_radius_and_no_preferred_direction():
    torch.manual_seed(0)
    draws = Ball(torch.full((20_000, 10), 0.5), "l2", 0.1).start("uniform")
    length = norms(draws, "l2")
    assert scipy.stats.kstest((length / 0.1).numpy(), "uniform").pvalue > 0.01
    mean_cosine = (draws / length[:, None]).mean(0)
    assert mean_cosine.abs().max() < 4 / (20_000 * 10) ** 0.5


def test_starts():
    torch.manual_seed(0)
    ball = Ball(torch.full((200, 50), 0.5), "linf", 0.1)
    assert not ball.start("zero").any()
    corners = ball.start("corners")
    torch.testing.assert_close(corners.abs(), torch.full_like(corners, 0.05))
    assert corners.mean().abs() < 0.05 * 4 / 100
    for start, bound in (("uniform", 0.1), ("wide", 0.2), ("cube", 0.5)):
        draw = ball.start(start) / bound
        assert scipy.stats.kstest(draw.flatten().numpy(), scipy.stats.uniform(-1, 2).cdf).pvalue > 0.01
    assert ball.start("gaussian").std().item() == pytest.approx(1e-3, rel=0.05)


def test_same_generator_state_same_start():
    ball = Ball(torch.rand(5, 4), "l2", 0.1)
    first, second = (ball.start("uniform", torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(first, second)


def test_bad_arguments():
    x = torch.rand(1, 2)
    with pytest.raises(ValueError, match="unknown norm"):
        Ball(x, "l1", 0.1)
    with pytest.raises(ValueError, match="epsilon"):
        Ball(x, "linf", -0.1)
    with pytest.raises(ValueError, match="epsilon"):
        Ball(x, "linf", float("nan"))
    with pytest.raises(ValueError, match="unknown start"):
        Ball(x, "linf", 0.1).start("middle")
