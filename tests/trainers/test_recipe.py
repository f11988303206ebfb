import pytest
import torch
from torch import nn

from robustrun.errors import ConfigError
from robustrun.trainers.recipe import Optimizer, Schedule


def test_the_cifar_triangle_of_fast_at():
    """Check values of the released schedule: n = 15 x 391 steps, peak 0.2, times where steps begin."""
    n = 15 * 391
    schedule = Schedule(name="cyclic", peak=0.5)
    rate = [0.2 * schedule.factor(t / 391, 15) for t in (0, 1, 2932, 2933, 5864)]
    assert rate == pytest.approx([0, 6.820e-5, 0.19996590, 0.19996590, 6.820e-5], rel=1e-4, abs=1e-9)
    assert len(range(n)) == 5865


def test_momentum_dips_at_the_peak():
    model = nn.Linear(1, 1)
    recipe = Optimizer(name="sgd", lr=0.2, momentum=0.9)
    optimizer = recipe.build(model)
    schedule = Schedule(name="cyclic", peak=0.5, momentum_dip=0.1)
    assert schedule.apply(optimizer, recipe, 5.0, 10.0) == pytest.approx(0.2)
    assert optimizer.param_groups[0]["momentum"] == pytest.approx(0.8)
    schedule.apply(optimizer, recipe, 0.0, 10.0)
    assert optimizer.param_groups[0] == {**optimizer.param_groups[0], "lr": 0.0, "momentum": 0.9}


def test_the_mnist_schedule_of_fast_at():
    schedule = Schedule(name="cyclic", peak=0.4, at="end")
    assert [5e-3 * schedule.factor(t, 10) for t in (4.0, 7.0, 10.0)] == pytest.approx([5e-3, 2.5e-3, 0.0])


def test_the_imagenet_schedule_of_fast_at():
    knots = ((0, 0), (1, 1.0), (6, 0.1), (12, 0.01), (15, 0.001))
    schedule = Schedule(name="knots", knots=knots, at="end")
    rates = [0.4 * schedule.factor(t, 15) for t in (0.5, 3.5, 9.0, 13.5)]
    assert rates == pytest.approx([0.2, 0.22, 0.022, 0.0022])


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("piecewise", [1.0, 1.0, 0.1, 0.01, 0.01]),
        ("stairs", [1.0, 0.8, 0.5, 0.3, 0.0]),
        ("linear", [1.0, 1.0, 1.0 - 0.9 * 34 / 67, 0.1 - 0.09 * 17 / 67, 0.01]),
        ("cosine", [1.0, 0.853553, 0.5, 0.146447, 0.0]),
        ("flat", [1.0] * 5),
    ],
)
def test_the_schedules_of_robust_overfitting(name, values):
    schedule = Schedule(name=name)
    assert [schedule.factor(t, 200) for t in (0, 50, 100, 150, 200)] == pytest.approx(values, abs=1e-6)


def test_check_values_of_robust_overfitting():
    """Learning rates of its schedules at times between epochs, of 200."""
    linear, stairs = Schedule(name="linear"), Schedule(name="stairs")
    assert [0.1 * linear.factor(t, 200) for t in (66, 99.5, 133)] == pytest.approx([0.1, 0.055, 0.01])
    assert [0.1 * stairs.factor(t, 200) for t in (19.999, 20, 180)] == pytest.approx([0.1, 0.09, 0.01])
    assert [0.1 * Schedule(name="piecewise").factor(t, 200) for t in (99.99, 100, 150)] == pytest.approx(
        [0.1, 0.01, 0.001]
    )
    cyclic = Schedule(name="cyclic", peak=0.4)
    assert [0.2 * cyclic.factor(t, 200) for t in (40, 80, 140)] == pytest.approx([0.1, 0.2, 0.1])
    assert [linear.factor(t, 1) for t in (1 / 3, 0.5, 1.0)] == pytest.approx([1.0, 0.55, 0.01])


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_biases_and_normalisation_can_be_spared_decay(name):
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 2))
    optimizer = Optimizer(name=name, lr=0.1, weight_decay=0.5, decay="weights").build(model)
    weights, rest = optimizer.param_groups
    assert [p.ndim for p in weights["params"]] == [4, 2]
    assert all(p.ndim == 1 for p in rest["params"])
    assert (weights["weight_decay"], rest["weight_decay"]) == (0.5, 0.0)
    assert sum(len(g["params"]) for g in optimizer.param_groups) == len(list(model.parameters()))


def test_a_model_without_parameters_is_refused():
    with pytest.raises(ConfigError, match="has no parameters to train"):
        Optimizer().build(nn.Flatten())


def test_fused_steps_equal_plain_ones():
    torch.manual_seed(0)
    models = [nn.Linear(3, 2) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    recipe = Optimizer(lr=0.1, momentum=0.9, weight_decay=0.01)
    optimizers = [recipe.build(models[0]), torch.optim.SGD(models[1].parameters(), 0.1, 0.9, weight_decay=0.01)]
    for _ in range(5):
        x = torch.randn(4, 3)
        for model, optimizer in zip(models, optimizers, strict=True):
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()
    assert torch.allclose(models[0].weight, models[1].weight, atol=1e-6)


def test_adams_first_beta_follows_the_cycle():
    """The recipe of large monotone networks: 1e-3 to 1e-2 and back, the beta from 0.95 to 0.85 and back."""
    parameter = torch.nn.Parameter(torch.zeros(1))
    recipe = Optimizer(name="adam", lr=1e-2, momentum=173 / 180)
    schedule = Schedule(name="knots", knots=((0, 0.1), (30, 1), (60, 0.1), (65, 0.1)), momentum_dip=1 / 9)
    optimizer = torch.optim.Adam([parameter], lr=1.0)
    for epoch, lr, beta in ((0, 1e-3, 0.95), (15, 5.5e-3, 0.9), (30, 1e-2, 0.85), (62, 1e-3, 0.95)):
        schedule.apply(optimizer, recipe, epoch, 65)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(lr)
        assert optimizer.param_groups[0]["betas"] == (pytest.approx(beta), 0.999)
