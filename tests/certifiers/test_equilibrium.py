"""The report on equilibrium networks: figures that can be checked by hand, and radii that no attack enters."""

import numpy as np
import pytest
import torch

from robustrun.certifiers.equilibrium import Equilibrium, Proof
from robustrun.certifiers.splitting_study import Study
from robustrun.methods.equilibrium import MonotoneLayer, certified_radius, refine, relu, solve
from robustrun.models.equilibrium import MonotoneConv, MonotoneFC, MonotoneMultiTier, Solver, UnconstrainedFC
from robustrun.roles import Batch, ClassificationSpec, ClassificationTask, Fitted

STUDY = Study(examples=10, alphas=(1.0, 0.5), max_iterations=100)
SPEC = ClassificationSpec(input_shape=(1, 4, 4), classes=3)


class Noise(ClassificationTask):
    """Twenty random images with random labels."""

    spec = SPEC

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        self.images = torch.rand(20, 1, 4, 4, generator=generator)
        self.labels = torch.randint(3, (20,), generator=generator)

    def size(self, split):
        return 20 if split == "test" else 0

    def loader(self, split, batch_size, run, *, train=False, indices=None):
        return _Batches(self, list(range(20) if indices is None else indices), batch_size)


class _Batches:
    def __init__(self, task, indices, batch_size):
        self.task, self.indices, self.batch_size, self.size = task, indices, batch_size, len(indices)

    def epoch(self, epoch, start=0):
        for i in range(start * self.batch_size, self.size, self.batch_size):
            rows = torch.tensor(self.indices[i : i + self.batch_size])
            yield Batch(self.task.images[rows], self.task.labels[rows], rows)


def fully_connected(**options):
    torch.manual_seed(0)
    return MonotoneFC(SPEC, features=6, **options)


def certify(model, run, **options):
    return Equilibrium(**{"study": Study(examples=0)} | options).certify(Noise(), Fitted(model), run)


def exact(model, x):
    """Logits of the network at its exact equilibrium."""
    model.layer.settings = Solver(rtol=1e-11, max_iterations=5000).build()
    return model(x)


def test_the_weights_proof_is_that_of_their_matrix():
    model = fully_connected(margin=0.3).double()
    rest = torch.eye(6, dtype=torch.float64) - model.layer.operator.matrix().detach()
    proof = Proof.of(model)
    least = float(torch.linalg.eigvalsh((rest + rest.T) / 2)[0])
    assert 0.3 - 1e-9 < proof.margin <= least
    assert proof.margin == pytest.approx(least)
    assert proof.norm == pytest.approx(float(torch.linalg.matrix_norm(rest, 2)))
    assert proof.sensitivity == pytest.approx(model.injection_norm() / least)


def test_what_a_sound_network_reports(run):
    report = certify(fully_connected(), run, study=STUDY)
    metrics = report.metrics
    assert metrics["converged"] == 1.0
    assert 1 < metrics["iterations"] <= metrics["most_iterations"] < 50
    assert metrics["margin"] == pytest.approx(1.0, abs=0.5)
    assert 0 < metrics["contraction"] < 1
    assert metrics["forward_backward_limit"] == pytest.approx(2 * metrics["margin"] / metrics["operator_norm"] ** 2)
    assert metrics["peaceman_rachford_converged"] == 1.0
    assert metrics["peaceman_rachford_best"] < 40
    assert set(report.figures) == {"certified_accuracy", "peaceman_rachford", "forward_backward", "iterations"}
    assert (report.examples["residual"] < 0.1).all()
    curve = report.figures["certified_accuracy"].series["Lipschitz bound"][1]
    assert (np.diff(curve) <= 0).all()


def test_several_resolutions_are_proved_and_studied_like_one(run):
    metrics = certify(MonotoneMultiTier(SPEC, channels=(2, 3)), run, study=STUDY).metrics
    assert metrics["converged"] == 1.0
    assert metrics["margin"] == pytest.approx(1.0, abs=1e-6)
    assert metrics["peaceman_rachford_converged"] == 1.0
    assert 0 < metrics["contraction"] < 1


def test_a_solver_that_is_stopped_too_early_did_not_converge(run):
    report = certify(fully_connected(solver=Solver(rtol=1e-9, max_iterations=3)), run)
    assert report.metrics["converged"] == 0.0
    assert (report.examples["iterations"] == 3).all()


