"""Tasks with a label a pixel."""

import pytest
import torch

from robustrun.errors import DataError
from robustrun.tasks.cityscapes import CityscapesTask
from robustrun.tasks.street_scenes import StreetScenes
from tests.data.streets import make_tree


def test_cityscapes(tmp_path, run):
    task = CityscapesTask(folder=str(make_tree(tmp_path / "streets")), crop=(16, 32), limit=4, workers=0)
    task.load(run)
    assert task.spec.input_shape == (3, 32, 64)
    assert (task.spec.classes, task.spec.ignore_index, len(task.class_weights)) == (19, 255, 19)
    assert (task.size("train"), task.size("test"), task.size("valid")) == (4, 3, 0)
    crops = list(task.loader("train", 3, run, train=True).epoch(0))
    assert [batch.inputs.shape for batch in crops] == [(3, 3, 16, 32)], "the short last batch is left out"
    whole = list(task.loader("test", 2, run).epoch(0))
    assert [batch.targets.shape for batch in whole] == [(2, 32, 64), (1, 32, 64)]
    (second,) = task.loader("test", 2, run, indices=[2]).epoch(0)
    assert torch.equal(second.inputs, whole[1].inputs)


def test_cityscapes_that_is_not_there(tmp_path, run, monkeypatch):
    monkeypatch.setenv("ROBUSTRUN_DATA", str(tmp_path))
    with pytest.raises(DataError, match=r"leftImg8bit_trainvaltest\.zip"):
        CityscapesTask().load(run)


def test_scales_that_make_no_sense():
    with pytest.raises(ValueError, match="the smallest of the scales"):
        CityscapesTask(scales=(2.0, 0.5))


def test_street_scenes(run):
    task = StreetScenes(train=6, test=4)
    task.load(run)
    (train,) = task.loader("train", 6, run).epoch(0)
    (test,) = task.loader("test", 4, run).epoch(0)
    assert train.inputs.shape == (6, 3, 64, 128)
    assert train.targets.shape == (6, 64, 128)
    assert set(train.targets.unique().tolist()) == {0, 1, 2, 3, 4, 255}
    assert not (train.inputs[:, None] == test.inputs[None]).flatten(2).all(2).any(), "test scenes are others"
    again = StreetScenes(train=3, test=4)
    again.load(run)
    (fewer,) = again.loader("train", 3, run).epoch(0)
    assert torch.equal(fewer.inputs, train.inputs[:3]), "a scene does not depend on how many there are"
    other = StreetScenes(train=3, test=4, scenes_seed=1)
    other.load(run)
    (others,) = other.loader("train", 3, run).epoch(0)
    assert not torch.equal(others.inputs, fewer.inputs)
