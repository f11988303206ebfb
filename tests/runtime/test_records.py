import numpy as np
import pytest
import torch

from robustrun.errors import ConfigError
from robustrun.runtime import Distributed, ExampleLog, shard_indices

COLUMNS = ("prediction", "radius", "certified")


def open_log(directory, **options):
    return ExampleLog(directory, columns=COLUMNS, **options)


def test_records_come_back_sorted_with_their_types(tmp_path):
    log = open_log(tmp_path)
    log.append(torch.tensor([7, 2]), prediction=np.array([1, 0]), radius=[0.1, np.inf], certified=[True, False])
    log.append([4], prediction=[3], radius=torch.tensor([0.3]), certified=True)
    columns = log.columns()
    assert columns["index"].tolist() == [2, 4, 7]
    assert columns["prediction"].tolist() == [0, 3, 1]
    assert columns["radius"].tolist() == [np.inf, float(np.float32(0.3)), 0.1]
    assert columns["certified"].dtype == bool
    assert columns["index"].dtype == np.int64


def test_resume_after_a_torn_line_counts_nothing_twice(tmp_path):
    log = open_log(tmp_path)
    log.append([0, 1], prediction=[5, 5], radius=[1.0, 2.0], certified=[True, True])
    log.append([2, 3], prediction=[6, 6], radius=[3.0, 4.0], certified=[True, True])
    path = tmp_path / "examples.0.jsonl"
    path.write_bytes(path.read_bytes()[:-7])
    log = open_log(tmp_path)
    assert log.done.tolist() == [0, 1]
    assert log.remaining([3, 1, 2]).tolist() == [3, 2]
    log.append([1, 2, 2, 3], prediction=[9, 6, 8, 6], radius=[9.0, 3.0, 8.0, 4.0], certified=True)
    columns = log.columns()
    assert columns["index"].tolist() == [0, 1, 2, 3]
    assert columns["radius"].tolist() == [1.0, 2.0, 3.0, 4.0]
    log = open_log(tmp_path)
    assert log.columns()["radius"].tolist() == [1.0, 2.0, 3.0, 4.0]


def test_wrong_columns_are_refused(tmp_path):
    log = open_log(tmp_path)
    with pytest.raises(ValueError, match="records have the columns"):
        log.append([0], radius=[1.0])
    with pytest.raises(ValueError, match="column 'radius' has 3 entries for 2 examples"):
        log.append([0, 1], prediction=0, radius=[1.0, 2.0, 3.0], certified=True)
    assert log.done.size == 0


def test_nothing_yet(tmp_path):
    log = open_log(tmp_path)
    assert {name: len(values) for name, values in log.columns().items()} == {
        "index": 0, "prediction": 0, "radius": 0, "certified": 0
    }  # fmt: skip


@pytest.mark.parametrize("n", [1, 3, 8, 20])
def test_shards_cover_everything_once(n):
    indices = np.arange(100, 113)
    parts = [shard_indices(indices, f"{i}/{n}") for i in range(1, n + 1)]
    assert np.concatenate(parts).tolist() == indices.tolist()
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert shard_indices(indices, None).tolist() == indices.tolist()


@pytest.mark.parametrize("shard", ["0/8", "9/8", "3", "a/b", "1/0", "-1/4", "1/2/3", "", "1.0/2"])
def test_nonsense_shards(shard):
    with pytest.raises(ConfigError, match="write i/n with 1 <= i <= n"):
        shard_indices(range(10), shard)


def test_a_rank_sees_what_other_ranks_did_before(tmp_path):
    """Resumed with another number of processes, the finished examples stay finished."""
    for rank in range(2):
        log = open_log(tmp_path)
        log.append([10 + rank], prediction=0, radius=0.5, certified=True)
        (tmp_path / "examples.0.jsonl").rename(tmp_path / f"examples.{5 + rank}.jsonl")
    log = open_log(tmp_path, distributed=Distributed())
    assert log.done.tolist() == [10, 11]
