"""The append-only record of all answers: what a killed run resumes from, and what replays without a network."""

import hashlib
import json
import os
import threading
import time
from pathlib import Path
from typing import Any

from robustrun.errors import ConfigError, DataError

Key = tuple[int, int]  # (example, draw)


class QueryLog:
    """One line an answer, written before the answer is used; a line cut short by a kill is dropped.

    Args:
        path: of the file, made if missing.
        head: what all entries must have in common (provider, noise, seed); a log of something else is refused.

    Raises:
        ConfigError: the file holds another run's answers.
        DataError: it is damaged.
    """

    def __init__(self, path: Path, head: dict[str, Any]):
        self.path = path
        self._lock = threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        _drop_torn_line(path)
        kept, *entries = list(read_lines(path)) or [None]
        if kept is None:
            append_line(path, head)
        elif kept != head:
            different = sorted(k for k in {*head, *kept} if head.get(k) != kept.get(k))
            raise ConfigError(f"{path} is the log of other queries (they differ in {', '.join(different)})")
        self._entries = {(entry["image"], entry["draw"]): entry for entry in entries}
        self._versions = {entry["version"] for entry in entries} - {None}

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Key, content: bytes) -> dict[str, Any] | None:
        """The entry of a draw, if it was answered for these very bytes.

        Raises:
            ConfigError: it was answered for other bytes.
        """
        entry = self._entries.get(key)
        if entry is not None and entry["sha256"] != hashlib.sha256(content).hexdigest():
            raise ConfigError(
                f"{self.path}: draw {key[1]} of image {key[0]} was another image: denoiser or data have changed"
            )
        return entry

    def add(self, key: Key, stage: str, content: bytes, label: str | None, raw: Any, version: str | None) -> dict:
        """Record an answer (`label` None: no class) and return its entry."""
        entry = {
            "image": key[0],
            "draw": key[1],
            "stage": stage,
            "sha256": hashlib.sha256(content).hexdigest(),
            "label": label,
            "version": version,
            "time": round(time.time(), 3),
            "raw": raw,
        }
        with self._lock:
            if key not in self._entries:  # an answer counts once
                append_line(self.path, entry)
                self._entries[key] = entry
                self._versions |= {version} - {None}
        return self._entries[key]

    def labels(self) -> dict[Key, str | None]:
        """The label of every answered draw, by image and draw; None where an answer had none."""
        return {key: entry["label"] for key, entry in self._entries.items()}

    def versions(self) -> set[str]:
        """The versions of the service's model that have answered."""
        with self._lock:
            return set(self._versions)


class Vocabulary:
    """Numbers for an open set of labels, in the order in which they were first asked for; one JSON string a line.

    The file outlives a kill, so that records made before it and after it agree.

    Raises:
        DataError: it is damaged.
    """

    def __init__(self, path: Path):
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        _drop_torn_line(path)
        labels = _lines(path)
        if not all(isinstance(label, str) for label in labels):
            raise _damaged(path)
        self._numbers = {label: k for k, label in enumerate(labels)}

    def number(self, label: str) -> int:
        """The label's number, a new one if it has none."""
        if label not in self._numbers:
            append_line(self._path, label)
            self._numbers[label] = len(self._numbers)
        return self._numbers[label]


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The complete lines of a log, the head first, each entry with image, draw, label, version and sha256.

    Raises:
        DataError: it is no log, or damaged.
    """
    lines = _lines(path)
    for line in lines:
        if not isinstance(line, dict):
            raise _damaged(path)
    for entry in lines[1:]:
        numbers = all(type(entry.get(name)) is int and abs(entry[name]) < 2**62 for name in ("image", "draw"))
        names = all(isinstance(entry.get(name), str | None) for name in ("label", "version", "sha256"))
        if not (numbers and names and {"label", "version", "sha256"} <= set(entry)):
            raise _damaged(path)
    return lines


def append_line(path: Path, content: Any) -> None:
    """Write a line of JSON at the end of a file: wholly, or not at all if that fails (the disk is full)."""
    data = memoryview(json.dumps(content, separators=(",", ":")).encode() + b"\n")
    with open(path, "ab", buffering=0) as file:
        start = file.seek(0, os.SEEK_END)
        try:
            while data:
                data = data[file.write(data) :]
        except OSError:
            file.truncate(start)  # other threads go on writing their answers
            raise


def _lines(path: Path) -> list[Any]:
    try:
        with open(path, "rb") as file:
            return [json.loads(line) for line in file if line.endswith(b"\n")]
    except FileNotFoundError:
        return []
    except (ValueError, RecursionError):
        raise _damaged(path) from None


def _damaged(path: Path) -> DataError:
    return DataError(f"{path} is damaged: delete it, and what it holds is asked again")


def _drop_torn_line(path: Path) -> None:
    if path.exists():
        with open(path, "r+b") as file:
            file.truncate(file.read().rfind(b"\n") + 1)
