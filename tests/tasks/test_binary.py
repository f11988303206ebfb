"""Two-class tasks: splits, fixed mini-batches, imbalance."""

import functools
import operator

import numpy as np
import pytest
import torch

from robustrun.errors import ConfigError
from robustrun.registry import models
from robustrun.tasks.binary import OneAgainstRest, TabularTask


def test_a_table_is_split_once_and_for_all(run):
    task = TabularTask(dataset="whitewine")
    task.load(run)
    assert [task.size(s) for s in ("train", "valid", "test")] == [2743, 686, 1469]
    parts = [set(task._splits[s].tolist()) for s in ("train", "valid", "test")]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 4898
    again, other = TabularTask(dataset="whitewine", split=run.seed), TabularTask(dataset="whitewine", split=7)
    again.load(run)
    other.load(run)
    np.testing.assert_array_equal(task._splits["test"], again._splits["test"])
    assert set(other._splits["test"].tolist()) != parts[2]


def test_features_are_standardised_by_the_model(run):
    task = TabularTask(dataset="abalone")
    task.load(run)
    rows = np.concatenate([task._splits["train"], task._splits["valid"]])
    model = models["mlp_classifier"](task.spec, hidden=[])
    standard = model.layers[0](task._inputs[torch.from_numpy(rows)])
    torch.testing.assert_close(standard.mean(0), torch.zeros(10), atol=1e-4, rtol=0)
    torch.testing.assert_close(standard.std(0), torch.ones(10), atol=1e-4, rtol=0)


def test_mini_batches_keep_their_members(run):
    task = TabularTask(dataset="abalone", limit=110)
    task.load(run)
    loader = task.loader("train", 25, run, train=True)
    first, second = ([b.indices.tolist() for b in loader.epoch(e)] for e in (0, 1))
    assert [len(b) for b in first] == [25, 25, 25, 25, 10]
    assert first != second
    assert sorted(first) == sorted(second)
    assert [b.indices.tolist() for b in loader.epoch(1, start=3)] == second[3:]
    assert sorted(functools.reduce(operator.iadd, first, [])) == sorted(task._splits["train"].tolist())


def test_one_class_against_the_rest(run):
    task = OneAgainstRest(dataset="digits", positive=3)
    task.load(run)
    batch = next(iter(task.loader("test", 10_000, run).epoch(0)))
    assert batch.inputs.shape[1:] == (1, 8, 8)
    assert 0.05 < batch.targets.float().mean() < 0.15
    rare = OneAgainstRest(dataset="digits", positive=3, keep=0.2)
    rare.load(run)

    def positives(t, split):
        return int(t._labels[torch.from_numpy(t._splits[split])].sum())

    assert positives(rare, "train") == round(0.2 * positives(task, "train"))
    assert positives(rare, "valid") == positives(task, "valid")
    assert task.size("train") - rare.size("train") == positives(task, "train") - positives(rare, "train")


def test_wrong_requests(run):
    with pytest.raises(ConfigError, match="no table is called"):
        TabularTask(dataset="wine")
    with pytest.raises(ConfigError, match="classes 0 to 9"):
        OneAgainstRest(dataset="mnist", positive=10)
    with pytest.raises(ConfigError, match="one class only"):
        TabularTask(dataset="abalone", limit=3).load(run)
    with pytest.raises(ConfigError, match="empty split"):
        TabularTask(dataset="abalone", validation=1.0).load(run)
