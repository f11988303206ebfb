import collections

import numpy as np
import pytest
import torch
from torch import nn

from robustrun.errors import DataError, JobFailed
from robustrun.runtime import Checkpoints


@pytest.fixture
def checkpoints(tmp_path):
    return Checkpoints(tmp_path / "checkpoints")


def flip_a_byte(path, position):
    content = bytearray(path.read_bytes())
    content[position] ^= 0x40
    path.write_bytes(content)


def test_tensors_arrays_and_builtins_come_back(checkpoints):
    payload = {
        "model": nn.Linear(3, 2).state_dict(),
        "array": np.arange(4, dtype=np.float32),
        "number": np.float64(0.1),
        "milestones": collections.Counter({3: 1}),
        "nested": [(1, 2.5, None, True), {"text": "ü"}, {5}],
    }
    checkpoints.save("last", payload)
    back = checkpoints.load("last")
    assert back["model"]["weight"].equal(payload["model"]["weight"])
    assert back["array"].tolist() == [0, 1, 2, 3]
    assert back["number"] == 0.1
    assert back["milestones"][4] == 0
    assert back["nested"] == payload["nested"]


def test_a_view_does_not_take_its_storage_along(checkpoints):
    path = checkpoints.save("best", {"row": torch.zeros(1000, 1000)[0]})
    assert path.stat().st_size < 20_000


def test_an_object_is_refused_and_the_old_checkpoint_kept(checkpoints):
    checkpoints.save("last", {"epoch": 1})
    with pytest.raises(TypeError, match=r"last\.state\.model is a Linear"):
        checkpoints.save("last", {"state": {"model": nn.Linear(1, 1)}})
    assert checkpoints.load("last") == {"epoch": 1}
    assert [p.name for p in checkpoints.directory.iterdir()] == ["last.pt"]


def test_code_in_a_file_is_not_run(checkpoints, tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "owned"), "w"))

    checkpoints.directory.mkdir()
    torch.save({"x": Evil()}, checkpoints.path("last"))
    with pytest.raises(DataError, match="damaged"):
        checkpoints.load("last")
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "text"])
def test_damage_is_noticed_and_the_previous_one_taken(checkpoints, damage, caplog):
    for epoch in (1, 2):
        checkpoints.save("last", {"weights": torch.full((1000,), float(epoch))}, keep_previous=True)
    path = checkpoints.path("last")
    content = path.read_bytes()
    if damage == "flipped":
        flip_a_byte(path, len(content) // 2)
    else:
        path.write_bytes({"truncated": content[:-500], "empty": b"", "text": b"no such thing"}[damage])
    assert checkpoints.load("last")["weights"][0] == 1.0
    assert f"the checkpoint {path} is damaged" in caplog.text
    assert "going back to last.prev.pt" in caplog.text
    checkpoints._previous("last").unlink()
    with pytest.raises(DataError, match="delete it to start from the beginning"):
        checkpoints.load("last")


def test_killed_between_the_two_renames(checkpoints):
    checkpoints.save("last", {"epoch": 1})
    checkpoints.path("last").rename(checkpoints._previous("last"))
    assert "last" in checkpoints
    assert checkpoints.load("last") == {"epoch": 1}


def test_missing(checkpoints):
    assert "best" not in checkpoints
    with pytest.raises(DataError, match=r"there is no checkpoint .*best\.pt"):
        checkpoints.load("best")


def test_full_disk(checkpoints):
    """/dev/full answers every write with ENOSPC."""
    checkpoints.save("last", {"epoch": 1})
    temporary = checkpoints.path("last").with_suffix(".pt.tmp")
    temporary.symlink_to("/dev/full")
    with pytest.raises(JobFailed, match=r"the disk is full: cannot write .*last\.pt.*paths\.outputs="):
        checkpoints.save("last", {"weights": torch.zeros(10_000)})
    assert not temporary.is_symlink()
    assert checkpoints.load("last") == {"epoch": 1}
    checkpoints.save("last", {"epoch": 2})
    assert checkpoints.load("last") == {"epoch": 2}
