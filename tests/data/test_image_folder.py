"""Streamed images: the same whoever decodes them, resumable at a step, cropped as stated."""

import numpy as np
import pytest
import torch
from PIL import Image

from robustrun.data import ImageFolder, ImageFolderLoader, find_image_folder
from robustrun.errors import ConfigError, DataError
from robustrun.runtime.seeds import derive_seed


def seed_for(*key: object) -> int:
    return derive_seed(0, *key)


@pytest.fixture
def folder(tmp_path):
    """Two classes of lossless images of many sizes, one of them grey."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 9), ("val", 4)):
        for name in ("n01", "n02"):
            place = tmp_path / "set" / split / name
            place.mkdir(parents=True)
            for i in range(count):
                size = (30 + 3 * i, 40 - i) if i else (12, 10)
                pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
                Image.fromarray(pixels if i != 1 else pixels[..., 0]).save(place / f"{i}.png")
    return tmp_path / "set"


def loader(folder, workers=0, split="train", crop="random", size=16, batch_size=5, resize=None, **options):
    images = ImageFolder(folder, split, size=size, crop=crop, resize=resize)
    return ImageFolderLoader(images, batch_size, seed_for=seed_for, workers=workers, **options)


def equal(ones, others) -> bool:
    return all(
        torch.equal(a, b) for one, other in zip(ones, others, strict=True) for a, b in zip(one, other, strict=True)
    )


def test_every_example_once_with_its_label(folder):
    stream = loader(folder, shuffle=True)
    batches = list(stream.epoch(0))
    assert len(batches) == len(stream) == 4
    indices = torch.cat([batch.indices for batch in batches])
    assert indices.sort().values.tolist() == list(range(18))
    assert torch.equal(torch.cat([batch.targets for batch in batches]), (indices >= 9).long())
    assert batches[0].inputs.shape == (5, 3, 16, 16)
    assert 0 <= batches[0].inputs.min() < batches[0].inputs.max() <= 1


def test_workers_steps_and_epochs(folder):
    """Two worker processes see what this one sees, epoch after epoch, also after an epoch cut short."""
    here, there = loader(folder, shuffle=True), loader(folder, workers=2, shuffle=True)
    before = torch.get_rng_state()
    first, second = list(here.epoch(0)), list(here.epoch(1))
    assert torch.equal(before, torch.get_rng_state())
    assert equal(there.epoch(0), first)
    cut = there.epoch(1)
    next(cut)
    cut.close()
    assert equal(there.epoch(1), second)
    assert equal(there.epoch(1, start=2), second[2:])
    assert equal(there.epoch(0, start=3), first[3:])
    assert not torch.equal(first[0].inputs, second[0].inputs)
    again = list(here.epoch(1, start=4))
    assert again == []


def test_ranks_share_the_joined_batch(folder):
    whole = list(loader(folder, shuffle=True).epoch(2))
    parts = [list(loader(folder, shuffle=True, rank=rank, world_size=2).epoch(2)) for rank in (0, 1)]
    for joined, *pieces in zip(whole, *parts, strict=True):
        assert torch.equal(joined.inputs, torch.cat([piece.inputs for piece in pieces]))


def test_the_middle_without_resizing(folder):
    batch = next(loader(folder, split="test", crop="centre", batch_size=8).epoch(0))
    stored = np.asarray(Image.open(folder / "val" / "n01" / "2.png")).transpose(2, 0, 1)
    height, width = stored.shape[1:]
    top, left = round((height - 16) / 2), round((width - 16) / 2)
    assert np.array_equal((batch.inputs[2] * 255).round().byte().numpy(), stored[:, top : top + 16, left : left + 16])
    small = (batch.inputs[0] * 255).round().byte()  # 12 x 10 pixels within 16 x 16
    assert small[:, :2].max() == small[:, 14:].max() == small[:, :, :3].max() == small[:, :, 13:].max() == 0
    assert np.array_equal(
        small[:, 2:14, 3:13].numpy(), np.asarray(Image.open(folder / "val" / "n01" / "0.png")).transpose(2, 0, 1)
    )


def test_resizing_the_shorter_side(folder):
    batch = next(loader(folder, split="test", crop="centre", resize=16, batch_size=8).epoch(0))
    image = Image.open(folder / "val" / "n01" / "3.png").convert("RGB")
    scaled = image.resize((16, int(16 * image.height / image.width)), Image.Resampling.BICUBIC)
    top = round((scaled.height - 16) / 2)
    expected = np.asarray(scaled).transpose(2, 0, 1)[:, top : top + 16]
    assert np.array_equal((batch.inputs[3] * 255).round().byte().numpy(), expected)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_is_named(folder, workers):
    (folder / "train" / "n02" / "3.png").write_bytes(b"not an image")
    with pytest.raises(DataError) as caught:
        list(loader(folder, workers=workers).epoch(0))
    assert "n02/3.png cannot be read" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_where_it_lies(folder, tmp_path):
    assert find_image_folder(str(folder)) == folder
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "imagenet").symlink_to(folder)
    assert find_image_folder("imagenet", tmp_path / "root") == tmp_path / "root" / "imagenet"
    with pytest.raises(DataError, match=r"imagenet/train/<class>"):
        find_image_folder("imagenet", tmp_path / "elsewhere")
    with pytest.raises(DataError, match="there is no folder"):
        find_image_folder(str(tmp_path / "nothing"))
    with pytest.raises(ConfigError):
        find_image_folder("imagnet")
    with pytest.raises(DataError, match="has no folder train"):
        ImageFolder(tmp_path, "train", size=8, crop="centre")
