"""FGSM, PGD and Free training against hand-written steps (correctness tests of arXiv 2001.03994's recipe)."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from robustrun.data import Arrays, Split
from robustrun.roles import ClassificationSpec
from robustrun.runtime import Run
from robustrun.tasks.images import InMemory
from robustrun.trainers.adversarial import Adversarial, CollapseDetector, Free
from robustrun.trainers.recipe import Optimizer, Schedule
from robustrun.trainers.supervised import Monitor, Standard


class Tiny(InMemory):
    """`n` random images of 3 x 8 x 8 in 4 classes."""

    def __init__(self, n=20, augment=(), validation=0):
        super().__init__(list(augment), validation, None, None)
        self.spec = ClassificationSpec((3, 8, 8), 4)
        generator = torch.Generator().manual_seed(0)

        def split(size):
            images = torch.randint(0, 256, (size, 3, 8, 8), generator=generator, dtype=torch.uint8)
            return Split(images, torch.randint(0, 4, (size,), generator=generator))

        self._take(Arrays(split(n), split(12)))


def network(batch_norm=False):
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(4) if batch_norm else nn.Identity()
    return nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 4))


FLAT = {"optimizer": Optimizer(lr=0.1, momentum=0.9), "schedule": Schedule(), "batch_size": 8}


def fresh(tmp_path, name):
    return Run.create(tmp_path / name, seed=0, device="cpu", precision="float32", threads=1)


def trained(trainer, tmp_path, name, task=None, model=None):
    with fresh(tmp_path, name) as run:
        return trainer.fit(task or Tiny(), model or network(), run)


def same(one, other, atol=0.0):
    return all(torch.allclose(a, b, atol=atol, rtol=0) for a, b in zip(one.values(), other.values(), strict=True))


def test_with_radius_zero_it_is_plain_training(tmp_path):
    """Fails if gradients of the attack leak into the parameters'."""
    plain = trained(Standard(epochs=2, **FLAT), tmp_path, "plain")
    fgsm = trained(Adversarial(epochs=2, epsilon=0.0, alpha=0.1, **FLAT), tmp_path, "fgsm")
    assert same(plain.states["last"], fgsm.states["last"], atol=1e-6)


def test_a_step_is_the_one_written_by_hand(tmp_path):
    epsilon, alpha = 8 / 255, 10 / 255
    fitted = trained(Adversarial(epochs=1, epsilon=epsilon, alpha=alpha, start="zero", **FLAT), tmp_path, "run")
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    with fresh(tmp_path, "hand") as run:
        for batch in Tiny().loader("train", 8, run, train=True).epoch(0):
            delta = torch.zeros_like(batch.inputs, requires_grad=True)
            (gradient,) = torch.autograd.grad(F.cross_entropy(model(batch.inputs + delta), batch.targets), delta)
            delta = (alpha * gradient.sign()).clamp(-epsilon, epsilon)
            delta = (batch.inputs + delta).clamp(0, 1) - batch.inputs
            optimizer.zero_grad()
            F.cross_entropy(model(batch.inputs + delta), batch.targets).backward()
            optimizer.step()
    assert same(fitted.states["last"], model.state_dict(), atol=1e-6)


def test_free_is_iterated_fgsm_with_a_carried_start(tmp_path):
    epsilon, replays = 8 / 255, 3
    recipe = {**FLAT, "optimizer": Optimizer(lr=0.05, momentum=0.0)}
    fitted = trained(Free(epochs=2, epsilon=epsilon, replays=replays, **recipe), tmp_path, "run")
    model = network()
    carried = torch.zeros(8, 3, 8, 8)
    with fresh(tmp_path, "hand") as run:
        for epoch in range(2):
            for batch in Tiny().loader("train", 8, run, train=True).epoch(epoch):
                x, n = batch.inputs, len(batch.targets)
                for _ in range(replays):
                    point = (x + carried[:n]).requires_grad_()
                    loss = F.cross_entropy(model(point), batch.targets)
                    *gradients, at_point = torch.autograd.grad(loss, [*model.parameters(), point])
                    carried[:n] = (carried[:n] + epsilon * at_point.sign()).clamp(-epsilon, epsilon)
                    carried[:n] = (x + carried[:n]).clamp(0, 1) - x
                    with torch.no_grad():
                        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                            parameter -= 0.05 * gradient
    assert same(fitted.states["last"], model.state_dict(), atol=1e-6)
    assert fitted.extra["updates"] == 2 * 3 * replays


