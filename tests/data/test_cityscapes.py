"""Cityscapes read from a small tree in its layout: which label is which class, and what a crop is."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from robustrun.data import Cityscapes, ImageFolderLoader
from robustrun.data.cityscapes import CLASSES, IGNORE, LABEL_IDS, WEIGHTS
from robustrun.errors import DataError
from robustrun.runtime.seeds import derive_seed

from .streets import HEIGHT, WIDTH, make_tree


@pytest.fixture
def folder(tmp_path):
    return make_tree(tmp_path / "cityscapes")


def test_every_label_has_its_class(folder):
    assert len(CLASSES) == len(LABEL_IDS) == len(WEIGHTS) == 19
    data = Cityscapes(folder, "test")
    assert len(data) == 3
    assert data.shape == (3, HEIGHT, WIDTH)
    image, labels, index = data[1, 0]
    assert index == 1
    assert image.dtype == labels.dtype == torch.uint8
    stored = np.asarray(Image.open(data.labels[1]))
    for label in range(256):
        expected = LABEL_IDS.index(label) if label in LABEL_IDS else IGNORE
        assert (labels.numpy()[stored == label] == expected).all()
    assert np.array_equal(image.numpy(), np.asarray(Image.open(data.images[1])).transpose(2, 0, 1))


def test_files_are_in_one_order(folder):
    names = [path.name for path in Cityscapes(folder, "train").images]
    assert names == sorted(names)
    assert [p.name.split("_left")[0] for p in Cityscapes(folder, "train").images] == [
        p.name.split("_gtFine")[0] for p in Cityscapes(folder, "train").labels
    ]


def test_a_crop_shows_its_part_of_the_image_with_the_labels_of_it(folder):
    """Colours of the tree's images are the classes', so that image and labels can be compared wherever they went."""
    data = Cityscapes(folder, "train", crop=(24, 40), scales=(0.5, 2.1))
    padded = mirrored = compared = 0
    for seed in range(40):
        image, labels, _ = data[seed % len(data), seed]
        assert image.shape == (3, 24, 40)
        assert labels.shape == (24, 40)
        counted = labels != IGNORE
        assert counted.any()
        # away from edges between classes, where bilinear images mix
        inner = counted & _constant(labels)
        if not inner.any():
            continue
        compared += 1
        assert (image[0][inner].int() - 10 * labels[inner].int()).abs().max() <= 1
        black = (image == 0).all(0) & ~counted
        padded += bool(black[-1].all() and black[:, -1].all())
        mirrored += bool(image[1][inner].float().mean() > 0 and _falls(image[1], inner))
    assert compared > 20
    assert padded > 0, "half the size is smaller than the crop: filled up at the right and at the bottom"
    assert 5 < mirrored < 35, "half of them are mirrored"


def _constant(labels):
    """Where the 5 x 5 pixels around have one label."""
    values = labels[None].float()
    inside = (F.max_pool2d(values, 5, 1) == -F.max_pool2d(-values, 5, 1))[0]
    return F.pad(inside, (2, 2, 2, 2))


def _falls(green, inner):
    """The tree's green rises from left to right, and so falls in a mirrored crop."""
    columns = [(x, float(green[:, x][inner[:, x]].float().mean())) for x in range(40) if inner[:, x].any()]
    (_, first), (_, last) = columns[0], columns[-1]
    return last < first


def test_sizes_are_the_tenths_between(folder, monkeypatch):
    data = Cityscapes(folder, "train", crop=(8, 8), scales=(0.5, 2.1))
    sizes = set()
    real = torch.nn.functional.interpolate

    def record(images, size, **options):
        sizes.add(tuple(size))
        return real(images, size, **options)

    monkeypatch.setattr("robustrun.data.cityscapes.F.interpolate", record)
    for seed in range(300):
        data[0, seed]
    longer = {int(WIDTH * k / 10 + 0.5) for k in range(5, 22)}
    assert {width for _, width in sizes} == longer
    assert all(abs(height * WIDTH - width * HEIGHT) <= 0.5 * WIDTH for height, width in sizes)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_depend_on_seed_and_epoch_alone(folder, workers):
    def loader(count):
        return ImageFolderLoader(
            Cityscapes(folder, "train", crop=(16, 16)),
            2,
            seed_for=lambda *key: derive_seed(0, *key),
            shuffle=True,
            drop_last=True,
            workers=count,
        )

    here, there = loader(0), loader(workers)
    first = list(here.epoch(0))
    assert len(first) == 2, "5 images: the short last batch is left out"
    assert first[0].targets.dtype == torch.int64
    assert first[0].inputs.max() <= 1
    for one, other in zip(there.epoch(0), first, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    resumed = list(there.epoch(1, start=1))
    assert torch.equal(resumed[0].inputs, list(here.epoch(1))[1].inputs)
    assert not torch.equal(first[0].inputs, next(here.epoch(1)).inputs)


def test_what_is_missing_or_damaged_is_named(folder, tmp_path):
    with pytest.raises(DataError, match=r"leftImg8bit/train holds no"):
        Cityscapes(tmp_path, "train")
    data = Cityscapes(folder, "test")
    data.images[0].write_bytes(b"no image")
    with pytest.raises(DataError, match=r"bonn_000000_leftImg8bit\.png cannot be read"):
        data[0, 0]
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(data.labels[1])
    with pytest.raises(DataError, match="of another size"):
        data[1, 0]
    data.labels[2].unlink()
    with pytest.raises(DataError, match="has no labels"):
        Cityscapes(folder, "test")
