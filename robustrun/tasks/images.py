"""Image classification on the sets that fit in memory, and on anyone's own arrays."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from robustrun.data import Arrays, DeviceLoader, augmentations, obtain
from robustrun.errors import ConfigError
from robustrun.numbers import NonNegativeInt, PositiveInt
from robustrun.registry import tasks
from robustrun.roles import ClassificationSpec, ClassificationTask, Loader, Split
from robustrun.runtime import Run


@dataclass(frozen=True)
class _Facts:
    """What a data set is known for; normalisation as in fast_at and robust_overfitting."""

    shape: tuple[int, int, int]
    classes: int
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()


_FACTS = {
    "mnist": _Facts((1, 28, 28), 10),
    "fashion_mnist": _Facts((1, 28, 28), 10),
    "digits": _Facts((1, 8, 8), 10),
    "cifar10": _Facts((3, 32, 32), 10, (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)),
    "cifar100": _Facts((3, 32, 32), 100, (0.507075, 0.486549, 0.440918), (0.267334, 0.256438, 0.276150)),
    "svhn": _Facts((3, 32, 32), 10, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}


class _InMemory(ClassificationTask):
    """Splits of arrays on the device, augmented there in batches."""

    _arrays: Arrays | None = None

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
            device=run.device,
            seed_for=run.seed_for,
            shuffle=train,
            augment=self._augment if train else (),
            rank=run.distributed.rank if train else 0,
            world_size=run.distributed.world_size if train else 1,
            indices=chosen,
            channels_last=run.precision.channels_last,
        )


@tasks.register("images")
class Images(_InMemory):
    """A standard set of small images, obtained on first use.

    Args:
        dataset: which one.
        augment: augmentations of the training split in order, e.g. [pad_crop, flip].
        validation: this many training examples are held out as the split "valid".
        limit: train on the first so many examples only.
        test_limit: test on the first so many examples only.
    """

    def __init__(
        self,
        *,
        dataset: Literal["mnist", "fashion_mnist", "digits", "cifar10", "cifar100", "svhn"],
        augment: list[str] = [],  # noqa: B006
        validation: NonNegativeInt = 0,
        limit: PositiveInt | None = None,
        test_limit: PositiveInt | None = None,
    ):
        super().__init__(augment, validation, limit, test_limit)
        self._dataset = dataset
        facts = _FACTS[dataset]
        self.spec = ClassificationSpec(facts.shape, facts.classes, facts.mean, facts.std)

    def load(self, run: Run) -> None:
        if self._arrays is None:
            self._take(obtain(self._dataset).to(run.device))
