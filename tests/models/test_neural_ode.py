"""Neural ODEs: sizes, the solution of the equation, gradients, and what happens where the solver gives up."""

import math
import sys

import pytest
import torch

from robustrun.errors import ConfigError
from robustrun.models.neural_ode import NeuralODE
from robustrun.roles import ClassificationSpec

MNIST = ClassificationSpec(input_shape=(1, 28, 28), classes=10)
CIFAR = ClassificationSpec(input_shape=(3, 32, 32), classes=10)
SMALL = ClassificationSpec(input_shape=(1, 4, 4), classes=3)


@pytest.mark.parametrize(
    ("spec", "filters", "augment", "time", "count"),
    [
        (MNIST, 92, 0, False, 84_395),
        (MNIST, 92, 0, True, 85_316),
        (MNIST, 64, 5, False, 84_816),
        (MNIST, 64, 5, True, 85_462),
        (CIFAR, 125, 0, False, 172_358),
        (CIFAR, 125, 0, True, 173_611),
        (CIFAR, 64, 10, False, 171_799),
        (CIFAR, 64, 10, True, 172_452),
    ],
)
def test_parameter_counts_are_the_papers(spec, filters, augment, time, count):
    model = NeuralODE(spec, filters=filters, augment=augment, time_dependent=time)
    assert sum(p.numel() for p in model.parameters()) == count


def make(**options):
    torch.manual_seed(0)
    return NeuralODE(SMALL, filters=3, **{"tolerance": 1e-9} | options).double()


def test_a_linear_equation_has_its_exponential():
    """With f(z) = z / 2 for positive z, z(1) = sqrt(e) z(0)."""
    model = make()
    with torch.no_grad():
        for parameter in model.derivative.parameters():
            parameter.zero_()
        model.derivative.first.weight[0] = 1.0
        model.derivative.middle.weight[0, 0, 1, 1] = 1.0
        model.derivative.last.weight[0, 0] = 0.5
        model.readout.weight.copy_(torch.eye(16)[:3])
        model.readout.bias.zero_()
    x = torch.rand(2, 1, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(model(x), math.exp(0.5) * x.flatten(1)[:, :3], rtol=1e-7, atol=0)


@pytest.mark.parametrize("options", [{}, {"augment": 2, "time_dependent": True}], ids=["plain", "augmented"])
def test_adjoint_gradients_are_those_of_finite_differences(options):
    model = make(method="rk4", steps=40, **options)
    with torch.no_grad():  # away from the kinks of ReLU
        model.derivative.first.bias.fill_(3.0)
        model.derivative.middle.bias.fill_(5.0)
    x = torch.rand(2, 1, 4, 4, dtype=torch.float64)
    model(x).square().sum().backward()
    forward, backward = model.evaluations
    assert forward > 5
    assert backward > 5
    for parameter in model.parameters():
        flat, index = parameter.data.view(-1), parameter.numel() // 2
        with torch.no_grad():
            values = []
            for step in (1e-5, -2e-5):
                flat[index] += step
                values.append(model(x).square().sum())
            flat[index] += 1e-5
        expected = (values[0] - values[1]) / 2e-5
        torch.testing.assert_close(parameter.grad.view(-1)[index], expected, rtol=1e-4, atol=1e-6)


def test_fixed_steps_take_four_evaluations_each():
    model = make(method="rk4", steps=5)
    model(torch.rand(2, 1, 4, 4, dtype=torch.float64))
    assert model.evaluations == (20, 0)


def test_a_solver_that_gives_up_says_so():
    with pytest.raises(FloatingPointError, match="dopri5"):
        make(max_steps=1)(torch.rand(2, 1, 4, 4, dtype=torch.float64))


def test_without_the_package_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchdiffeq", None)
    with pytest.raises(ConfigError, match=r"pip install 'robustrun\[ode\]'"):
        NeuralODE(SMALL)