def test_forward_backward_fails_on_long_steps(run):
    model = fully_connected()
    with torch.no_grad():
        model.layer.operator.B.mul_(5)
    study = Study(examples=10, alphas=(1.0, 0.5), max_iterations=250)
    report = certify(model, run, study=study)
    assert report.metrics["peaceman_rachford_converged"] == 1.0
    assert report.metrics["forward_backward_converged"] == 0.0
    assert not np.isfinite(report.figures["iterations"].series["Forward-Backward"][1]).any()


NETWORKS = {
    "fc": fully_connected,
    "conv": lambda: MonotoneConv(SPEC, channels=2),
    "multi": lambda: MonotoneMultiTier(SPEC, channels=(2, 3)),
}


@pytest.mark.parametrize("build", NETWORKS.values(), ids=NETWORKS)
def test_no_perturbation_within_a_radius_changes_the_prediction(build, run):
    torch.manual_seed(1)
    model = build()
    with torch.no_grad():
        model.readout.weight.mul_(5)
    report = certify(model, run, batch_size=7)
    radius = torch.tensor(report.examples["radius"])
    task, model = Noise(), model.double()
    x = task.images.double()
    predicted = exact(model, x).argmax(1)
    assert (radius > 0).any()
    for step in range(12):
        delta = torch.randn(x.shape, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        if step % 2:  # the direction in which the closest rival gains
            moved = x.clone().requires_grad_()
            logits = exact(model, moved)
            rival = (predicted + 1 + step // 2 % 2) % 3
            lead = logits.gather(1, predicted[:, None]) - logits.gather(1, rival[:, None])
            delta = -torch.autograd.grad(lead.sum(), moved)[0] + 1e-12 * delta
        delta = delta / delta.flatten(1).norm(dim=1).view(-1, 1, 1, 1) * radius.view(-1, 1, 1, 1)
        with torch.no_grad():
            assert (exact(model, x + delta).argmax(1) == predicted).all()
    certified = torch.tensor(report.examples["certified"])
    assert torch.equal(certified, (predicted == task.labels) & (radius > 0))


def test_the_radius_of_an_identity_is_its_closed_form():
    """z = x for positive x: the radius is the distance to the boundary between two classes."""
    readout = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    x = torch.tensor([[3.0, 1.0], [1.0, 1.5], [2.0, 2.0]], dtype=torch.float64)
    radius = certified_radius(x @ readout.T, readout, torch.zeros(3, dtype=torch.float64), 1.0)
    torch.testing.assert_close(radius, torch.tensor([2.0, 0.5, 0.0]).double() / 2**0.5, rtol=1e-7, atol=0)
    shrunk = certified_radius(x @ readout.T, readout, torch.full((3,), 0.4, dtype=torch.float64), 2.0)
    torch.testing.assert_close(shrunk[0], (radius[0] - 0.4) / 2, rtol=1e-7, atol=0)
    assert shrunk[1:].tolist() == [0.0, 0.0]
    assert certified_radius(x * torch.nan, readout, torch.zeros(3), 1.0).tolist() == [0.0] * 3


@pytest.mark.parametrize("iterations", [1, 2, 4])
def test_the_bound_on_an_approximate_equilibrium_holds(iterations):
    model = fully_connected().double()
    layer: MonotoneLayer = model.layer
    bias = layer.bias(torch.randn(50, 16, dtype=torch.float64))
    z = solve(layer.operator, bias, relu, Solver(rtol=1e-15, max_iterations=iterations).build()).z
    truth = solve(layer.operator, bias, relu, Solver(rtol=1e-15, max_iterations=5000).build()).z[0]
    f, error = refine(layer.operator, z, bias, relu, Proof.of(model).margin)
    actual = (f[0] - truth).norm(dim=1)
    assert (actual <= error + 1e-12).all()
    assert (actual > 0.01 * error).any()


def test_nothing_is_certified_without_monotonicity(run):
    torch.manual_seed(0)
    model = UnconstrainedFC(SPEC, features=6)
    with torch.no_grad():
        model.layer.operator.W.mul_(20)
    report = certify(model, run)
    assert report.metrics["margin"] < 0
    assert "lipschitz" not in report.metrics
    assert not report.examples["certified"].any()
    assert (report.examples["radius"] == 0).all()
    assert report.metrics["converged"] < 1.0
