"""Every result that is to be found, by the identity of its job; remembered beside the outputs.

Reading ten thousand files takes seconds, looking at their dates does not: the index keeps what each result says and
reads again only those that changed. It may be deleted at any time.
"""

import contextlib
import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from platformdirs import user_cache_path

from robustrun.errors import DataError
from robustrun.report.results import Result

_VERSION = 2
_SCHEMA = """
CREATE TABLE runs (path TEXT PRIMARY KEY, mtime INTEGER, size INTEGER, sha TEXT, exp TEXT, seed INTEGER,
                   finished_at TEXT, result TEXT, error TEXT);
CREATE INDEX runs_by_sha ON runs (sha);
CREATE INDEX runs_by_exp ON runs (exp, seed);
"""
_IDENTITIES = "CREATE TABLE IF NOT EXISTS jobs (key TEXT PRIMARY KEY, sha TEXT, configs TEXT)"
_MANY = 100_000  # remembered identities, most of them of earlier versions of the configuration


@dataclass(frozen=True)
class Found:
    """A finished run: where its result lies and what it says."""

    path: Path
    content: str

    @cached_property
    def data(self) -> dict[str, Any]:
        """The decoded result.json."""
        return json.loads(self.content)

    def value(self, metric: str) -> float | None:
        """A metric, `timings.x` or `counts.x`.

        Raises:
            KeyError: the run does not report it.
        """
        group, dot, name = metric.partition(".")
        if dot and group in ("timings", "counts") and metric not in self.data["metrics"]:
            return self.data[group][name]
        return self.data["metrics"][metric]

    def reports(self, metric: str) -> bool:
        """Whether `value` has one for it."""
        try:
            self.value(metric)
        except KeyError:
            return False
        return True

    @property
    def where(self) -> str:
        """On what it ran, for a reader who wants to judge the number."""
        env = self.data["env"]
        commit = str(env.get("git_commit", ""))[:10] + ("+" if env.get("git_dirty") else "")
        return ", ".join(filter(None, [str(env.get("device", "")), commit and f"commit {commit}"]))


class Index:
    """The results below some directories; kept in `<outputs>/.index.sqlite` where outputs exist and are writable."""

    def __init__(self, outputs: Path, further: Iterable[Path] = ()):
        self._roots = [outputs, *further]
        self._database = _open(outputs)
        self._identities = _open_identities()
        self.damaged: dict[Path, str] = {}
        self._refresh()

    def __enter__(self) -> "Index":
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()
        self._identities.close()

    def newest(self, sha: str) -> Found | None:
        """The newest complete result of the job, shards left out."""
        query = "SELECT path, result FROM runs WHERE sha = ? ORDER BY finished_at DESC, path LIMIT 1"
        row = self._database.execute(query, (sha,)).fetchone()
        return Found(Path(row[0]), row[1]) if row else None

    def all(self) -> list[Found]:
        """Every complete result, by path."""
        query = "SELECT path, result FROM runs WHERE sha IS NOT NULL ORDER BY path"
        return [Found(Path(path), result) for path, result in self._database.execute(query)]

    def has(self, exp: str, seed: int) -> bool:
        """Whether any run of the experiment with that seed is finished."""
        query = "SELECT 1 FROM runs WHERE exp = ? AND seed = ? LIMIT 1"
        return self._database.execute(query, (exp, seed)).fetchone() is not None

    def identity(self, key: str) -> tuple[str, dict[str, str]] | None:
        """A job's identity that was worked out before and remembered under `key`, and the configs it followed from."""
        row = self._identities.execute("SELECT sha, configs FROM jobs WHERE key = ?", (key,)).fetchone()
        return (row[0], json.loads(row[1])) if row else None

    def remember(self, key: str, sha: str, configs: Mapping[str, str]) -> None:
        """Keep an identity that took a while to work out, with the digests of the configs that went into it."""
        with contextlib.suppress(sqlite3.OperationalError), self._identities:
            self._identities.execute("INSERT OR REPLACE INTO jobs VALUES (?, ?, ?)", (key, sha, json.dumps(configs)))

    def _refresh(self) -> None:
        known = {p: (m, s) for p, m, s in self._database.execute("SELECT path, mtime, size FROM runs")}
        present = {path: stamp for root in self._roots for path, stamp in _results(root)}
        stale = [(path,) for path, stamp in known.items() if present.get(path) != stamp]
        fresh = [(path, *stamp, *_read(path)) for path, stamp in present.items() if known.get(path) != stamp]
        if stale or fresh:
            with contextlib.suppress(sqlite3.OperationalError), self._database:
                self._database.executemany("DELETE FROM runs WHERE path = ?", stale)
                self._database.executemany("INSERT OR REPLACE INTO runs VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", fresh)
        query = "SELECT path, error FROM runs WHERE error IS NOT NULL ORDER BY path"
        self.damaged = {Path(path): error for path, error in self._database.execute(query)}


def _open(outputs: Path) -> sqlite3.Connection:
    path = outputs / ".index.sqlite"
    if outputs.is_dir() and os.access(outputs, os.W_OK):
        for _ in range(2):
            try:
                return _prepared(sqlite3.connect(path, timeout=30))
            except sqlite3.DatabaseError:  # damaged, or not ours: build it again
                path.unlink(missing_ok=True)
    return _prepared(sqlite3.connect(":memory:"))


def _open_identities() -> sqlite3.Connection:
    """In the user's cache: which job a row is does not depend on where the outputs are."""
    path = user_cache_path("robustrun") / "identities.sqlite"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        database = sqlite3.connect(path, timeout=30)
        with database:
            database.execute(_IDENTITIES)
            if database.execute("SELECT count(*) FROM jobs").fetchone()[0] > _MANY:
                database.execute("DELETE FROM jobs")
        return database
    except (sqlite3.DatabaseError, OSError):  # damaged or not writable: they are worked out again
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
        database = sqlite3.connect(":memory:")
        database.execute(_IDENTITIES)
        return database


def _prepared(database: sqlite3.Connection) -> sqlite3.Connection:
    (version,) = database.execute("PRAGMA user_version").fetchone()
    if version != _VERSION:
        with database:
            for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
                database.execute(f'DROP TABLE "{name}"')
        database.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {_VERSION}; COMMIT;")
    return database


def _results(root: Path) -> Iterator[tuple[str, tuple[int, int]]]:
    """The result files below `root` with date and size; nothing below a run directory is looked at."""
    try:
        entries = list(os.scandir(root))
    except OSError:
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            stamp = _stamp(f"{entry.path}/result.json")
            if stamp is not None:
                yield f"{entry.path}/result.json", stamp
            elif not os.path.exists(f"{entry.path}/.job"):
                yield from _results(Path(entry.path))
        elif entry.name.endswith(".json") and root.name == "results":
            stamp = _stamp(entry.path)
            if stamp is not None:
                yield entry.path, stamp


def _stamp(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size


def _read(path: str) -> tuple[str | None, str, int, str, str, str | None]:
    """The further columns of a row: sha, exp, seed, finished_at, result, error. A shard has no sha: it is a part."""
    try:
        result = Result.read(Path(path))
    except DataError as error:
        return None, "", -1, "", "", str(error)
    sha = None if result.shard else result.config_sha256
    return sha, result.exp, result.seed, result.finished_at, result.model_dump_json(by_alias=True), None
