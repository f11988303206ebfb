"""Equilibrium networks: sizes, gradients for every parameter, the step length as state, bounds on U."""

import pytest
import torch
from torch import nn

from robustrun.models.equilibrium import (
    MonotoneConv,
    MonotoneFC,
    MonotoneMultiTier,
    Solver,
    UnconstrainedFC,
    UnconstrainedMultiTier,
)
from robustrun.roles import ClassificationSpec

MNIST = ClassificationSpec(input_shape=(1, 28, 28), classes=10)
CIFAR = ClassificationSpec(
    input_shape=(3, 32, 32), classes=10, mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616)
)
SMALL = ClassificationSpec(input_shape=(1, 6, 6), classes=3)
TIGHT = Solver(rtol=1e-7)
MAKERS = {
    "fc": lambda: MonotoneFC(SMALL, features=5, solver=TIGHT),
    "conv": lambda: MonotoneConv(SMALL, channels=3, solver=TIGHT),
    "multi": lambda: MonotoneMultiTier(SMALL, channels=(2, 3), solver=TIGHT),
    "free": lambda: UnconstrainedFC(SMALL, features=5, solver=TIGHT),
    "free multi": lambda: UnconstrainedMultiTier(SMALL, channels=(2, 3), solver=Solver(method="broyden", rtol=1e-7)),
}


def make(name: str) -> nn.Module:
    torch.manual_seed(0)
    return MAKERS[name]()


@pytest.mark.parametrize(
    ("build", "count"),
    [
        (lambda: MonotoneFC(MNIST), 84_313),
        (lambda: MonotoneFC(MNIST, features=20), 16_710),
        (lambda: UnconstrainedFC(MNIST), 84_313 - 87 * 87),
        (lambda: MonotoneConv(MNIST, channels=54), 79_500),
        (lambda: MonotoneConv(MNIST), 84_460),
        (lambda: MonotoneConv(CIFAR, channels=81), 172_218),
        (lambda: MonotoneConv(CIFAR, channels=200), 853_612),
        (lambda: MonotoneMultiTier(MNIST), 81_394),
        (lambda: MonotoneMultiTier(CIFAR, channels=(16, 32, 60)), 170_194),
        (lambda: MonotoneMultiTier(CIFAR, channels=(64, 128, 128)), 1_014_546),
    ],
)
def test_parameter_counts_are_the_papers(build, count):
    with torch.device("meta"):
        assert sum(p.numel() for p in build().parameters()) == count


@pytest.mark.parametrize("name", MAKERS)
def test_gradients_are_those_of_finite_differences(name):
    model = make(name).double()
    method = "anderson" if name == "free multi" else "peaceman_rachford"
    model.layer.settings = Solver(method=method, rtol=1e-13, max_iterations=2000).build()
    x = torch.rand(4, 1, 6, 6, dtype=torch.float64)
    loss = model(x).square().sum()
    loss.backward()
    for parameter in model.parameters():
        assert parameter.grad is not None
        flat, index = parameter.data.view(-1), parameter.numel() // 2
        with torch.no_grad():
            values = []
            for step in (1e-6, -2e-6):
                flat[index] += step
                values.append(model(x).square().sum())
            flat[index] += 1e-6
        expected = (values[0] - values[1]) / 2e-6
        torch.testing.assert_close(parameter.grad.view(-1)[index], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["fc", "conv", "multi"])
def test_a_tuned_step_length_is_kept_with_the_weights(name):
    model, other = make(name), make(name)
    model.layer.settings = Solver(rtol=1e-2, alpha=4.0).build()
    model.tune(torch.rand(8, 1, 6, 6))
    assert model.layer.settings.alpha != 4.0
    other.load_state_dict(model.state_dict())
    assert other.layer.settings.alpha == model.layer.settings.alpha
    assert all(isinstance(value, torch.Tensor) for value in model.state_dict().values())


@pytest.mark.parametrize("name", MAKERS)
def test_the_bound_on_the_injection_is_its_norm(name):
    model = make(name).double()
    base = torch.zeros(1, 1, 6, 6, dtype=torch.float64)
    with torch.no_grad():
        matrix = torch.func.jacrev(lambda x: model.layer.bias(model.embed(x))[0].flatten())(base).flatten(1)
    norm = float(torch.linalg.matrix_norm(matrix, 2))
    slack = (
        1.2 if name in ("conv", "multi", "free multi") else 1 + 1e-6
    )  # a border of zeros costs a circular bound something
    assert norm <= model.injection_norm() <= slack * norm


def test_the_norm_of_pooling():
    model = make("conv").double()
    matrix = torch.autograd.functional.jacobian(model.pool, torch.zeros(1, 3, 8, 8, dtype=torch.float64)).flatten(2)[0]
    assert float(torch.linalg.matrix_norm(matrix, 2)) == pytest.approx(model.pool_norm)


def test_the_tasks_normalisation_goes_before_the_models_own():
    image = torch.full((1, 3, 32, 32), 0.5)
    assert MonotoneFC(MNIST, features=2).embed(image[:, :1, :28, :28])[0, 0] == pytest.approx((0.5 - 0.1307) / 0.3081)
    assert MonotoneFC(CIFAR, features=2).embed(image)[0, 0] == pytest.approx((0.5 - 0.4914) / 0.2470, abs=1e-6)


@pytest.mark.parametrize("name", MAKERS)
def test_half_precision_leaves_the_solver_alone(name):
    model, x = make(name), torch.rand(3, 1, 6, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(x)
    logits.sum().backward()
    torch.testing.assert_close(logits, model(x))


def test_images_must_be_square():
    for build in (MonotoneConv, MonotoneMultiTier):
        with pytest.raises(ValueError, match="square"):
            build(ClassificationSpec(input_shape=(1, 8, 6), classes=2))


def test_the_side_must_halve_from_tier_to_tier():
    with pytest.raises(ValueError, match="odd"):
        MonotoneMultiTier(ClassificationSpec(input_shape=(1, 6, 6), classes=2), channels=(2, 2, 2))


def test_a_free_operator_is_not_split():
    with pytest.raises(ValueError, match="not by peaceman_rachford"):
        UnconstrainedMultiTier(SMALL, channels=(2, 3), solver=TIGHT)
