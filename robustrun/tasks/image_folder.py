"""Image classification on folders too large for memory: ImageNet, and anyone's set in the same layout."""

from collections.abc import Mapping, Sequence

import torch

from robustrun.data import Examples, ImageFolder, ImageFolderLoader, find_image_folder
from robustrun.errors import ConfigError
from robustrun.numbers import Number, Positive, PositiveInt
from robustrun.registry import tasks
from robustrun.roles import ClassificationSpec, ClassificationTask, ExampleTask, Loader, Split
from robustrun.runtime import Run
from robustrun.tasks.loading import surroundings


class Streamed(ExampleTask):
    """Examples of files that are read as they are needed; `load` of a subclass calls `_take`.

    Args:
        limit, test_limit: use only so many examples, spread evenly over the split.
        workers: processes that decode; null for one a core, at most 16.
        drop_last: training leaves out a short last batch.
    """

    def __init__(self, limit: int | None, test_limit: int | None, workers: int | None, drop_last: bool = False):
        self._limits = {"train": limit, "test": test_limit}
        self._workers, self._drop_last = workers, drop_last

    def _take(self, files: Mapping[tuple[Split, bool], Examples]) -> None:
        """The files by split, and by whether they are cut at random for training."""
        self._files = files
        self._indices = {split: self._spread(split) for split in ("train", "test")}

    def _spread(self, split: Split) -> torch.Tensor:
        # The files are sorted by class, or by city: the first so many would be of one.
        size, limit = len(self._files[split, False]), self._limits[split]
        return torch.arange(size) if limit is None else torch.linspace(0, size - 1, min(limit, size)).round().long()

    def size(self, split: Split) -> int:
        return len(self._indices[split]) if split in self._indices else 0

    def loader(
        self,
        split: Split,
        batch_size: int,
        run: Run,
        *,
        train: bool = False,
        indices: Sequence[int] | None = None,
    ) -> Loader:
        chosen = self._indices[split]
        return ImageFolderLoader(
            self._files[split, train],
            batch_size,
            drop_last=train and self._drop_last and len(chosen) >= batch_size,
            indices=chosen if indices is None else chosen[torch.as_tensor(indices)],
            channels_last=run.precision.channels_last,
            workers=self._workers,
            **surroundings(run, train),
        )


@tasks.register("image_folder")
class Folder(Streamed, ClassificationTask):
    """`train/CLASS/*.jpg` and `val/CLASS/*.jpg`, streamed from disk.

    Training images are cropped at random (RandomResizedCrop) and flipped; test images are the middle `size`
    pixels, without a resize of their own.

    Args:
        folder: a name of the catalogue ("imagenet"), or a path.
        size: pixels of the crop.
        resize: bring the shorter side to so many pixels first (bicubic); null leaves images as they are.
        mean, std: per channel, applied inside the model.
        limit, test_limit: use only so many examples, spread evenly over the split.
        workers: processes that decode; null for one a core, at most 16.
    """

    def __init__(
        self,
        *,
        folder: str = "imagenet",
        size: PositiveInt = 224,
        resize: PositiveInt | None = None,
        mean: tuple[Number, Number, Number] = (0.485, 0.456, 0.406),
        std: tuple[Positive, Positive, Positive] = (0.229, 0.224, 0.225),
        limit: PositiveInt | None = None,
        test_limit: PositiveInt | None = None,
        workers: int | None = None,
    ):
        super().__init__(limit, test_limit, workers)
        self._folder, self._size, self._resize = folder, size, resize
        self._mean, self._std = mean, std

    def load(self, run: Run) -> None:
        folder = find_image_folder(self._folder)
        images = {
            (split, cut): ImageFolder(
                folder, split, size=self._size, crop="random" if cut else "centre", resize=self._resize
            )
            for split, cut in (("train", True), ("train", False), ("test", False))
        }
        train, test = images["train", True].classes, images["test", False].classes
        if train != test:
            raise ConfigError(f"{folder}: the classes of train and val differ ({len(train)} and {len(test)})")
        self.spec = ClassificationSpec((3, self._size, self._size), len(train), self._mean, self._std)
        self._take(images)
