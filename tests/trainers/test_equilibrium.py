"""Training of equilibrium networks: tuned steps, what is logged, divergence by its name."""

import pytest
import torch

from robustrun.errors import Diverged
from robustrun.models.equilibrium import MonotoneFC, Solver
from robustrun.tasks.images import Images
from robustrun.trainers.equilibrium import Equilibrium
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
        train(task, run, tune=False, method="forward_backward", alpha=1e6, max_iter=2000)
