"""Image classification on the sets that fit in memory, and on anyone's own arrays."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from robustrun.data import Arrays, DeviceLoader, augmentations, obtain
from robustrun.data import Split as DataSplit
from robustrun.errors import ConfigError, DataError
from robustrun.numbers import NonNegativeInt, PositiveInt
from robustrun.registry import tasks
from robustrun.roles import ClassificationSpec, ClassificationTask, Loader, Split
from robustrun.runtime import Run
from robustrun.tasks.loading import surroundings


@dataclass(frozen=True)
class Facts:
    """What a data set is known for; normalisation as in fast_at and robust_overfitting."""

    shape: tuple[int, int, int]
    classes: int
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()


FACTS = {
    "mnist": Facts((1, 28, 28), 10),
    "fashion_mnist": Facts((1, 28, 28), 10),
    "digits": Facts((1, 8, 8), 10),
    "cifar10": Facts((3, 32, 32), 10, (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)),
    "cifar100": Facts((3, 32, 32), 100, (0.507075, 0.486549, 0.440918), (0.267334, 0.256438, 0.276150)),
    "svhn": Facts((3, 32, 32), 10, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}


class InMemory(ClassificationTask):
    """Splits of arrays on the device, augmented there in batches."""

    _arrays: Arrays | None = None
    _companions: np.ndarray | None = None  # of a training example: numbers in `_arrays.train`, see `DeviceLoader`

    def __init__(self, augment: Sequence[str], validation: int, limit: int | None, test_limit: int | None):
        self._augment = augmentations(augment)
        self._validation = validation
        self._limits = {"train": limit, "valid": None, "test": test_limit}

    def _take(self, arrays: Arrays) -> None:
        held = self._validation
        if held >= len(arrays.train):
            raise ConfigError(f"task.validation={held} leaves nothing of {len(arrays.train)} training examples")
        self._arrays = arrays
        order = np.arange(len(arrays.train))
        if held:
            # The hold-out split of robust_overfitting: numpy's legacy generator, seed 0, whatever the job's seed.
            order = np.random.RandomState(0).permutation(len(arrays.train))
        parts = {"valid": order[:held], "train": order[held:], "test": np.arange(len(arrays.test))}
        self._indices = {name: part[: self._limits[name]] for name, part in parts.items()}

    def size(self, split: Split) -> int:
        return len(self._indices[split])

    def loader(
        self,
        split: Split,
        batch_size: int,
        run: Run,
        *,
        train: bool = False,
        indices: Sequence[int] | None = None,
    ) -> Loader:
        arrays = self._arrays.test if split == "test" else self._arrays.train
        chosen = self._indices[split] if indices is None else self._indices[split][np.asarray(indices)]
        return DeviceLoader(
            arrays.images,
            arrays.labels,
            batch_size,
            augment=self._augment if train else (),
            indices=chosen,
            companions=self._companions if train and split == "train" else None,
            channels_last=run.precision.channels_last,
            **surroundings(run, train),
        )


@tasks.register("images")
class Images(InMemory):
    """A standard set of small images, obtained on first use.

    Args:
        dataset: which one.
        augment: augmentations of the training split in order, e.g. [pad_crop, flip].
        validation: this many training examples are held out as the split "valid".
        limit: train on the first so many examples only.
        test_limit: test on the first so many examples only.
        extra: a `.npz` of further images and (pseudo-)labels; every training example is followed by one drawn from
            them, so that batches are half and half (semi-supervised training of arXiv 1905.13736, 2002.11569).
        extra_labels: `given`, or `training`: those of the training set in order, whatever the images show, for as
            many images as it has. This is what the released code of 2002.11569 does.
    """

    def __init__(
        self,
        *,
        dataset: Literal["mnist", "fashion_mnist", "digits", "cifar10", "cifar100", "svhn"],
        augment: list[str] = [],  # noqa: B006
        validation: NonNegativeInt = 0,
        limit: PositiveInt | None = None,
        test_limit: PositiveInt | None = None,
        extra: str | None = None,
        extra_labels: Literal["given", "training"] = "given",
    ):
        super().__init__(augment, validation, limit, test_limit)
        self._dataset, self._extra, self._extra_labels = dataset, extra, extra_labels
        facts = FACTS[dataset]
        self.spec = ClassificationSpec(facts.shape, facts.classes, facts.mean, facts.std)

    def load(self, run: Run) -> None:
        if self._arrays is None:
            self._take(obtain(self._dataset).to(run.device))
            if self._extra is not None:
                self._add(obtain(self._extra).to(run.device).train)

    def _add(self, extra: DataSplit) -> None:
        own = self._arrays.train
        if extra.images.shape[1:] != own.images.shape[1:]:
            shapes = [" x ".join(map(str, images.shape[1:])) for images in (extra.images, own.images)]
            raise DataError(f"task.extra={self._extra} holds images of {shapes[0]}, the data set of {shapes[1]}")
        if self._extra_labels == "training":
            count = min(len(extra), len(own))
            extra = DataSplit(extra.images[:count], own.labels[:count])
        elif extra.labels.max() >= self.spec.classes:
            raise DataError(f"task.extra={self._extra} has a label {extra.labels.max()} of {self.spec.classes} classes")
        self._companions = len(own) + np.arange(len(extra))
        images, labels = torch.cat((own.images, extra.images)), torch.cat((own.labels, extra.labels))
        self._arrays = Arrays(DataSplit(images, labels), self._arrays.test)
