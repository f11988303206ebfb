"""Training with a label a pixel: it learns, ignored pixels say nothing, the trunk of another run can be taken over."""

import pytest
import torch
from torch import nn

from robustrun.errors import ConfigError
from robustrun.methods.segmentation import pixel_cross_entropy
from robustrun.models.mdeq_segmentation import MDEQSegmentation
from robustrun.roles import Fitted, SegmentationSpec
from robustrun.tasks.street_scenes import StreetScenes
from robustrun.trainers.implicit import WarmUp
from robustrun.trainers.recipe import Optimizer, Schedule
from robustrun.trainers.segmentation import ImplicitSegmentation, Segmentation
from robustrun.trainers.supervised import Monitor, Session

ADAM = Optimizer(name="adam", lr=0.02)


@pytest.fixture
def task(run):
    task = StreetScenes(train=16, test=4)
    task.load(run)
    return task


def network(spec=None, width=8):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, width, 5, 2, 2), nn.ReLU(), nn.Conv2d(width, 5, 1), nn.Upsample(scale_factor=2))


def test_it_learns_and_measures_and_keeps_the_best(task, run):
    monitor = Monitor(splits=("test",), batch_size=4)
    trainer = Segmentation(epochs=6, batch_size=4, optimizer=ADAM, schedule=Schedule(name="poly"), monitor=monitor)
    fitted = trainer.fit(task, network(), run)
    first, last = fitted.history[0], fitted.history[-1]
    assert last["loss"] < 0.7 * first["loss"]
    assert last["train_accuracy"] > first["train_accuracy"]
    assert 0 < last["test_miou"] < last["test_pixel_accuracy"] < 1
    best = max(row["test_miou"] for row in fitted.history)
    assert "best" in fitted.states
    model = fitted.at("best")
    assert trainer.measure(_session(task, model, run), "test", 0)["miou"] == pytest.approx(best)


def _session(task, model, run):
    return Session(task, model, None, run)


def test_class_weights_and_ignored_pixels(task, run):
    task.class_weights = (1.0, 0.0, 0.0, 0.0, 0.0)  # only the sky counts
    trainer = Segmentation(epochs=4, batch_size=8, optimizer=ADAM)
    model = trainer.fit(task, network(), run).model
    (batch,) = task.loader("test", 4, run).epoch(0)
    counted = batch.targets != 255
    assert (model(batch.inputs).argmax(1)[counted] == 0).double().mean() > 0.95
    session = _session(task, model, run)
    logits = model(batch.inputs).detach()
    sky = pixel_cross_entropy(logits, batch.targets.where(batch.targets == 0, 255))
    assert float(trainer.loss(session, logits, batch.targets)) == pytest.approx(float(sky), rel=1e-5)
    right = (logits.argmax(1) == batch.targets)[counted].float().mean()
    assert trainer.right(session, logits, batch.targets) == right


def test_what_makes_no_sense_for_pixels():
    with pytest.raises(ConfigError, match="mixup"):
        Segmentation(mixup=0.5)
    with pytest.raises(ConfigError, match="attacks one label an image"):
        Segmentation(monitor=Monitor(splits=("test",), steps=3))


def test_the_polynomial_schedule():
    schedule = Schedule(name="poly")
    assert [schedule.factor(t, 8) for t in (0, 2, 8)] == pytest.approx([1.0, 0.75**0.9, 0.0])


def small(classes=5):
    torch.manual_seed(0)
    spec = SegmentationSpec((3, 64, 128), classes)
    options = {"channels": (4, 4), "expansion": 1, "groups": 2, "halvings": 2, "forward_steps": 4, "backward_steps": 4}
    return MDEQSegmentation(spec, **options), spec


def test_an_equilibrium_model_begins_unrolled(task, run):
    model, _ = small()
    warmup = WarmUp(steps=2, layers=3)
    trainer = ImplicitSegmentation(epochs=2, batch_size=8, optimizer=ADAM, warmup=warmup)
    fitted = trainer.fit(task, model, run)
    assert "forward_residual" not in fitted.history[0]
    assert fitted.history[1]["forward_iterations"] <= 4
    assert fitted.history[1]["loss"] < fitted.history[0]["loss"]


def test_the_trunk_of_another_run_is_taken_over(task, run, monkeypatch):
    """All that matches by name and shape, here of a model for other classes; the head stays fresh."""
    other, spec = small(classes=7)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1.0)
    fitted = Fitted(other, {"last": other.state_dict()})
    monkeypatch.setattr("robustrun.trainers.segmentation.load_fitted", lambda path, device: (fitted, spec))
    model, _ = small()
    fresh = {name: value.clone() for name, value in model.state_dict().items()}
    trainer = ImplicitSegmentation(initial="somewhere")
    trainer.start_from(_session(task, model, run))
    for name, value in model.state_dict().items():
        taken = other.state_dict()[name].shape == value.shape
        assert torch.equal(value, other.state_dict()[name] if taken else fresh[name]), name
    taken = {name.partition(".")[0] for name in fresh if not torch.equal(fresh[name], model.state_dict()[name])}
    assert {"stem", "cell"} <= taken
    unlike = Fitted(nn.Linear(2, 2), {"last": {"weight": torch.zeros(2, 2)}})
    monkeypatch.setattr("robustrun.trainers.segmentation.load_fitted", lambda path, device: (unlike, spec))
    with pytest.raises(ConfigError, match="no weight there has name and shape"):
        trainer.start_from(_session(task, model, run))
