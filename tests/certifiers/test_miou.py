"""The mIoU certifier: against counting over the whole split, cut up in any way, with the equilibrium's residuals."""

import numpy as np
import pytest
import torch
from torch import nn

from robustrun.certifiers.miou import MeanIntersectionOverUnion
from robustrun.models.mdeq_segmentation import MDEQSegmentation
from robustrun.roles import Fitted
from robustrun.runtime import Run
from robustrun.tasks.street_scenes import StreetScenes


@pytest.fixture
def task(run):
    task = StreetScenes(train=1, test=10)
    task.load(run)
    return task


def network():
    torch.manual_seed(0)
    return nn.Conv2d(3, 5, 1).eval()


def test_its_figures_by_brute_force(task, run):
    model = network()
    report = MeanIntersectionOverUnion(batch_size=3).certify(task, Fitted(model), run)
    (batch,) = task.loader("test", 10, run).epoch(0)
    predicted = model(batch.inputs).argmax(1)
    counted = batch.targets != 255
    ious, recalls = [], []
    for label in range(5):
        here, there = counted & (batch.targets == label), counted & (predicted == label)
        ious.append(float((here & there).sum() / (here | there).sum()))
        recalls.append(float((here & there).sum() / here.sum()))
    metrics = report.metrics
    assert metrics["miou"] == pytest.approx(np.mean(ious))
    assert metrics["mean_class_accuracy"] == pytest.approx(np.mean(recalls))
    assert [metrics[f"iou_{n}"] for n in ("sky", "road", "building", "vehicle", "pole")] == pytest.approx(ious)
    right = (predicted == batch.targets) & counted
    assert metrics["pixel_accuracy"] == pytest.approx(float(right.sum() / counted.sum()))
    assert report.examples["index"].tolist() == list(range(10))
    assert report.examples["pixels"].tolist() == counted.sum((1, 2)).tolist()
    each = right.sum((1, 2)) / counted.sum((1, 2))
    assert report.examples["pixel_accuracy"].tolist() == pytest.approx(each.tolist())
    assert report.figures["confusion"].image.sum(1) == pytest.approx(np.ones(5))


def test_interrupted_or_in_shards_it_says_the_same(task, tmp_path):
    whole, parts = {}, []

    def certify(name, **options):
        with Run.create(tmp_path / name, device="cpu", threads=1) as own:
            return MeanIntersectionOverUnion(batch_size=2, **options).certify(task, Fitted(network()), own)

    whole = certify("whole")
    with Run.create(tmp_path / "cut", device="cpu", threads=1) as own:
        model, calls = network(), iter(range(10))

        def dying(inputs, forward=model.forward):
            if next(calls) == 3:
                raise RuntimeError("killed")
            return forward(inputs)

        model.forward = dying
        with pytest.raises(RuntimeError, match="killed"):
            MeanIntersectionOverUnion(batch_size=2).certify(task, Fitted(model), own)
    assert certify("cut").metrics == whole.metrics
    parts = [certify(f"shard{i}", shard=f"{i}/2") for i in (1, 2)]
    assert sum(part.counts["examples"] for part in parts) == 10
    assert np.concatenate([p.examples["pixels"] for p in parts]).tolist() == whole.examples["pixels"].tolist()


def test_several_looks_of_a_network_that_sees_single_pixels_change_nothing(task, tmp_path):
    found = []
    for name, looks in (("one", {}), ("many", {"flip": True, "window": (32, 48)})):
        with Run.create(tmp_path / name, device="cpu", threads=1) as own:
            report = MeanIntersectionOverUnion(examples=4, **looks).certify(task, Fitted(network()), own)
            found.append(report.metrics)
    assert found[0] == pytest.approx(found[1], abs=1e-3)


def test_an_equilibrium_is_reported(task, run):
    options = {"channels": (4, 4), "expansion": 1, "groups": 2, "forward_steps": 5}
    model = MDEQSegmentation(task.spec, **options)
    report = MeanIntersectionOverUnion(examples=3, batch_size=2).certify(task, Fitted(model), run)
    assert report.examples["residual"].shape == (3,)
    assert report.metrics["iterations"] <= 5
    assert report.metrics["largest_residual"] >= report.metrics["residual"] > 0
