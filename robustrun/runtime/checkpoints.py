"""Checkpoints: tensors and builtins, written atomically, loadable without running any code from the file."""

import collections
import errno
import logging
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from robustrun.errors import DataError, JobFailed
from robustrun.runtime.distributed import Distributed

logger = logging.getLogger("robustrun")


class Checkpoints:
    """The named checkpoints of a run directory: `save("last", {...})` writes `last.pt`."""

    def __init__(self, directory: Path, distributed: Distributed | None = None) -> None:
        self.directory = Path(directory)
        self._distributed = distributed or Distributed()

    def path(self, name: str) -> Path:
        """The file of the checkpoint called `name`."""
        return self.directory / f"{name}.pt"

    def __contains__(self, name: str) -> bool:
        return self.path(name).exists() or self._previous(name).exists()

    def save(self, name: str, payload: Mapping[str, Any], *, keep_previous: bool = False) -> Path:
        """Write a checkpoint: rank 0 writes, all ranks wait.

        The file is either the old one or the new one, never half of it. `keep_previous` keeps the old one as
        `<name>.prev.pt`, and `load` falls back to it.

        Raises:
            JobFailed: it cannot be written (the disk is full, say); the old one is kept.
            TypeError: the payload holds something else than tensors, arrays and builtins.
        """
        self._distributed.on_main(lambda: self._write(name, _plain(payload, name), keep_previous))
        return self.path(name)

    def load(self, name: str, map_location: Any = "cpu") -> dict[str, Any]:
        """Read a checkpoint back.

        Raises:
            DataError: there is none, or it is damaged and no previous one is there.
        """
        path, previous = self.path(name), self._previous(name)
        if path.exists() or not previous.exists():
            try:
                return load_file(path, map_location)
            except DataError as error:
                if not previous.exists():
                    raise
                logger.warning("%s; going back to %s", error, previous.name)
        return load_file(previous, map_location)

    def _previous(self, name: str) -> Path:
        return self.directory / f"{name}.prev.pt"

    def _write(self, name: str, payload: dict[str, Any], keep_previous: bool) -> None:
        path = self.path(name)
        temporary = path.with_suffix(".pt.tmp")
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            with open(temporary, "wb") as file:
                watched = _WatchedFile(file)
                try:
                    torch.save(payload, watched)
                except RuntimeError as error:  # torch reports a failed write without saying why
                    raise watched.error or error from None
                file.flush()
                os.fsync(file.fileno())
            if keep_previous and path.exists():
                os.replace(path, self._previous(name))
            os.replace(temporary, path)
            _sync_directory(self.directory)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise JobFailed(
                    f"the disk is full: cannot write {path} (the checkpoint before it is kept); "
                    "make room, or choose another place with paths.outputs="
                ) from error
            raise JobFailed(f"cannot write the checkpoint {path}: {error.strerror or error}") from error
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def load_file(path: Path | str, map_location: Any = "cpu") -> dict[str, Any]:
    """A checkpoint file's payload; no code in it is run.

    Raises:
        DataError: the file is missing, damaged, or no checkpoint of ours.
    """
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as archive:  # torch does not look at the checksums that it writes
            if (member := archive.testzip()) is not None:
                raise ValueError(f"wrong checksum of {member}")
        payload = torch.load(path, map_location=map_location, weights_only=True)
    except FileNotFoundError:
        raise DataError(f"there is no checkpoint {path}") from None
    except Exception as error:  # whatever a damaged pickle or zip makes of itself
        reason = str(error).strip().splitlines()[0][:120] if str(error).strip() else type(error).__name__
        raise DataError(
            f"the checkpoint {path} is damaged ({reason}): delete it to start from the beginning"
        ) from error
    if not isinstance(payload, dict):
        raise DataError(f"{path} holds a {type(payload).__name__}, not a checkpoint")
    return payload


class _WatchedFile:
    """A file for torch.save that remembers why a write failed."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self._file.flush()


def _plain(value: Any, where: str) -> Any:
    """`value` with arrays turned into tensors; anything that needs code to be read back is refused."""
    if isinstance(value, torch.Tensor):
        value = value.detach()
        # A view would take its whole storage into the file.
        return value.clone() if value.untyped_storage().nbytes() > value.nbytes else value
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        return torch.from_numpy(np.array(value))
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        items = {key: _plain(item, f"{where}.{key}") for key, item in value.items()}
        return collections.Counter(items) if isinstance(value, collections.Counter) else items
    if type(value) in (list, tuple, set):
        return type(value)(_plain(item, f"{where}[{i}]") for i, item in enumerate(value))
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes, torch.dtype)):
        return value
    raise TypeError(f"a checkpoint holds tensors and builtins only: {where} is a {type(value).__name__}")


def _sync_directory(directory: Path) -> None:
    if os.name != "posix":
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
