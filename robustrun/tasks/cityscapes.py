"""A label for every pixel of photographs of streets."""

from collections.abc import Sequence

import torch

from robustrun.data import Cityscapes, ImageFolderLoader, find_image_folder
from robustrun.data.cityscapes import CLASSES, IGNORE, WEIGHTS
from robustrun.numbers import Number, Positive, PositiveInt
from robustrun.registry import tasks
from robustrun.roles import Loader, SegmentationSpec, SegmentationTask, Split
from robustrun.runtime import Run


@tasks.register("cityscapes")
class CityscapesTask(SegmentationTask):
    """Cityscapes with its 19 classes, streamed from disk; the test split is the official validation split.

    Training images are cut out at random (see `robustrun.data.Cityscapes`) and the short last batch is left out;
    test images come whole.

    Args:
        folder: a name of the catalogue ("cityscapes"), or a path with leftImg8bit/ and gtFine/.
        crop: (height, width) in pixels.
        scales: the smallest and the largest size that is cut from, drawn uniformly from the tenths between.
        mean, std: per channel, applied inside the model.
        weighted: the classes count in the training loss by the paper's weights (arXiv 2006.08656).
        limit, test_limit: use only so many examples, spread evenly over the split.
        workers: processes that decode; null for one a core, at most 16.
    """

    class_names = CLASSES

    def __init__(
        self,
        *,
        folder: str = "cityscapes",
        crop: tuple[PositiveInt, PositiveInt] = (512, 1024),
        scales: tuple[Positive, Positive] = (0.5, 2.1),
        mean: tuple[Number, Number, Number] = (0.485, 0.456, 0.406),
        std: tuple[Positive, Positive, Positive] = (0.229, 0.224, 0.225),
        weighted: bool = True,
        limit: PositiveInt | None = None,
        test_limit: PositiveInt | None = None,
        workers: int | None = None,
    ):
        if scales[0] > scales[1]:
            raise ValueError(f"the smallest of the scales, {scales[0]}, is above the largest, {scales[1]}")
        self.class_weights = WEIGHTS if weighted else ()
        self._folder, self._crop, self._scales = folder, crop, scales
        self._mean, self._std = mean, std
        self._limits = {"train": limit, "test": test_limit}
        self._workers = workers

    def load(self, run: Run) -> None:
        folder = find_image_folder(self._folder)
        crops = {True: self._crop, False: None}
        self._images = {
            (split, train): Cityscapes(folder, split, crop=crops[train], scales=self._scales)
            for split, train in (("train", True), ("train", False), ("test", False))
        }
        shape = self._images["test", False].shape
        self.spec = SegmentationSpec(shape, len(CLASSES), self._mean, self._std, IGNORE)
        self._indices = {split: self._spread(split) for split in ("train", "test")}

    def _spread(self, split: Split) -> torch.Tensor:
        # The files are sorted by city: the first so many would be of one city.
        size, limit = len(self._images[split, False]), self._limits[split]
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
            self._images[split, train],
            batch_size,
            device=run.device,
            seed_for=run.seed_for,
            shuffle=train,
            rank=run.distributed.rank if train else 0,
            world_size=run.distributed.world_size if train else 1,
            drop_last=train and len(chosen) >= batch_size,
            indices=chosen if indices is None else chosen[torch.as_tensor(indices)],
            channels_last=run.precision.channels_last,
            workers=self._workers,
        )
