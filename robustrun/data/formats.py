"""File formats in which image sets come: IDX, PNG sprites, npz. Each read into raw arrays (see `arrays`)."""

import gzip
import json
from pathlib import Path

import numpy as np

from robustrun.data.arrays import RawArrays

_IDX_PREFIX = {"train": "train", "test": "t10k"}
_NPZ_NAMES = {
    "train": (("train_images", "train_labels"), ("x_train", "y_train"), ("images", "labels")),
    "test": (("test_images", "test_labels"), ("x_test", "y_test")),
}


def read_folder(folder: Path) -> RawArrays:
    """The arrays of a folder in one of the known forms, found anywhere below it.

    Raises:
        ValueError: the folder holds none of them, or a file is damaged.
    """
    readers = {
        "train-images-idx3-ubyte": read_idx_folder,
        "train-images-idx3-ubyte.gz": read_idx_folder,
        "data_batch_1.png": read_sprite_folder,
    }
    for marker, reader in readers.items():
        for found in sorted(folder.rglob(marker)):
            return reader(found.parent)
    raise ValueError(f"{folder} holds no image set in a known form (none of {', '.join(readers)})")


def read_idx(path: Path) -> np.ndarray:
    """A file of the MNIST page's IDX format with unsigned bytes, plain or gzipped.

    Raises:
        ValueError: it is not one, or its length is not what its header says.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except EOFError as error:
        raise ValueError(f"{path.name} is cut short") from error
    if len(content) < 4 or content[:3] != b"\x00\x00\x08":
        raise ValueError(f"{path.name} is no IDX file of unsigned bytes")
    start = 4 + 4 * content[3]
    if len(content) < start:
        raise ValueError(f"{path.name} is cut short")
    shape = tuple(np.frombuffer(content, dtype=">u4", count=content[3], offset=4).tolist())
    if len(content) - start != np.prod(shape):
        raise ValueError(f"{path.name} has {len(content) - start} bytes of data where its header says {shape}")
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape).copy()


def read_idx_folder(folder: Path) -> RawArrays:
    """The arrays of a folder in MNIST's layout, packed by gzip or not."""

    def read(stem: str) -> np.ndarray:
        plain = folder / stem
        return read_idx(plain if plain.exists() else plain.with_name(stem + ".gz"))

    raw = {}
    for split, prefix in _IDX_PREFIX.items():
        images, labels = read(f"{prefix}-images-idx3-ubyte"), read(f"{prefix}-labels-idx1-ubyte")
        raw |= as_split(split, images, labels)
    return raw


def read_sprite_folder(folder: Path) -> RawArrays:
    """CIFAR-10 as PNG sprites: one row an image, its 32 x 32 RGB pixels in line; labels in JSON lists."""

    def images(name: str) -> np.ndarray:
        from PIL import Image

        with Image.open(folder / name) as picture:
            pixels = np.asarray(picture.convert("RGB"))
        return pixels.reshape(-1, 32, 32, 3)

    def labels(name: str) -> np.ndarray:
        return np.array(json.loads((folder / name).read_text()))

    train = np.concatenate([images(f"data_batch_{i}.png") for i in range(1, 6)])
    return as_split("train", train, labels("train_lables.json")) | as_split(
        "test", images("test_batch.png"), labels("test_lables.json")
    )


def read_npz(path: Path) -> RawArrays:
    """A user's `.npz` of uint8 images (N, H, W), (N, H, W, C) or (N, C, H, W) and integer labels (N,).

    Names: train_images, train_labels, test_images, test_labels; or x_train, y_train, x_test, y_test; or, for
    one split (train), images and labels.

    Raises:
        ValueError: other names, types or shapes.
    """
    raw: dict[str, np.ndarray] = {}
    with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
        for split, pairs in _NPZ_NAMES.items():
            for images, labels in pairs:
                if images in file.files and labels in file.files:
                    raw |= as_split(split, file[images], file[labels])
                    break
        if "train_images" not in raw:
            raise ValueError(
                f"{path.name} holds {', '.join(file.files) or 'nothing'}, but needs images and labels, "
                "or train_images, train_labels, test_images and test_labels"
            )
    if "test_images" not in raw:
        raw |= {f"test_{what}": raw[f"train_{what}"][:0] for what in ("images", "labels")}
    return raw


def as_split(name: str, images: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """One split in the form that everything else expects.

    Raises:
        ValueError: these are not images and labels.
    """
    labels = np.asarray(labels).squeeze()
    if images.dtype != np.uint8:
        raise ValueError(f"the {name} images are of type {images.dtype}, not uint8")
    if not np.issubdtype(labels.dtype, np.integer) or labels.shape != images.shape[:1]:
        raise ValueError(f"the {name} labels ({labels.dtype}, {labels.shape}) are not one integer an image")
    if len(labels) and labels.min() < 0:
        raise ValueError(f"the {name} labels start at {labels.min()}, not at 0")
    return {f"{name}_images": to_nchw(images), f"{name}_labels": labels.astype(np.int64)}


def to_nchw(images: np.ndarray) -> np.ndarray:
    """Images with the channels (1, 3 or 4) before the rows and columns.

    Raises:
        ValueError: no axis can be that of the channels.
    """
    if images.ndim == 3:
        return np.ascontiguousarray(images[:, None])
    if images.ndim == 4 and images.shape[1] in (1, 3, 4):
        return np.ascontiguousarray(images)
    if images.ndim == 4 and images.shape[3] in (1, 3, 4):
        return np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    raise ValueError(f"images of shape {images.shape[1:]} have no axis of 1, 3 or 4 channels")
