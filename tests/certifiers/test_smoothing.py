import numpy as np
import pytest
import torch
from torch import nn

from robustrun.certifiers.smoothing import Smoothing, radius_name
from robustrun.errors import ConfigError
from robustrun.methods.smoothing import Gaussian
from robustrun.roles import Fitted
from robustrun.runtime import Run
from robustrun.tasks.images import Images

SMALL = {"sigma": 0.5, "n0": 20, "n": 200, "examples": 12, "together": 5, "batch_size": 64, "radii": (0.25, 0.5)}


@pytest.fixture
def task(run):
    task = Images(dataset="digits", test_limit=40)
    task.load(run)
    return task


def prototypes(task, run):
    """Logits of a nearest-mean classifier: linear, and good enough on digits."""
    batch = next(iter(task.loader("train", 1400, run).epoch(0)))
    means = torch.stack([batch.inputs[batch.targets == c].flatten(1).mean(0) for c in range(10)])
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with torch.no_grad():
        model[1].weight.copy_(means)
        model[1].bias.copy_(-means.square().sum(1) / 2)
    return model.eval()


def test_no_point_inside_a_radius_is_answered_otherwise(task, run):
    """PGD against the smoothed vote of a linear model, in its worst direction, just inside every certified radius."""
    model = prototypes(task, run)
    found = Smoothing(**SMALL).certify(task, Fitted(model), run).examples
    assert (found["radius"] > 0.1).sum() >= 6
    images = next(iter(task.loader("test", 40, run, indices=found["index"]).epoch(0))).inputs
    noise = Gaussian(0.5).draw(99, torch.arange(1), (3000, 64), torch.zeros(1, dtype=torch.int64))[0]
    weight = model[1].weight.detach()
    for image, prediction, radius in zip(images, found["predicted"], found["radius"], strict=True):
        if prediction < 0:
            continue
        for rival in range(10):
            if rival != prediction:
                direction = weight[rival] - weight[prediction]
                moved = image.flatten() + 0.99 * radius * direction / direction.norm()
                votes = (model[1](moved + noise).argmax(1) == prediction).float().mean()
                assert votes > 0.5 - 3 * 0.5 / np.sqrt(3000)


def test_metrics_are_those_of_the_records(task, run):
    report = Smoothing(**SMALL).certify(task, Fitted(prototypes(task, run)), run)
    correct, radius = report.examples["correct"], report.examples["radius"]
    assert report.metrics["certified_accuracy"] == correct.mean()
    assert report.metrics["certified_accuracy_r025"] == (correct & (radius >= 0.25)).mean()
    assert report.metrics["certified_accuracy_r050_low"] <= report.metrics["certified_accuracy_r050"]
    assert report.metrics["draws"] == 220
    assert report.counts["forward_passes"] == 12 * 220
    x, y, low, high = next(iter(report.figures["certified_accuracy"].series.values()))
    assert (np.diff(y) <= 0).all()
    assert y[0] == correct.mean()
    assert y[-1] == 0, "the curve ends beyond the largest radius"
    assert ((low <= y) & (y <= high)).all()
    assert x[-1] > radius.max()


def test_the_result_does_not_depend_on_how_the_work_is_cut(task, tmp_path):
    records = []
    for number, cut in enumerate(({}, {"together": 3, "batch_size": 17}, {"shard": "1/2"}, {"shard": "2/2"})):
        with Run.create(tmp_path / str(number), device="cpu", threads=1) as run:
            report = Smoothing(**SMALL | cut).certify(task, Fitted(prototypes(task, run)), run)
            records.append({key: column.tolist() for key, column in report.examples.items()})
    assert records[0] == records[1]
    assert records[0] == {key: records[2][key] + records[3][key] for key in records[0]}


def test_a_killed_certification_goes_on_with_the_same_records(task, tmp_path, monkeypatch):
    with Run.create(tmp_path / "whole", device="cpu", threads=1) as run:
        whole = Smoothing(**SMALL).certify(task, Fitted(prototypes(task, run)), run)
    with Run.create(tmp_path / "cut", device="cpu", threads=1) as run:
        model = prototypes(task, run)
        certifier, calls = Smoothing(**SMALL), iter(range(100))
        original = certifier._certificate

        def dying(*arguments):
            if next(calls) == 1:
                raise KeyboardInterrupt
            return original(*arguments)

        monkeypatch.setattr(certifier, "_certificate", dying)
        with pytest.raises(KeyboardInterrupt):
            certifier.certify(task, Fitted(model), run)
        monkeypatch.setattr(certifier, "_certificate", original)
        resumed = certifier.certify(task, Fitted(model), run)
    assert resumed.metrics == whole.metrics
    assert {k: v.tolist() for k, v in resumed.examples.items()} == {k: v.tolist() for k, v in whole.examples.items()}


def test_saving_draws_leaves_certified_accuracy_alone(task, tmp_path):
    found = {}
    for name, options in {"all": {}, "skip": {"skip_wrong": True}, "adaptive": {"adaptive": True}}.items():
        with Run.create(tmp_path / name, device="cpu", threads=1) as run:
            options = SMALL | {"examples": 40, "n": 2000} | options
            found[name] = Smoothing(**options).certify(task, Fitted(prototypes(task, run)), run).metrics
    names = ["certified_accuracy", "certified_accuracy_r025", "certified_accuracy_r050"]
    assert [found["all"][n] for n in names] == [found["skip"][n] for n in names]
    assert all(abs(found["all"][n] - found["adaptive"][n]) <= 0.051 for n in names)
    assert found["adaptive"]["draws"] < 0.6 * found["all"]["draws"]
    assert found["skip"]["draws"] < found["all"]["draws"]


def test_other_laws_and_norms(task, run):
    model = prototypes(task, run)
    small = SMALL | {"examples": 4}
    assert Smoothing(**small, law="laplace", norm="l1").certify(task, Fitted(model), run).metrics
    with pytest.raises(ConfigError, match="certifies l1 alone"):
        Smoothing(law="uniform", norm="l2")
    with pytest.raises(ConfigError, match="strictly"):
        Smoothing(alpha=0)


def test_truth_may_be_the_models_own_clean_answer(task, run):
    model = prototypes(task, run)
    found = Smoothing(**SMALL, truth="clean").certify(task, Fitted(model), run).examples
    images = next(iter(task.loader("test", 40, run, indices=found["index"]).epoch(0))).inputs
    assert found["label"].tolist() == model(images).argmax(1).tolist()


def test_names_of_radii():
    assert [radius_name(r) for r in (0.25, 0.5, 1.0, 1.25, 1 / 3)] == ["r025", "r050", "r100", "r125", "r0333333"]
