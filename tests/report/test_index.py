"""The index of results: found, kept, rebuilt when stale, never in the way."""

import os
import sqlite3

import pytest

from robustrun.report.index import Index
from robustrun.report.results import Result


def put(root, name, sha="a" * 64, accuracy=0.5, finished_at="2026-01-01T00:00:00+00:00", **more):
    path = root / name / "result.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    Result(schema=1, exp="x", metrics={"accuracy": accuracy}, config_sha256=sha, finished_at=finished_at, **more).write(
        path
    )
    return path


@pytest.fixture
def outputs(tmp_path):
    (tmp_path / "outputs").mkdir()
    return tmp_path / "outputs"


def newest(outputs, sha="a" * 64, further=()):
    with Index(outputs, further) as index:
        found = index.newest(sha)
        return found and (found.path, found.value("accuracy"))


def test_results_at_any_depth(outputs):
    path = put(outputs, "quick/x/aaaa")
    assert newest(outputs) == (path, 0.5)
    assert newest(outputs, "b" * 64) is None
    assert (outputs / ".index.sqlite").exists()


def test_the_newest_wins_and_a_shard_never(outputs, tmp_path):
    put(outputs, "x/old", accuracy=0.1)
    put(outputs, "x/shard", accuracy=0.9, finished_at="2027-01-01", shard="1/2")
    committed = tmp_path / "experiments" / "toy" / "results"
    committed.mkdir(parents=True)
    newer = put(committed, "x", accuracy=0.2, finished_at="2026-06-01T00:00:00+00:00")
    flat = newer.rename(committed / "table1.json")
    assert newest(outputs, further=[committed]) == (flat, 0.2)
    assert newest(outputs)[1] == 0.1


def test_a_changed_a_new_and_a_deleted_result(outputs):
    path = put(outputs, "x/a", accuracy=0.1)
    assert newest(outputs)[1] == 0.1
    put(outputs, "x/a", accuracy=0.22)
    assert newest(outputs)[1] == 0.22
    put(outputs, "x/b", accuracy=0.3, finished_at="2026-06-01")
    assert newest(outputs)[1] == 0.3
    (outputs / "x/b/result.json").unlink()
    path.unlink()
    assert newest(outputs) is None


def test_only_what_changed_is_read_again(outputs, monkeypatch):
    for i in range(5):
        put(outputs, f"x/{i}", sha=f"{i}" * 64)
    newest(outputs)
    put(outputs, "x/3", sha="3" * 64, accuracy=0.75)
    read = []
    real = Result.read
    monkeypatch.setattr(Result, "read", classmethod(lambda cls, path: read.append(path) or real(path)))
    assert newest(outputs, "3" * 64)[1] == 0.75
    assert [path.parent.name for path in read] == ["3"]


@pytest.mark.parametrize("content", ["", "{", '{"schema": 99}', '{"schema": 1}'])
def test_a_damaged_result_is_said_and_left_out(outputs, content):
    good = put(outputs, "x/good")
    (outputs / "x" / "bad").mkdir()
    (outputs / "x" / "bad" / "result.json").write_text(content)
    for _ in range(2):  # read, and remembered
        with Index(outputs) as index:
            assert index.newest("a" * 64).path == good
            ((path, sentence),) = index.damaged.items()
            assert path.parent.name == "bad"
            assert "result.json" in sentence


def test_a_damaged_index_is_built_again(outputs):
    put(outputs, "x/a")
    (outputs / ".index.sqlite").write_bytes(b"not a database at all" * 100)
    assert newest(outputs)[1] == 0.5
    (outputs / ".index.sqlite").unlink()
    with sqlite3.connect(outputs / ".index.sqlite") as database:
        database.execute("CREATE TABLE runs (other TEXT)")
    database.close()
    assert newest(outputs)[1] == 0.5


def test_nothing_is_made_where_nothing_was_run(tmp_path):
    with Index(tmp_path / "nowhere") as index:
        assert index.all() == []
    assert not any(tmp_path.iterdir())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_outputs_that_cannot_be_written(outputs):
    put(outputs, "x/a")
    outputs.chmod(0o555)
    assert newest(outputs)[1] == 0.5


def test_identities_are_remembered(outputs, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with Index(outputs) as index:
        index.remember("key", "sha", {"task/mnist": "digest"})
    with Index(outputs) as index:
        assert index.identity("key") == ("sha", {"task/mnist": "digest"})
        assert index.identity("other") is None
        assert not index.has("x", 0)
    put(outputs, "x/a")
    (tmp_path / "cache" / "robustrun" / "identities.sqlite").write_bytes(b"damaged" * 1000)
    with Index(outputs) as index:
        assert index.identity("key") is None
        assert index.has("x", 0)
        assert not index.has("x", 1)
