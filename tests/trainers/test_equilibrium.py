"""Training of equilibrium networks: tuned steps, what is logged, divergence by its name."""

import pytest
import torch

from robustrun.errors import Diverged
from robustrun.models.equilibrium import MonotoneFC, Solver
from robustrun.models.neural_ode import NeuralODE as NeuralODEModel
from robustrun.tasks.images import Images
from robustrun.trainers.equilibrium import Equilibrium, NeuralODE
from robustrun.trainers.recipe import Optimizer

RECIPE = {"epochs": 5, "batch_size": 32, "optimizer": Optimizer(name="adam", lr=1e-2)}


@pytest.fixture
def task(run):
    task = Images(dataset="digits", limit=320)
    task.load(run)
    return task


def train(task, run, *, tune=True, **solver):
    torch.manual_seed(0)
    model = MonotoneFC(task.spec, features=10, solver=Solver(**solver))
    return Equilibrium(tune=tune, **RECIPE).fit(task, model, run)


def test_it_learns_and_logs_the_solver(task, run):
    fitted = train(task, run, alpha=8.0)
    last = fitted.history[-1]
    assert last["train_accuracy"] > 0.5
    assert last["converged"] == 1.0
    assert 1 < last["forward_iterations"] < 20
    assert 1 < last["backward_iterations"] < 20
    assert fitted.history[0]["alpha"] > last["alpha"] <= 1.0  # tuned from the middle of the first epoch on
    assert fitted.model.layer.settings.alpha == float(fitted.states["last"]["_extra_state"]) <= 1.0


def test_untuned_it_keeps_its_step_length(task, run):
    fitted = train(task, run, tune=False, alpha=0.75)
    assert {row["alpha"] for row in fitted.history} == {0.75}


def test_a_solver_that_leaves_the_finite_numbers_is_named(task, run):
    with pytest.raises(Diverged, match=r"step 0: .*forward_backward"):
        train(task, run, tune=False, method="forward_backward", alpha=1e6, max_iterations=2000)


def test_all_processes_take_the_first_ones_step_length(task, run, monkeypatch):
    """Each tunes on its own part of a batch; here the first process, by a stand-in, always says 0.25."""

    def broadcast(self, tensor, source=0):
        assert source == 0
        return tensor.fill_(0.25)

    monkeypatch.setattr(type(run.distributed), "broadcast", broadcast)
    fitted = train(task, run, alpha=1.0)
    assert fitted.history[-1]["alpha"] == 0.25
    assert fitted.model.layer.settings.alpha == 0.25


def test_a_neural_ode_learns_and_counts_its_evaluations(task, run):
    torch.manual_seed(0)
    model = NeuralODEModel(task.spec, filters=3, method="rk4", steps=2)
    fitted = NeuralODE(**RECIPE | {"epochs": 3}).fit(task, model, run)
    last = fitted.history[-1]
    assert last["train_accuracy"] > 0.5
    assert last["forward_evaluations"] == 8
    assert last["backward_evaluations"] >= 8


def test_a_neural_ode_whose_solver_gives_up_has_diverged(task, run):
    model = NeuralODEModel(task.spec, filters=4, max_steps=1, tolerance=1e-9)
    with pytest.raises(Diverged, match="step 0: dopri5"):
        NeuralODE(**RECIPE).fit(task, model, run)
