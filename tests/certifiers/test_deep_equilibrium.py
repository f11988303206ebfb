"""The report on deep equilibrium classifiers; and other certifiers on them."""

import numpy as np
import pytest
import torch

from robustrun.certifiers.deep_equilibrium import DeepEquilibriumReport
from robustrun.certifiers.smoothing import Smoothing
from robustrun.certifiers.solver_study import Study, saved_bytes
from robustrun.models.mdeq import MDEQ
from robustrun.models.mdeq_settings import Solver
from robustrun.roles import Fitted
from robustrun.tasks.images import Images

STUDY = Study(
    examples=6, steps=12, depths=(1, 3, 5), gradient_examples=2, gradient_layers=(1, 5, 40), damping=1.0
)  # fmt: skip


@pytest.fixture
def task(run):
    task = Images(dataset="digits", limit=100, test_limit=20)
    task.load(run)
    return task


def network(task, **options):
    torch.manual_seed(0)
    settings = {
        "channels": (8, 8), "expansion": 2, "groups": 4, "widths": (2, 4), "features": 16, "dropout": 0.0,
        "solver": Solver(), "forward_steps": 30, "backward_steps": 30,
    }  # fmt: skip
    model = MDEQ(task.spec, **settings | options)
    with torch.no_grad():  # a contraction whose logits depend on the image
        for part in model.modules():
            if isinstance(part, torch.nn.Conv2d):
                part.weight.normal_(0, 0.2)
        for branch in model.cell.branches:
            branch.norm3.weight.fill_(0.05)
            branch.norm3.bias.normal_()
    return model


def certify(model, task, run, **options):
    return DeepEquilibriumReport(**{"study": Study(examples=0), "batch_size": 8} | options).certify(
        task, Fitted(model), run
    )


def test_every_example_is_judged(task, run):
    model = network(task)
    report = certify(model, task, run)
    columns, metrics = report.examples, report.metrics
    assert len(columns["index"]) == 20
    assert metrics["converged"] == 1.0
    assert (columns["residual"] <= 1e-3).all()
    assert metrics["iterations"] == columns["iterations"].mean() < 30
    assert metrics["accuracy"] == columns["correct"].mean() <= metrics["top5_accuracy"]
    batch = next(iter(task.loader("test", 20, run).epoch(0)))
    with torch.no_grad():
        logits = model.eval()(batch.inputs)
    assert np.array_equal(columns["predicted"], logits.argmax(1).numpy())
    rank = (logits > logits.gather(1, batch.targets[:, None])).sum(1)
    assert metrics["top5_accuracy"] == pytest.approx((rank < 5).float().mean().item())


def test_a_solver_that_is_stopped_too_early_did_not_converge(task, run):
    report = certify(network(task, forward_steps=2, solver=Solver(rtol=1e-6)), task, run)
    assert report.metrics["converged"] == 0.0
    assert (report.examples["iterations"] == 2).all()


def test_the_residual_of_an_unrolled_network_is_that_of_its_last_layer(task, run):
    report = certify(network(task, unroll=2), task, run)
    model = network(task).eval()
    batch = next(iter(task.loader("test", 20, run).epoch(0)))
    with torch.no_grad():
        equation, start = model.equation(batch.inputs)
        z = equation(equation(start))
        f = equation(z)
    expected = (f - z).norm(dim=1) / f.norm(dim=1)
    assert np.allclose(report.examples["residual"], expected.numpy(), rtol=1e-3)
    assert report.metrics["iterations"] == 2


def test_the_study(task, run):
    report = certify(network(task), task, run, study=STUDY)
    metrics, figures = report.metrics, report.figures
    assert set(figures) == {"forward_residual", "backward_residual", "accuracy_by_steps", "memory", "gradient"}
    for figure in ("forward_residual", "backward_residual"):
        assert set(figures[figure].series) == {"Broyden", "Anderson", "plain iteration"}
        for evaluations, residual in figures[figure].series.values():
            assert evaluations[0] == 1
            assert residual[-1] < 1e-3 * residual[0]
    assert metrics["spectral_radius"] < 1
    assert metrics["memory_implicit_growth"] == 1
    grown = figures["memory"].series["unrolled network"][1]
    assert np.diff(grown)[0] == pytest.approx(np.diff(grown)[1], rel=1e-6)
    assert grown[-1] > metrics["memory_implicit"] > 0
    assert metrics["gradient_difference"] < 1e-6
    assert metrics["gradient_cosine"] > 0.99
    errors = figures["gradient"].series["all parameters"][1]
    assert errors[0] > errors[-1]
    assert metrics["backward_residual"] <= 1e-3


def test_saved_bytes_are_those_of_distinct_storages():
    model = torch.nn.Linear(4, 4)
    x = torch.randn(8, 4)

    def forward():
        y = model(x)  # x is saved, the weight does not count
        return torch.tanh(y) * torch.tanh(y)  # two results, each saved twice

    assert saved_bytes(model, forward) == 3 * 8 * 4 * 4


def test_randomized_smoothing_runs_on_it(task, run):
    report = Smoothing(sigma=0.25, n0=10, n=40, alpha=0.05, examples=3).certify(task, Fitted(network(task)), run)
    assert len(report.examples["index"]) == 3
