"""The append-only record of all answers: what a killed run resumes from, and what replays without a network."""

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from robustrun.errors import ConfigError

Key = tuple[int, int]  # (example, draw)


class QueryLog:
    """One line an answer, written before the answer is used; a line cut short by a kill is dropped.

    Args:
        path: of the file, made if missing.
        head: what all entries must have in common (provider, noise, seed); a log of something else is refused.

    Raises:
        ConfigError: the file holds another run's answers.
    """

    def __init__(self, path: Path, head: dict[str, Any]):
        self.path = path
        self._lock = threading.Lock()
        self._entries: dict[Key, dict[str, Any]] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = list(read_lines(path)) if path.exists() else []
        if path.exists():
            with open(path, "r+b") as file:
                file.truncate(file.read().rfind(b"\n") + 1)
        if lines and lines[0] != head:
            different = sorted(k for k in {*head, *lines[0]} if head.get(k) != lines[0].get(k))
            raise ConfigError(f"{path} is the log of other queries (they differ in {', '.join(different)})")
        if not lines:
            self._write(head)
        for entry in lines[1:]:
            self._entries[entry["image"], entry["draw"]] = entry
        self._versions = {entry["version"] for entry in lines[1:]} - {None}

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
                self._write(entry)
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

    def _write(self, line: dict[str, Any]) -> None:
        with open(self.path, "ab") as file:
            file.write(json.dumps(line, separators=(",", ":")).encode() + b"\n")


class Vocabulary:
    """Numbers for an open set of labels, in the order in which they were first asked for; one JSON string a line.

    The file outlives a kill, so that records made before it and after it agree.
    """

    def __init__(self, path: Path):
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        with open(path, "r+b") as file:
            content = file.read()
            file.truncate(content.rfind(b"\n") + 1)
        self._numbers = {json.loads(line): k for k, line in enumerate(content[: content.rfind(b"\n") + 1].splitlines())}

    def number(self, label: str) -> int:
        """The label's number, a new one if it has none."""
        if label not in self._numbers:
            with open(self._path, "ab") as file:
                file.write(json.dumps(label).encode() + b"\n")
            self._numbers[label] = len(self._numbers)
        return self._numbers[label]


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The complete lines of a log, the head first."""
    with open(path, "rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield json.loads(line)
