"""Batches: every example once, reproducible by (seed, epoch), resumable at a step, cut among ranks."""

import pytest
import torch

from robustrun.data import DeviceLoader, augmentations
from robustrun.runtime.distributed import Distributed
from robustrun.runtime.seeds import derive_seed


def seed_for(*key: object) -> int:
    return derive_seed(0, *key)


@pytest.fixture
def data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (50, 3, 8, 8), generator=generator, dtype=torch.uint8)
    return images, torch.arange(50) % 7


def make(data, batch_size=16, **options) -> DeviceLoader:
    return DeviceLoader(*data, batch_size, seed_for=seed_for, **options)


ALL = augmentations(["pad_crop:2", "flip", "cutout:3", "rotate:20", "jitter:0.2"])


def test_in_order_and_as_they_are(data):
    batches = list(make(data).epoch(0))
    assert [len(batch.inputs) for batch in batches] == [16, 16, 16, 2]
    assert torch.equal(torch.cat([batch.indices for batch in batches]), torch.arange(50))
    assert torch.equal(torch.cat([batch.targets for batch in batches]), data[1])
    inputs = torch.cat([batch.inputs for batch in batches])
    assert inputs.dtype == torch.float32
    assert torch.equal((inputs * 255).round().byte(), data[0])


def test_shuffled_each_epoch_anew(data):
    loader = make(data, shuffle=True)
    orders = [torch.cat([batch.indices for batch in loader.epoch(epoch)]) for epoch in (0, 1, 0)]
    assert orders[0].sort().values.tolist() == list(range(50))
    assert torch.equal(orders[0], orders[2])
    assert not torch.equal(orders[0], orders[1])
    for batch in loader.epoch(1):
        assert torch.equal(batch.targets, data[1][batch.indices])
        assert torch.equal((batch.inputs * 255).round().byte(), data[0][batch.indices])


def test_an_epoch_resumes_at_any_step(data):
    whole = list(make(data, shuffle=True, augment=ALL).epoch(3))
    for start in range(5):
        rest = list(make(data, shuffle=True, augment=ALL).epoch(3, start=start))
        assert len(rest) == 4 - start
        for one, other in zip(whole[start:], rest, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_augmenting_does_not_change_the_order_nor_the_global_generator(data):
    before = torch.get_rng_state()
    plain = torch.cat([batch.indices for batch in make(data, shuffle=True).epoch(0)])
    augmented = torch.cat([batch.indices for batch in make(data, shuffle=True, augment=ALL).epoch(0)])
    assert torch.equal(plain, augmented)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_the_joined_batch(data, world_size):
    joined = make(data, shuffle=True, augment=ALL).epoch(1)
    ranks = [
        make(data, shuffle=True, augment=ALL, rank=rank, world_size=world_size).epoch(1) for rank in range(world_size)
    ]
    for whole, *parts in zip(joined, *ranks, strict=True):
        for name in ("inputs", "targets", "indices"):
            assert torch.equal(getattr(whole, name), torch.cat([getattr(part, name) for part in parts]))
        for rank, part in enumerate(parts):
            cut = Distributed(rank, rank, world_size).slice(len(whole.indices))
            assert torch.equal(part.indices, whole.indices[cut])


def test_a_subset_in_its_own_order(data):
    loader = make(data, batch_size=2, indices=[7, 3, 9])
    assert loader.size == 3
    assert len(loader) == 2
    assert torch.cat([batch.indices for batch in loader.epoch(0)]).tolist() == [7, 3, 9]
    assert torch.cat([batch.targets for batch in loader.epoch(0)]).tolist() == data[1][[7, 3, 9]].tolist()


def test_the_short_last_batch_can_be_dropped(data):
    loader = make(data, drop_last=True)
    assert len(loader) == len(list(loader.epoch(0))) == 3
    assert len(make(data, batch_size=25, drop_last=True)) == 2


def test_form_of_the_output(data):
    batch = next(make(data, channels_last=True, dtype=torch.bfloat16, augment=ALL, shuffle=True).epoch(0))
    assert batch.inputs.dtype == torch.bfloat16
    assert batch.inputs.is_contiguous(memory_format=torch.channels_last)


def test_real_inputs_pass_unscaled():
    features, values = torch.randn(10, 4), torch.randn(10, 2)
    batch = next(DeviceLoader(features, values, 10).epoch(0))
    assert torch.equal(batch.inputs, features)
    assert torch.equal(batch.targets, values)


def test_a_batch_is_a_copy(data):
    """Writing into a batch must not change the data set."""
    features = torch.zeros(4, 2)
    next(DeviceLoader(features, torch.zeros(4), 4).epoch(0)).inputs.add_(1)
    assert features.abs().max() == 0


def test_what_cannot_be(data):
    with pytest.raises(ValueError, match="batch size is 0"):
        make(data, batch_size=0)
    with pytest.raises(ValueError, match="need seed_for"):
        DeviceLoader(*data, 4, shuffle=True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_the_same_batches_on_a_gpu_without_a_sync(data):
    loader = make(data, shuffle=True, augment=ALL, device="cuda", channels_last=True)
    batches = loader.epoch(2)
    first = next(batches)
    torch.cuda.set_sync_debug_mode("error")
    try:
        rest = list(batches)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for on_gpu, on_cpu in zip([first, *rest], make(data, shuffle=True, augment=ALL).epoch(2), strict=True):
        assert torch.equal(on_gpu.indices.cpu(), on_cpu.indices)
        assert (on_gpu.inputs.cpu() - on_cpu.inputs).abs().mean() < 1e-3  # a rotation may round another way
