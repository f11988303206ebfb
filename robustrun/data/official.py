"""The official sources of torchvision's data sets, and files laid out as torchvision lays them out."""

import contextlib
import hashlib
import http.client
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from robustrun.data.arrays import RawArrays
from robustrun.data.formats import as_split
from robustrun.data.packages import Unavailable
from robustrun.data.vision import import_torchvision

_ANSWER = 5.0  # seconds in which a host has to answer, name look-up included
_SILENCE = 20.0  # seconds without a byte after which a download is given up


def read_layout(name: str, folder: Path) -> RawArrays:
    """The arrays of `torchvision.datasets.<name>`, whose files lie under `folder`.

    Raises:
        RuntimeError: files are missing or damaged (torchvision checks them).
    """
    dataset = getattr(import_torchvision().datasets, name)

    def split(train: bool) -> dict[str, np.ndarray]:
        which = {"split": "train" if train else "test"} if name == "SVHN" else {"train": train}
        loaded = dataset(folder, **which)
        labels = loaded.labels if name == "SVHN" else loaded.targets
        return as_split("train" if train else "test", np.asarray(loaded.data), np.asarray(labels))

    return split(True) | split(False)


def download(name: str, into: Path) -> RawArrays:
    """Fetch the files of `torchvision.datasets.<name>` from their official hosts.

    torchvision's own download waits for minutes on a host that does not answer, so the files are put where it
    would put them, and it finds, checks and unpacks them.

    Raises:
        Unavailable: no host answers in time, or a file is not what it should be.
    """
    dataset = getattr(import_torchvision().datasets, name)
    for urls, path, md5 in _files(dataset, name):
        _fetch(urls, into / path, md5)
    if name == "SVHN":
        return read_layout(name, into)
    with contextlib.redirect_stdout(None):
        dataset(into, download=True)
    return read_layout(name, into)


def _files(dataset: Any, name: str) -> Iterator[tuple[list[str], str, str]]:
    """Each file's addresses, its path below the data folder, its MD5."""
    if name == "SVHN":
        for url, file, md5 in (dataset.split_list["train"], dataset.split_list["test"]):
            yield [url], file, md5
    elif name.startswith("CIFAR"):
        yield [dataset.url], dataset.filename, dataset.tgz_md5
    else:
        for file, md5 in dataset.resources:
            yield [mirror + file for mirror in dataset.mirrors], f"{name}/raw/{file}", md5


def _fetch(urls: list[str], path: Path, md5: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    reasons = []
    for url in urls:
        try:
            found = _save(url, path)
        except OSError as error:
            reason = getattr(error, "reason", error)
            reasons.append(f"{urlsplit(url).hostname}: {getattr(reason, 'strerror', None) or reason}")
            continue
        if found == md5:
            return
        reasons.append(f"{urlsplit(url).hostname}: {path.name} is cut short or damaged (its MD5 differs)")
    raise Unavailable("; ".join(reasons))


def _save(url: str, path: Path) -> str:
    """Save what the address gives; returns its MD5."""
    from robustrun.data.progress import download_bar

    md5 = hashlib.md5(usedforsecurity=False)
    with _open(url) as response, open(path, "wb") as file:
        total = int(response.headers.get("Content-Length") or 0)
        with download_bar(path.name, total) as advance:
            while chunk := response.read(1 << 18):
                file.write(chunk)
                md5.update(chunk)
                advance(len(chunk))
    return md5.hexdigest()


def _open(url: str) -> Any:
    """An open response. The name look-up obeys no timeout of its own, hence the thread.

    Raises:
        OSError: the host does not answer in time, or refuses.
    """
    outcome: Future[Any] = Future()

    def connect() -> None:
        try:
            request = urllib.request.Request(url, headers={"User-Agent": "robustrun"})
            response = urllib.request.urlopen(request, timeout=_SILENCE)
        except urllib.error.HTTPError as error:
            error.close()  # it holds the connection
            outcome.set_exception(OSError(f"the answer is {error.code} {error.reason}"))
        except Exception as error:
            outcome.set_exception(error)
        else:
            outcome.set_result(response)

    threading.Thread(target=connect, daemon=True).start()
    try:
        return outcome.result(_ANSWER)
    except TimeoutError:
        outcome.add_done_callback(lambda late: late.exception() or late.result().close())
        raise TimeoutError(f"no answer within {_ANSWER:g} seconds") from None
    except (ValueError, http.client.HTTPException) as error:
        raise OSError(f"no sensible answer ({error})") from error
