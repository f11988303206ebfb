"""Training of deep equilibrium models: unrolled first, implicit from the right step on, regularised where asked."""

import pytest
import torch

from robustrun.certifiers.pgd import PGD
from robustrun.models.mdeq import MDEQ
from robustrun.models.mdeq_settings import Solver
from robustrun.roles import Batch
from robustrun.runtime import Run
from robustrun.tasks.images import Images
from robustrun.trainers.implicit import Implicit, Jacobian, WarmUp
from robustrun.trainers.recipe import Optimizer, Schedule

RECIPE = {"batch_size": 32, "optimizer": Optimizer(name="adam", lr=1e-2), "schedule": Schedule(name="cosine")}


@pytest.fixture
def task(run):
    task = Images(dataset="digits", limit=320)
    task.load(run)
    return task


def model(task, **options):
    torch.manual_seed(0)
    settings = {
        "channels": (8, 8), "expansion": 2, "groups": 4, "widths": (2, 4), "features": 16, "dropout": 0.0,
        "solver": Solver(), "forward_steps": 8, "backward_steps": 8,
    }  # fmt: skip
    return MDEQ(task.spec, **settings | options)


class Watched(Implicit):
    """Notes what each step was."""

    def step(self, session, batch: Batch):
        self.seen = getattr(self, "seen", [])
        figures = super().step(session, batch)
        self.seen.append((session.model.layer.statistics.forward is None, figures))
        return figures


def test_it_learns_and_attacks_see_its_true_gradient(run):
    task = Images(dataset="digits", limit=640, test_limit=60)
    task.load(run)
    network = model(
        task, channels=(16, 16), widths=(4, 8), features=32, affine=False, forward_steps=10, backward_steps=10
    )
    recipe = RECIPE | {"optimizer": Optimizer(name="adam", lr=5e-3)}
    fitted = Implicit(epochs=4, warmup=WarmUp(steps=40, layers=5), **recipe).fit(task, network, run)
    second, last = fitted.history[1], fitted.history[-1]
    assert "forward_iterations" not in second
    assert last["train_accuracy"] > 0.75
    assert last["loss"] < second["loss"]
    assert 1 < last["forward_iterations"] <= 10
    assert 0 < last["forward_residual"] < 0.3
    assert 0 < last["backward_residual"] < 0.3

    def robust(steps):
        with Run.create(run.dir / str(steps), seed=0, device="cpu", threads=1) as fresh:
            attack = PGD(norm="linf", epsilon=0.2, alpha=0.05, steps=steps, restarts=1, batch_size=60)
            return attack.certify(task, fitted, fresh).metrics

    attacked, noisy = robust(5), robust(0)
    assert attacked["clean_accuracy"] > 0.7
    assert attacked["robust_accuracy"] < 0.5 * noisy["robust_accuracy"]


@pytest.mark.parametrize("steps", [0, 4])
def test_the_switch_from_unrolled_to_implicit(task, run, steps):
    trainer = Watched(epochs=1, warmup=WarmUp(steps=steps, layers=3), **RECIPE)
    network = model(task)
    fitted = trainer.fit(task, network, run)
    assert [unrolled for unrolled, _ in trainer.seen] == [True] * steps + [False] * (10 - steps)
    assert all(("backward_residual" in figures) != unrolled for unrolled, figures in trainer.seen)
    assert fitted.model.layer.unroll == 0
    rates = [Schedule(name="cosine").factor(step / 10, 1) for step in range(11)]
    assert rates[0] == 1
    assert rates[5] == pytest.approx(0.5)
    assert rates[10] == pytest.approx(0)


def test_the_switch_survives_a_resume(task, run):
    class Interrupted(Exception):
        pass

    class Breaks(Watched):
        def epoch_end(self, session, epoch):
            if epoch == 1 and not getattr(self, "second", False):
                raise Interrupted
            return super().epoch_end(session, epoch)

    trainer = Breaks(epochs=2, warmup=WarmUp(steps=13, layers=3), **RECIPE)
    with pytest.raises(Interrupted):
        trainer.fit(task, model(task), run)
    again = Breaks(epochs=2, warmup=WarmUp(steps=13, layers=3), **RECIPE)
    again.second = True
    again.fit(task, model(task), run)
    assert [unrolled for unrolled, _ in again.seen] == [True] * 3 + [False] * 7


def test_an_unrolled_model_stays_one(task, run):
    trainer = Watched(epochs=1, warmup=WarmUp(steps=2, layers=3), **RECIPE)
    fitted = trainer.fit(task, model(task, unroll=5), run)
    assert all(unrolled for unrolled, _ in trainer.seen)
    assert fitted.model.layer.unroll == 5


def test_the_penalty_makes_the_jacobian_smaller(task, run):
    sizes = []
    for weight in (1e-9, 3.0):
        torch.manual_seed(0)
        trainer = Watched(epochs=1, jacobian=Jacobian(weight=weight), **RECIPE)
        with Run.create(run.dir / str(weight), seed=0, device="cpu", threads=1) as fresh:
            trainer.fit(task, model(task), fresh)
        sizes.append(float(trainer.seen[-1][1]["jacobian"]))
    assert sizes[1] < 0.7 * sizes[0]


def test_the_penaltys_weight(run):
    class Loop:
        step, epochs, fraction = 25, 10, 2.0

    grown = Jacobian(weight=0.5, growth=0.1, every=10)
    assert grown.at(Loop, run) == pytest.approx(0.7)
    assert Jacobian(weight=0.5, until=0.2).at(Loop, run) == 0
    assert Jacobian().at(Loop, run) == 0
    applied = 0
    for step in range(500):
        Loop.step = step
        applied += Jacobian(weight=1.0, fraction=0.1).at(Loop, run) > 0
    assert 25 < applied < 80