@pytest.mark.parametrize(
    ("trainer", "updates"),
    [
        (Adversarial(epochs=1, **FLAT), 2),
        (Adversarial(epochs=1, steps=7, **FLAT), 8),
        (Adversarial(epochs=1, steps=7, attack_bn="frozen", **FLAT), 1),
        (Adversarial(epochs=1, steps=7, attack_bn="eval", **FLAT), 1),
        (Free(epochs=1, replays=4, **FLAT), 4),
    ],
)
def test_how_often_running_statistics_move(trainer, updates, tmp_path):
    fitted = trained(trainer, tmp_path, "run", model=network(batch_norm=True))
    assert fitted.states["last"]["1.num_batches_tracked"] == 3 * updates


def test_a_carried_start_belongs_to_slots(tmp_path):
    """A short last batch uses the first slots and leaves the others alone."""
    trainer = Adversarial(epochs=1, start="previous", **FLAT)
    kept = {}

    def step(session, batch):
        before = session.state["carried"].slots.clone()
        result = Adversarial.step(trainer, session, batch)
        n = len(batch.targets)
        assert torch.equal(session.state["carried"].slots[n:], before[n:])
        kept["slots"] = session.state["carried"].slots
        return result

    trainer.step = step
    trained(trainer, tmp_path, "run")
    assert 0 < kept["slots"].abs().max() <= trainer.epsilon + 1e-7


def test_radius_and_step_grow_together():
    trainer = Adversarial(epochs=10, epsilon=0.3, alpha=0.1, epsilon_ramp=0.4, **FLAT)
    assert trainer.radius(0.0) == (0.0, 0.0)
    assert trainer.radius(2.0) == pytest.approx((0.15, 0.05))
    assert trainer.radius(9.0) == pytest.approx((0.3, 0.1))


def test_a_step_size_from_an_epoch_on():
    trainer = Adversarial(epochs=10, epsilon=0.3, alpha=0.375, alpha_schedule={3: 0.6, 5: 0.1}, **FLAT)
    assert [trainer.radius(t)[1] for t in (0.0, 2.99, 3.0, 4.0, 5.5)] == [0.375, 0.375, 0.6, 0.6, 0.1]


def test_the_detector_fires_at_a_drop_and_only_then():
    def fires(accuracies):
        detector, model = CollapseDetector(0.2), nn.Linear(1, 1)
        for index, accuracy in enumerate(accuracies):
            if detector.collapsed(accuracy):
                return index
            detector.keep(accuracy, model)
        return None

    assert fires([0.3, 0.35, 0.4, 0.1]) == 3
    assert fires([0.3, 0.15, 0.1]) is None


def test_after_a_collapse_the_weights_of_the_epoch_before_are_returned(tmp_path):
    trainer = Adversarial(epochs=9, early_stop=True, **FLAT)
    probes = iter([0.3, 0.35, 0.4, 0.1])
    weights = []

    class Scripted(CollapseDetector):
        def probe(self, session, trainer):
            weights.append(copy.deepcopy(session.model.state_dict()))
            return next(probes)

    def prepare(session):
        session.state["collapse"] = Scripted(0.2)

    trainer.prepare = prepare
    fitted = trained(trainer, tmp_path, "run")
    assert len(fitted.history) == 4
    assert same(fitted.states["last"], weights[2])
    assert not same(fitted.states["last"], weights[3])


def test_the_probe_has_no_side_effect(tmp_path):
    kinds = {"plain": False, "probed": True}
    states = {
        name: trained(Adversarial(epochs=2, early_stop=on, **FLAT), tmp_path, name, model=network(True)).states["last"]
        for name, on in kinds.items()
    }
    assert same(states["plain"], states["probed"])


def test_the_monitor_keeps_the_best_states(tmp_path):
    monitor = Monitor(splits=("valid", "test"), steps=2, epsilon=0.03)
    trainer = Adversarial(epochs=6, monitor=monitor, **FLAT)
    fitted = trained(trainer, tmp_path, "run", task=Tiny(30, validation=10))
    assert set(fitted.states) == {"last", "best", "best_test"}
    valid = [row["valid_robust_accuracy"] for row in fitted.history]
    assert all(0 <= value <= 1 for value in valid)
    assert not math.isnan(fitted.history[0]["test_robust_loss"])
    model = fitted.at("best")
    assert same(model.state_dict(), fitted.states["best"])
