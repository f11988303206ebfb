"""Training of virtual sensors: each loss is what it says, weighting has one path, a killed run resumes."""

import pytest
import torch
from torch import nn

from robustrun.errors import ConfigError
from robustrun.methods.bounds import Bounds, dual_bounds, trace
from robustrun.models.mlp_regressor import MLPRegressor
from robustrun.roles import Batch, RegressionSpec
from robustrun.runtime import Run
from robustrun.tasks.sensors import SensorPublic
from robustrun.trainers.recipe import Optimizer, Schedule
from robustrun.trainers.regression import Adversarial, Noisy, Provable, Standard

RECIPE = {
    "epochs": 3,
    "batch_size": 64,
    "optimizer": Optimizer(name="adam", lr=2e-3),
    "schedule": Schedule(name="cosine"),
}


@pytest.fixture
def task(run):
    task = SensorPublic()
    task.load(run)
    return task


def _model(task) -> nn.Module:
    torch.manual_seed(0)
    return MLPRegressor(task.spec, hidden=(16, 16))


@pytest.mark.parametrize("kind", [Standard, Noisy, Adversarial, Provable])
def test_training_lowers_its_own_loss(kind, task, run):
    model = _model(task)
    trained = kind(**RECIPE | {"epochs": 8}).fit(task, model, run)
    errors = [row["valid_error"] for row in trained.history]
    assert errors[-1] < 0.9 * errors[0]
    assert {"last", "best"} <= set(trained.states)


def test_provable_loss_is_the_worst_relative_error_of_the_dual_bound(task, run):
    model, trainer = _model(task), Provable(**RECIPE, epsilon=2.0)
    batch = next(task.loader("valid", 32, run).epoch(0))
    network = trace(model, task.spec.input_shape)
    region = trainer.region(task, batch.inputs, 2.0)
    assert torch.allclose(region.radius, torch.full_like(batch.inputs, 0.04), atol=1e-6)
    predicted = trainer.range(network, region, batch, run.generator("x"))
    lower, upper = dual_bounds(network, region, outward=False)
    y = batch.targets
    expected = (torch.maximum(upper - y, y - lower) / y).mean()
    assert torch.allclose(trainer.mean_error(predicted, y), expected)
    squared = Provable(**RECIPE, loss="squared").mean_error(predicted, y)
    assert torch.allclose(squared, torch.maximum((upper - y) ** 2, (y - lower) ** 2).mean())


def test_clean_share_draws_the_interval_in(task, run):
    model = _model(task)
    batch = next(task.loader("valid", 16, run).epoch(0))
    network = trace(model, task.spec.input_shape)
    trainer = Provable(**RECIPE, clean=1.0)
    predicted = trainer.range(network, trainer.region(task, batch.inputs, 1.0), batch, run.generator("x"))
    assert torch.allclose(predicted.lower, model(batch.inputs))


def test_an_outside_weight_of_one_is_no_interval(task, tmp_path):
    weights = []
    for name, changes in (("all", {}), ("aimed", {"interval": (0.6, 1.0), "outside": 1.0})):
        with Run.create(tmp_path / name, seed=0, device="cpu", precision="float32", threads=1) as run:
            weights.append(Provable(**RECIPE, **changes).fit(task, _model(task), run).model.state_dict())
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])


def test_weights_count_only_the_interval():
    trainer = Standard(**RECIPE, interval=(0.5, 1.0), outside=0.0)
    y = torch.tensor([[0.2], [0.5], [1.0]])
    p = torch.tensor([[0.9], [0.6], [0.7]])
    assert trainer.mean_error(Bounds(p, p), y).item() == pytest.approx((0.2 + 0.3) / 2)
    nothing = trainer.mean_error(Bounds(p[:1], p[:1]), y[:1])
    assert nothing.item() == 0


def test_epsilon_grows_over_the_first_half():
    trainer = Provable(**RECIPE | {"epochs": 10}, epsilon=2.0)
    assert [trainer.grown(t) for t in (0, 2.5, 5, 9)] == [0, 0.5, 1, 1]
    assert Adversarial(**RECIPE).grown(0) == 1.0


def test_attack_in_training_raises_the_error_within_the_tolerances(task, run):
    model, trainer = _model(task), Adversarial(**RECIPE)
    batch = next(task.loader("valid", 64, run).epoch(0))
    network = trace(model, task.spec.input_shape)
    region = trainer.region(task, batch.inputs, 5.0)
    attacked = trainer.range(network, region, batch, run.generator("x")).lower
    clean = model(batch.inputs)
    assert ((attacked - batch.targets).abs() > (clean - batch.targets).abs()).float().mean() > 0.95
    assert all(p.grad is None for p in model.parameters())
    bound = dual_bounds(network, region)
    assert (attacked >= bound.lower).all()
    assert (attacked <= bound.upper).all()


def test_noise_in_l2(task, run):
    trainer = Noisy(**RECIPE, norm="l2", epsilon=3.0)
    batch = Batch(torch.rand(5, 10), torch.rand(5, 1), torch.arange(5))
    region = trainer.region(task, batch.inputs, 3.0)
    moved = (region.sample(100, run.generator("n")) - batch.inputs) / 0.06
    assert (moved.norm(dim=2) <= 1 + 1e-4).all()


def test_empty_interval_is_refused():
    with pytest.raises(ConfigError, match="interval"):
        Standard(interval=(0.6, 0.6))


def test_model_shape():
    model = MLPRegressor(RegressionSpec((21,)), hidden=(64, 64))
    assert sum(p.numel() for p in model.parameters()) == 5633
    assert model(torch.rand(3, 21)).shape == (3, 1)


def test_layers_without_bounds_are_refused_by_name(task, run):
    model = nn.Sequential(nn.Linear(10, 4), nn.Softmax(dim=1), nn.Linear(4, 1))
    with pytest.raises(ConfigError, match="Softmax"):
        Provable(**RECIPE).fit(task, model, run)
