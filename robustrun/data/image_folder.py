"""Image sets too large for memory: one folder a class, decoded by worker processes as they are needed."""

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal, Protocol

import torch
from torch import Tensor

from robustrun.data import catalog
from robustrun.data.device_loader import Batch, batch_slice
from robustrun.data.vision import import_torchvision
from robustrun.errors import ConfigError, DataError

_SPLITS = {"train": ("train",), "test": ("val", "test")}


def find_image_folder(name: str | Path, root: Path | None = None) -> Path:
    """The folder of an image set of the catalogue, or given by its path.

    Raises:
        ConfigError: no data set of that name.
        DataError: it is not there; the message says how to place it.
    """
    if os.sep in str(name):
        folder = Path(name).expanduser()
        if not folder.is_dir():
            raise DataError(f"there is no folder {folder}")
        return folder
    entry, root = catalog.find(str(name)), root or catalog.data_root()
    folder = entry.present(root)
    if folder is None:
        raise DataError(
            f"{entry.name} is not there and cannot be downloaded ({entry.licence}; {entry.homepage}). "
            f"Put into {root} (or ./data): {entry.by_hand}. A symbolic link will do"
        )
    return folder


class ImageFolder:
    """The examples of one split, as uint8 tensors of one size, cropped at random or in the middle.

    `crop` "random" takes RandomResizedCrop (8 % to 100 % of the area) and flips half the images; "centre"
    takes the middle `size` x `size` pixels, and puts zeros around a smaller image. Before either, `resize`
    brings the shorter side to so many pixels (bicubic).
    """

    def __init__(
        self,
        folder: Path,
        split: Literal["train", "test"],
        *,
        size: int,
        crop: Literal["random", "centre"],
        resize: int | None = None,
    ):
        vision = import_torchvision()
        transforms = vision.transforms
        steps = []
        if resize is not None:
            steps.append(transforms.Resize(resize, transforms.InterpolationMode.BICUBIC))
        if crop == "random":
            steps += [transforms.RandomResizedCrop(size), transforms.RandomHorizontalFlip()]
        else:
            steps.append(transforms.CenterCrop(size))
        self._transform = transforms.Compose([*steps, transforms.PILToTensor()])
        self._examples = vision.datasets.ImageFolder(_split_folder(folder, split))
        self.classes: list[str] = self._examples.classes
        self.labels = torch.tensor(self._examples.targets)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int, int]:
        """The example `index`, transformed with the random numbers of `seed`, whichever process does it."""
        index, seed = key
        try:
            image, label = self._examples[index]
        except Exception as error:  # decoders raise whatever they like
            raise DataError(f"{self._examples.samples[index][0]} cannot be read: {error}") from error
        with torch.random.fork_rng(devices=[]):
            torch.random.default_generator.manual_seed(seed)
            return self._transform(image), label, index


class Examples(Protocol):
    """What a loader reads: (index, seed) -> an image (uint8), its label or labels, the index."""

    def __len__(self) -> int: ...

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int | Tensor, int]: ...


def _split_folder(folder: Path, split: str) -> Path:
    for name in _SPLITS[split]:
        if (folder / name).is_dir():
            return folder / name
    raise DataError(f"{folder} has no folder {' or '.join(_SPLITS[split])} with one folder a class")


class ImageFolderLoader:
    """Batches of images on disk, decoded ahead by worker processes; in use like a `DeviceLoader`.

    Everything random about epoch `e` depends on (seed, e) and an example's place in the epoch alone, not on
    the number of workers. The workers live as long as the loader. One epoch at a time.

    Raises:
        ConfigError: the batch size is below 1.
        DataError: in an epoch, a file cannot be read.
    """

    def __init__(
        self,
        images: Examples,
        batch_size: int,
        *,
        device: torch.device | str = "cpu",
        seed_for: Callable[..., int],
        shuffle: bool = False,
        rank: int = 0,
        world_size: int = 1,
        drop_last: bool = False,
        indices: Sequence[int] | Tensor | None = None,
        channels_last: bool = False,
        workers: int | None = None,
    ):
        """
        Args:
            batch_size: of the joined batch; under data parallelism each rank gets its slice of it.
            workers: processes that decode; None for one a core that this process may use, at most 16.
        """
        if batch_size < 1:
            raise ConfigError(f"the batch size is {batch_size}, but must be at least 1")
        self.batch_size = batch_size
        self._device, self._channels_last = torch.device(device), channels_last
        everything = torch.arange(len(images)) if indices is None else torch.as_tensor(indices)
        self._plan = _Plan(everything, batch_size, seed_for, shuffle, rank, world_size, drop_last)
        workers = min(16, len(os.sched_getaffinity(0))) if workers is None else workers
        self._loader = torch.utils.data.DataLoader(
            images,
            batch_sampler=self._plan,
            generator=torch.Generator(),  # or each pass would draw from torch's global generator
            worker_init_fn=_leave_signals,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=self._device.type == "cuda",
        )

    @property
    def size(self) -> int:
        """Examples an epoch."""
        return len(self._plan.indices)

    def __len__(self) -> int:
        return self._plan.steps

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of one epoch from step `start` on; what comes before is neither read nor decoded."""
        self._plan.epoch, self._plan.start = epoch, start
        memory_format = torch.channels_last if self._channels_last else torch.contiguous_format
        for images, labels, indices in self._decoded():
            images = images.to(self._device, non_blocking=True)
            yield Batch(
                images.to(torch.float32, memory_format=memory_format).div_(255),
                labels.to(self._device, torch.int64, non_blocking=True),
                indices.to(self._device, non_blocking=True),
            )

    def _decoded(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        try:
            yield from self._loader
        except DataError as error:  # a worker's error comes wrapped in its traceback
            raise DataError(str(error).strip().rsplit("DataError: ", 1)[-1]) from None


def _leave_signals(worker: int) -> None:
    """Signals are for the process that trains: its workers must neither save nor die of a Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


class _Plan:
    """Which examples, with which seeds, make up each batch of the current epoch."""

    def __init__(
        self,
        indices: Tensor,
        batch_size: int,
        seed_for: Callable[..., int],
        shuffle: bool,
        rank: int,
        world_size: int,
        drop_last: bool,
    ):
        self.indices, self.epoch, self.start = indices, 0, 0
        self._batch_size, self._seed_for, self._shuffle = batch_size, seed_for, shuffle
        self._rank, self._world_size = rank, world_size
        self.steps = len(indices) // batch_size if drop_last else -(-len(indices) // batch_size)

    def __len__(self) -> int:
        return self.steps - self.start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = self.indices
        if self._shuffle:
            order = order[torch.randperm(len(order), generator=self._generator("order"))]
        seeds = torch.randint(2**62, (len(order),), generator=self._generator("augment"))
        for step in range(self.start, self.steps):
            here = batch_slice(step, self._batch_size, len(order), self._rank, self._world_size)
            yield list(zip(order[here].tolist(), seeds[here].tolist(), strict=True))

    def _generator(self, name: str) -> torch.Generator:
        return torch.Generator().manual_seed(self._seed_for(name, self.epoch))
