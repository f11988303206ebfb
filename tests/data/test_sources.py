"""The official hosts, torchvision's layouts, the package registries: in their real formats, and when they fail."""

import gzip
import hashlib
import http.server
import io
import json
import pickle
import socket
import subprocess
import tarfile
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
import scipy.io

from robustrun.data import obtain, official
from robustrun.data.formats import read_folder, read_idx
from robustrun.data.official import read_layout
from robustrun.data.packages import Unavailable, debian_package, pypi_wheel
from robustrun.data.vision import import_torchvision
from robustrun.errors import DataError
from tests.data.conftest import idx_bytes
from tests.data.test_obtaining import leftovers, same

DEAD_PROXY = {
    name: value
    for stem, value in (("http_proxy", "http://127.0.0.1:9"), ("https_proxy", "http://127.0.0.1:9"), ("no_proxy", ""))
    for name in (stem, stem.upper())
}


@pytest.fixture
def host(tmp_path) -> Iterator[tuple[str, dict[str, bytes]]]:
    """A host on this machine: its address, and the files that it gives."""
    files: dict[str, bytes] = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = files.get(self.path.lstrip("/"))
            self.send_response(404 if content is None else 200)
            self.send_header("Content-Length", str(len(content or b"")))
            self.end_headers()
            self.wfile.write(content or b"")

        def log_message(self, *_: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/", files
        server.shutdown()
        thread.join()


@pytest.fixture
def mnist_at(host, idx_files, monkeypatch) -> dict[str, bytes]:
    """torchvision believes that the toy set is MNIST and that the host has it."""
    address, files = host
    files.update({f"{name}.gz": gzip.compress(content) for name, content in idx_files.items()})
    mnist = import_torchvision().datasets.MNIST
    monkeypatch.setattr(mnist, "mirrors", [address])
    monkeypatch.setattr(mnist, "resources", [(n, hashlib.md5(c).hexdigest()) for n, c in files.items()])
    for name in DEAD_PROXY:
        monkeypatch.delenv(name, raising=False)
    return files


def test_the_official_source(add_toy, mnist_at, raw, tmp_path):
    add_toy("layout:MNIST", "torchvision:MNIST")
    assert same(obtain("toy", tmp_path / "data"), raw)
    assert leftovers(tmp_path / "data") == ["toy.json", "toy.npz"]


def test_a_truncated_official_file_is_refused(add_toy, mnist_at, tmp_path):
    add_toy("torchvision:MNIST")
    mnist_at["t10k-images-idx3-ubyte.gz"] = mnist_at["t10k-images-idx3-ubyte.gz"][:-20]
    with pytest.raises(DataError, match=r"t10k-images-idx3-ubyte\.gz is cut short or damaged"):
        obtain("toy", tmp_path / "data")
    assert leftovers(tmp_path / "data") == []


def test_the_next_mirror_is_tried(add_toy, mnist_at, raw, tmp_path, monkeypatch):
    add_toy("torchvision:MNIST")
    mnist = import_torchvision().datasets.MNIST
    monkeypatch.setattr(mnist, "mirrors", [mnist.mirrors[0] + "gone/", *mnist.mirrors])
    assert same(obtain("toy", tmp_path / "data"), raw)


def test_a_host_that_does_not_answer_costs_seconds(add_toy, mnist_at, tmp_path, monkeypatch):
    add_toy("torchvision:MNIST")
    monkeypatch.setattr(official, "_ANSWER", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(
            import_torchvision().datasets.MNIST, "mirrors", [f"http://127.0.0.1:{silent.getsockname()[1]}/"]
        )
        began = time.monotonic()
        with pytest.raises(DataError, match="no answer within"):
            obtain("toy", tmp_path / "data")
        assert time.monotonic() - began < 5


@pytest.mark.parametrize("name", ["cifar10", "fashion_mnist", "svhn"])
def test_no_network(cli, name):
    began = time.monotonic()
    done = cli("data", "get", name, ROBUSTRUN_DATA="cache", **DEAD_PROXY)
    if done.returncode == 0:
        pytest.skip("this machine has the files, or reaches its registries past the proxy")
    assert done.returncode == 3, done
    assert "the official source: " in done.stderr
    assert "To place it by hand" in done.stderr
    assert "Traceback" not in done.stderr
    assert "://" not in done.stderr, "addresses of registries stay out of messages"
    assert time.monotonic() - began < 60


# --------------------------------------------------------------------------------------------- layouts


def test_cifar_batches(tmp_path, monkeypatch):
    cifar = import_torchvision().datasets.CIFAR10
    rng = np.random.default_rng(0)
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    pixels, labels = rng.integers(0, 256, (6, 4, 3072), dtype=np.uint8), rng.integers(0, 10, (6, 4))

    def write(name: str, content: dict) -> list[str]:
        (folder / name).write_bytes(pickle.dumps(content))
        return [name, hashlib.md5((folder / name).read_bytes()).hexdigest()]

    listed = [
        write(name, {"data": pixels[i], "labels": labels[i].tolist()})
        for i, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"])
    ]
    meta = write("batches.meta", {"label_names": [str(i) for i in range(10)]})
    monkeypatch.setattr(cifar, "train_list", listed[:5])
    monkeypatch.setattr(cifar, "test_list", listed[5:])
    monkeypatch.setattr(cifar, "meta", {"filename": meta[0], "key": "label_names", "md5": meta[1]})
    raw = read_layout("CIFAR10", tmp_path)
    assert np.array_equal(raw["train_images"], pixels[:5].reshape(20, 3, 32, 32))
    assert np.array_equal(raw["test_labels"], labels[5])


def test_svhn_files(tmp_path, monkeypatch):
    svhn = import_torchvision().datasets.SVHN
    rng = np.random.default_rng(0)
    listed, images, labels = {}, {}, {}
    for split, size in (("train", 6), ("test", 3)):
        images[split], labels[split] = rng.integers(0, 256, (32, 32, 3, size), dtype=np.uint8), np.arange(1, size + 1)
        labels[split][-1] = 10  # SVHN's name for the digit 0
        path = tmp_path / f"{split}_32x32.mat"
        scipy.io.savemat(path, {"X": images[split], "y": labels[split][:, None].astype(np.uint8)})
        listed[split] = ["", path.name, hashlib.md5(path.read_bytes()).hexdigest()]
    monkeypatch.setattr(svhn, "split_list", listed)
    raw = read_layout("SVHN", tmp_path)
    assert np.array_equal(raw["train_images"], images["train"].transpose(3, 2, 0, 1))
    assert raw["train_labels"].tolist() == [1, 2, 3, 4, 5, 0]
    assert raw["test_images"].shape == (3, 3, 32, 32)


def test_sprites(tmp_path):
    from PIL import Image

    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (6, 4, 32, 32, 3), dtype=np.uint8)
    for i, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        Image.fromarray(pixels[i].reshape(4, 1024, 3)).save(tmp_path / f"{name}.png")
    (tmp_path / "train_lables.json").write_text(json.dumps(list(range(10)) * 2))
    (tmp_path / "test_lables.json").write_text("[3, 8, 8, 0]")
    raw = read_folder(tmp_path)
    assert np.array_equal(raw["train_images"], pixels[:5].reshape(20, 32, 32, 3).transpose(0, 3, 1, 2))
    assert raw["test_labels"].tolist() == [3, 8, 8, 0]


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_says_what_is_wrong(tmp_path, suffix):
    whole = idx_bytes(np.arange(24, dtype=np.uint8).reshape(2, 3, 4))
    path = tmp_path / f"file{suffix}"

    def write(content: bytes, cut: int = 0) -> None:
        content = gzip.compress(content) if suffix else content
        path.write_bytes(content[: len(content) - cut])

    write(whole)
    assert read_idx(path).tolist() == np.arange(24).reshape(2, 3, 4).tolist()
    for content, cut, complaint in (
        (whole[:-1], 0, "has 23 bytes of data"),
        (whole, 5, "cut short" if suffix else "has 19 bytes"),
        (whole[:10], 0, "cut short"),
        (b"hello", 0, "no IDX file"),
        (b"", 0, "no IDX file"),
    ):
        write(content, cut)
        with pytest.raises(ValueError, match=complaint):
            read_idx(path)


def test_a_folder_of_something_else(tmp_path):
    with pytest.raises(ValueError, match="no image set in a known form"):
        read_folder(tmp_path)


# --------------------------------------------------------------------------------------------- packages


def test_a_debian_package(idx_files, client, tmp_path):
    folder = tmp_path / "package" / "usr" / "share" / "toy"
    folder.mkdir(parents=True)
    (tmp_path / "package" / "DEBIAN").mkdir()
    (tmp_path / "package" / "DEBIAN" / "control").write_text(
        "Package: toy\nVersion: 1\nArchitecture: all\nMaintainer: x <x@y>\nDescription: toy\n"
    )
    for name, content in idx_files.items():
        (folder / f"{name}.gz").write_bytes(gzip.compress(content))
    try:
        subprocess.run(["dpkg-deb", "-b", tmp_path / "package", tmp_path / "toy.deb"], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("no dpkg-deb")
    client("apt-get", f"cp {tmp_path / 'toy.deb'} .")
    (tmp_path / "work").mkdir()
    assert read_folder(debian_package("toy", tmp_path / "work"))["train_images"].shape == (40, 1, 5, 4)


def test_a_wheel_that_does_not_exist(tmp_path):
    with pytest.raises(Unavailable, match="could not fetch it"):
        pypi_wheel(f"{tmp_path}/none-1.0-py3-none-any.whl", tmp_path)


def test_a_wheel(tmp_path):
    import zipfile

    wheel = tmp_path / "toy-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("toy/data.txt", "data")
        file.writestr("toy-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n")
        file.writestr("toy-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr("toy-1.0.dist-info/RECORD", "")
    (tmp_path / "work").mkdir()
    assert (pypi_wheel(str(wheel), tmp_path / "work") / "toy" / "data.txt").read_text() == "data"


def test_an_archive_cannot_write_elsewhere(add_toy, npm_gives, tmp_path):
    add_toy("npm:toy@1.0.0")
    archive = tmp_path / "toy-1.0.0.tgz"
    with tarfile.open(archive, "w:gz") as file:
        member = tarfile.TarInfo("../../escaped")
        member.size = 1
        file.addfile(member, io.BytesIO(b"x"))
    npm_gives(archive)
    with pytest.raises(DataError):
        obtain("toy", tmp_path / "root" / "data")
    assert not list(tmp_path.rglob("escaped"))
