"""Two classes, the second of which is the positive one: tables, and one class of images against the rest.

Source: Fathony and Kolter (arXiv 1912.00965), whose experiments these are.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from robustrun.data import DeviceLoader, obtain
from robustrun.data.tabular import TABLES, table
from robustrun.errors import ConfigError
from robustrun.numbers import NonNegativeInt, PositiveInt, Probability
from robustrun.registry import tasks
from robustrun.roles import BinaryTask, ClassificationSpec, Loader, Split
from robustrun.runtime import Run
from robustrun.tasks.loading import surroundings


class _FixedBatches(DeviceLoader):
    """Mini-batches whose composition is drawn once; each epoch changes their order only (arXiv 1912.00965)."""

    def _order(self, epoch: int) -> Tensor:
        order = torch.randperm(self.size, generator=self._generator("batches"))
        whole = self.size // self.batch_size
        batches = torch.randperm(whole, generator=self._generator("order", epoch))
        rows = order[: whole * self.batch_size].view(whole, self.batch_size)[batches].flatten()
        rest = order[whole * self.batch_size :]  # the short batch stays the last
        return self._to_device(self._indices[torch.cat([rows, rest])])


class _Split(BinaryTask):
    """Splits of one array on the device."""

    def _take(self, inputs: Tensor, labels: Tensor, splits: dict[str, np.ndarray], run: Run) -> None:
        for name, rows in splits.items():
            if len(rows) and not 0 < labels[torch.as_tensor(rows)].sum() < len(rows):
                raise ConfigError(f"the split {name} of {len(rows)} examples has one class only: take more examples")
        self._inputs, self._labels = inputs.to(run.device), labels.to(run.device)
        self._splits = splits

    def size(self, split: Split) -> int:
        return len(self._splits[split])

    def loader(
        self,
        split: Split,
        batch_size: int,
        run: Run,
        *,
        train: bool = False,
        indices: Sequence[int] | None = None,
    ) -> Loader:
        rows = self._splits[split] if indices is None else self._splits[split][np.asarray(indices)]
        kind = _FixedBatches if train else DeviceLoader
        return kind(self._inputs, self._labels, batch_size, indices=rows, **surroundings(run, train))


@tasks.register("table")
class TabularTask(_Split):
    """A table, split at random; features are standardised inside the model by the training part's figures.

    Args:
        dataset: a table's name, or the path of a CSV with a header, the class in its last column.
        positive: the class of a CSV that is positive.
        test: fraction of the rows held out for testing.
        validation: fraction of the others held out for choosing.
        split: number of the random split; null: the job's seed.
        limit: train on the first so many examples only.
    """

    def __init__(
        self,
        *,
        dataset: str,
        positive: str = "1",
        test: Probability = 0.3,
        validation: Probability = 0.2,
        split: NonNegativeInt | None = None,
        limit: PositiveInt | None = None,
    ):
        if dataset not in TABLES and not dataset.lower().endswith(".csv"):
            raise ConfigError(
                f"no table is called '{dataset}': there are {', '.join(TABLES)}, or the path of a .csv file"
            )
        self._dataset, self._positive = dataset, positive
        self._test, self._validation, self._split, self._limit = test, validation, split, limit
        features = TABLES[dataset].features if dataset in TABLES else 1
        self.spec = ClassificationSpec((features,), 2, box=None)

    def load(self, run: Run) -> None:
        X, y = table(self._dataset, positive=self._positive, log=run.logger.info)
        generator = np.random.default_rng(run.seed if self._split is None else self._split)
        order = generator.permutation(len(y))
        held = round(self._test * len(y))
        rest = order[held:]
        kept = len(rest) - round(self._validation * len(rest))
        if not held or not kept:
            raise ConfigError(f"task.test={self._test} and task.validation={self._validation} leave an empty split")
        mean, std = X[rest].mean(0), X[rest].std(0, ddof=1)
        std[std == 0] = 1.0
        self.spec = ClassificationSpec((X.shape[1],), 2, tuple(mean.tolist()), tuple(std.tolist()), box=None)
        splits = {"train": rest[:kept][: self._limit], "valid": rest[kept:], "test": order[:held]}
        self._take(torch.from_numpy(X).float(), torch.from_numpy(y), splits, run)


@tasks.register("one_against_rest")
class OneAgainstRest(_Split):
    """One class of small images against all others.

    Args:
        dataset: which set.
        positive: the class that is positive.
        keep: fraction of the positive training examples that is kept (the first ones), for more imbalance.
        validation: fraction of the training examples, the last in the file's order, held out for choosing.
        limit, test_limit: take the first so many examples only, before anything else.
    """

    def __init__(
        self,
        *,
        dataset: Literal["mnist", "fashion_mnist", "digits"] = "mnist",
        positive: NonNegativeInt = 0,
        keep: Probability = 1.0,
        validation: Probability = 0.2,
        limit: PositiveInt | None = None,
        test_limit: PositiveInt | None = None,
    ):
        if positive > 9:
            raise ConfigError(f"task.positive={positive}, but {dataset} has the classes 0 to 9")
        self._dataset, self._positive, self._keep, self._validation = dataset, positive, keep, validation
        self._limits = limit, test_limit
        self.spec = ClassificationSpec((1, 8, 8) if dataset == "digits" else (1, 28, 28), 2)

    def load(self, run: Run) -> None:
        arrays = obtain(self._dataset, log=run.logger.info)
        parts = [
            (p.images[:limit], p.labels[:limit])
            for p, limit in zip((arrays.train, arrays.test), self._limits, strict=True)
        ]
        inputs = torch.cat([images for images, _ in parts])
        labels = (torch.cat([labels for _, labels in parts]) == self._positive).long()
        train, test = np.arange(len(parts[0][1])), len(parts[0][1]) + np.arange(len(parts[1][1]))
        kept = len(train) - round(self._validation * len(train))
        fit, valid = train[:kept], train[kept:]
        positives = fit[labels[:kept].bool().numpy()]
        fit = np.setdiff1d(fit, positives[round(self._keep * len(positives)) :])
        self._take(inputs, labels, {"train": fit, "valid": valid, "test": test}, run)
