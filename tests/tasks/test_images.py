import numpy as np
import pytest
import torch

from robustrun.errors import ConfigError
from robustrun.tasks.images import Images


def loaded(run, **options):
    task = Images(dataset="digits", **options)
    task.load(run)
    return task


def test_splits_and_limits(run):
    task = loaded(run, validation=100, limit=50, test_limit=20)
    assert [task.size(split) for split in ("train", "valid", "test")] == [50, 100, 20]
    everything = loaded(run)
    assert [everything.size(split) for split in ("train", "valid", "test")] == [1437, 0, 360]


def test_the_hold_out_split_is_the_published_one_and_disjoint(run):
    """numpy's legacy generator, seed 0, whatever the job's seed (arXiv 2002.11569)."""
    task = loaded(run, validation=100)
    held, kept = task._indices["valid"], task._indices["train"]
    assert held.tolist() == np.random.RandomState(0).permutation(1437)[:100].tolist()
    assert not set(held) & set(kept)
    assert len(set(held) | set(kept)) == 1437


def test_a_validation_split_that_leaves_nothing(run):
    with pytest.raises(ConfigError, match="leaves nothing of 1437 training examples"):
        loaded(run, validation=1437)


def test_batches_are_pixels_in_the_box_in_order(run):
    task = loaded(run)
    batches = list(task.loader("test", 100, run).epoch(0))
    assert [len(batch.targets) for batch in batches] == [100, 100, 100, 60]
    inputs = torch.cat([batch.inputs for batch in batches])
    assert inputs.dtype == torch.float32
    assert 0 <= inputs.min() < inputs.max() <= 1
    chosen = next(iter(task.loader("test", 3, run, indices=[5, 2, 9]).epoch(0)))
    assert torch.equal(chosen.inputs, inputs[[5, 2, 9]])


def test_training_batches_are_shuffled_and_depend_on_seed_and_epoch_alone(run):
    task = loaded(run, augment=["pad_crop:1"])
    one, again, other = (next(iter(task.loader("train", 64, run, train=True).epoch(e))) for e in (3, 3, 4))
    assert torch.equal(one.inputs, again.inputs)
    assert not torch.equal(one.indices, other.indices)


def test_a_spec_is_known_before_anything_is_read():
    spec = Images(dataset="cifar10").spec
    assert (spec.input_shape, spec.classes, spec.mean[0]) == ((3, 32, 32), 10, 0.4914)
