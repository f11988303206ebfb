"""Images and labels in memory, the checksum over them, and their cache on disk."""

import hashlib
import json
import os
import zipfile
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

RawArrays = Mapping[str, np.ndarray]
"""`{split}_images` uint8 (N, C, H, W) and `{split}_labels` int64 (N,), for the splits "train" and "test"."""

Log = Callable[[str], object]
"""Is told, in a sentence, what takes time or went wrong."""


@dataclass(frozen=True)
class Split:
    """`images` uint8 (N, C, H, W) and `labels` int64 (N,)."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Arrays:
    """A data set in memory. A split that the source lacks is empty."""

    train: Split
    test: Split

    def to(self, device: torch.device) -> "Arrays":
        """The same arrays on a device."""
        return Arrays(*(Split(part.images.to(device), part.labels.to(device)) for part in (self.train, self.test)))

    @classmethod
    def from_raw(cls, raw: RawArrays) -> "Arrays":
        """From numpy arrays under the names train_images, train_labels, test_images, test_labels."""

        def split(name: str) -> Split:
            return Split(torch.from_numpy(raw[f"{name}_images"]), torch.from_numpy(raw[f"{name}_labels"]))

        return cls(split("train"), split("test"))


def digest(raw: RawArrays) -> str:
    """SHA-256 over names, types, shapes and values: the same whatever file the arrays came from."""
    sha = hashlib.sha256()
    for name in sorted(raw):
        array = np.ascontiguousarray(raw[name])
        sha.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        sha.update(array.data)
    return sha.hexdigest()


class Cache:
    """One `.npz` of a data set's arrays, and beside it a `.json` stamp that says it has been verified.

    The stamp holds the checksum and the size and time of the file it speaks of, so that the arrays are hashed
    once and not at every start.
    """

    def __init__(self, path: Path, sha256: str | None):
        self.path = path
        self.stamp = path.with_suffix(".json")
        self.expected = sha256

    def read(self, *, rehash: bool = False) -> RawArrays | None:
        """The verified arrays; None if there are none.

        Raises:
            ValueError: the file is damaged or holds other arrays than it should.
        """
        if not self.path.exists():
            return None
        try:
            with open(self.path, "rb") as file, np.load(file, allow_pickle=False) as stored:
                raw = {name: stored[name] for name in stored.files}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(f"{self.path} is damaged ({error})") from error
        stamp = self._read_stamp()
        known = self.expected or stamp.get("sha256")
        if rehash or stamp != self._stamp(known, stamp.get("source", "")):
            found = digest(raw)
            if known not in (None, found):
                raise ValueError(f"{self.path} does not have the expected checksum")
            with suppress(OSError):  # a shared, read-only cache is hashed at every start
                self._write_stamp(found, stamp.get("source", ""))
        return raw

    def whole(self, log: Log) -> RawArrays | None:
        """As `read`; None where the file is damaged as well, which `log` is told."""
        try:
            return self.read()
        except ValueError as error:
            log(f"{error}: it is obtained again")
            return None

    def write(self, raw: RawArrays, source: str) -> None:
        """Replaces the file at once: a reader sees the old one or the new one, never a part."""
        partial = self.path.with_suffix(".partial")
        try:
            with open(partial, "wb") as file:
                np.savez(file, **raw)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, self.path)
        finally:
            partial.unlink(missing_ok=True)
        self._write_stamp(digest(raw), source)

    def source(self) -> str:
        """Where the cached arrays came from, as far as is known."""
        return self._read_stamp().get("source", "")

    def _stamp(self, sha256: str | None, source: str) -> dict[str, object]:
        status = self.path.stat()
        return {"sha256": sha256, "source": source, "size": status.st_size, "mtime_ns": status.st_mtime_ns}

    def _read_stamp(self) -> dict:
        try:
            stamp = json.loads(self.stamp.read_text())
        except (OSError, ValueError):
            return {}
        return stamp if isinstance(stamp, dict) else {}

    def _write_stamp(self, sha256: str, source: str) -> None:
        partial = self.stamp.with_suffix(f".json.{os.getpid()}")
        partial.write_text(json.dumps(self._stamp(sha256, source)) + "\n")
        os.replace(partial, self.stamp)
