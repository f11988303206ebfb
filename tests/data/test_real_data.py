"""The real sets, from whatever source this machine reaches: facts about them that are published elsewhere."""

import hashlib

import pytest
import torch

from robustrun.data import Arrays, obtain, verify
from robustrun.errors import DataError


def real(name: str) -> Arrays:
    try:
        return obtain(name)
    except DataError as error:
        pytest.skip(f"not obtainable here: {error}")


def test_mnist():
    arrays = real("mnist")
    # the MD5 sums of the files of the MNIST page, unzipped, after their headers of 16 and 8 bytes
    headers = {"images": b"\0\0\x08\x03", "labels": b"\0\0\x08\x01"}
    known = {
        ("train", "images"): "6bbc9ace898e44ae57da46a324031adb",
        ("train", "labels"): "a25bea736e30d166cdddb491f175f624",
        ("test", "images"): "2646ac647ad5339dbf082846283269ea",
        ("test", "labels"): "27ae3e4e09519cfbb04c329615203637",
    }
    for (split, kind), md5 in known.items():
        values = getattr(getattr(arrays, split), kind).to(torch.uint8).squeeze(1 if kind == "images" else ())
        header = headers[kind] + b"".join(size.to_bytes(4, "big") for size in values.shape)
        assert hashlib.md5(header + values.numpy().tobytes()).hexdigest() == md5, (split, kind)


def test_cifar10():
    train = real("cifar10").train
    pixels = train.images.double() / 255
    assert pixels.mean((0, 2, 3)).tolist() == pytest.approx([0.49139968, 0.48215841, 0.44653091], abs=1e-8)
    assert pixels.std((0, 2, 3), correction=0).tolist() == pytest.approx([0.24703223, 0.24348513, 0.26158784], abs=1e-8)
    assert train.labels[:10].tolist() == [6, 9, 9, 4, 1, 1, 2, 7, 8, 3]
    assert train.labels.bincount().tolist() == [5000] * 10


def test_fashion_mnist():
    arrays = real("fashion_mnist")
    pixels = arrays.train.images.double() / 255
    assert pixels.mean().item() == pytest.approx(0.2860, abs=5e-5)
    assert pixels.std().item() == pytest.approx(0.3530, abs=5e-5)
    assert arrays.train.labels[:10].tolist() == [9, 0, 0, 3, 0, 2, 7, 2, 5, 5]


def test_digits(tmp_path):
    from sklearn.datasets import load_digits

    arrays = obtain("digits", tmp_path)
    images = torch.cat((arrays.train.images, arrays.test.images)).squeeze(1).numpy()
    assert abs(images / 255 * 16 - load_digits().images).max() <= 0.5 * 16 / 255 + 1e-9
    verify("digits", tmp_path)
