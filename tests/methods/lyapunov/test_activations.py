import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robustrun.methods.lyapunov import LeakyRelu, SmoothRelu

ACTIVATIONS = [SmoothRelu(1.0), SmoothRelu(5e-3), SmoothRelu(3.0), LeakyRelu(0.0), LeakyRelu(0.3)]


@pytest.mark.parametrize("width", [0.005, 0.1, 1.0, 2.5])
def test_smooth_relu_in_closed_form(width):
    activation = SmoothRelu(width)
    r = torch.tensor([-1.0, 0.0, width / 2, width, 2 * width])
    expected = torch.tensor([0.0, 0.0, width / 8, width / 2, 1.5 * width])
    torch.testing.assert_close(activation(r), expected, rtol=1e-14, atol=1e-16)
    torch.testing.assert_close(activation.slope(r), torch.tensor([0.0, 0.0, 0.5, 1.0, 1.0]))


def test_smooth_relu_has_a_continuous_slope_and_a_quadratic_bound():
    activation = SmoothRelu(0.7)
    for kink in (0.0, 0.7):
        left, right = activation.slope(torch.tensor([kink - 1e-9, kink + 1e-9]))
        assert abs(left - right) < 1e-8
    r = torch.linspace(0, 50, 1001)
    assert (activation(r) <= r**2 / (2 * 0.7) + 1e-12).all()


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=repr)
@settings(deadline=None, max_examples=60)
@given(r=st.floats(-5, 5), t=st.floats(-5, 5))
def test_difference_is_the_difference(activation, r, t):
    r, t = torch.tensor(r), torch.tensor(t)
    rise, slope = activation.difference(r, t)
    torch.testing.assert_close(rise, activation(r + t) - activation(r), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(slope, activation.slope(r + t), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=repr)
def test_difference_keeps_the_digits_of_tiny_deltas(activation):
    r = torch.tensor([-0.3, 0.0011, 0.4, 0.77])
    t = torch.tensor(1e-20)
    rise, _ = activation.difference(r, t)
    torch.testing.assert_close(rise, activation.slope(r) * t, rtol=1e-12, atol=0)
    assert (activation.difference(r, torch.zeros(()))[0] == 0).all()


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=repr)
def test_bend_is_the_second_derivative(activation):
    r = torch.tensor([-1.0, -0.2, 0.0013, 0.31, 0.77, 4.0], requires_grad=True)
    (expected,) = (
        torch.autograd.grad(activation.slope(r).sum(), r, allow_unused=True, materialize_grads=True)
        if (isinstance(activation, SmoothRelu))
        else (torch.zeros_like(r),)
    )
    found = activation.bend(torch.ones_like(r), activation.slope(r).detach())
    torch.testing.assert_close(torch.zeros_like(r) if found is None else found, expected.detach())


def test_impossible_parameters_are_refused():
    for width in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="width"):
            SmoothRelu(width)
    with pytest.raises(ValueError, match="leak"):
        LeakyRelu(1.0)
