"""Tasks for certificates against changed labels: a few classes of a set, feature files, reviews, small tables.

Source: Rosenfeld et al. (arXiv 2002.03018), whose experiments these are.
"""

from pathlib import Path
from typing import Literal
from zipfile import BadZipFile

import numpy as np
import torch

from robustrun.data import Arrays, data_root, obtain
from robustrun.data.arrays import Split as ArraySplit
from robustrun.errors import ConfigError, DataError
from robustrun.numbers import NonNegativeInt, PositiveInt
from robustrun.registry import tasks
from robustrun.roles import ClassificationSpec
from robustrun.runtime import Run
from robustrun.tasks.images import FACTS, InMemory


@tasks.register("class_subset")
class ClassSubset(InMemory):
    """Some classes of a standard set of small images, in the file's order; label i is the i-th class named.

    Args:
        dataset: which set.
        classes: which of its classes.
        limit, test_limit: the first so many examples of these classes only.
    """

    def __init__(
        self,
        *,
        dataset: Literal["mnist", "fashion_mnist", "digits", "cifar10", "cifar100", "svhn"],
        classes: list[NonNegativeInt],
        limit: PositiveInt | None = None,
        test_limit: PositiveInt | None = None,
    ):
        facts = FACTS[dataset]
        if len(classes) < 2 or len(set(classes)) < len(classes) or max(classes) >= facts.classes:
            raise ConfigError(
                f"task.classes={classes}: name two or more different classes below {facts.classes} of {dataset}"
            )
        super().__init__([], 0, limit, test_limit)
        self._dataset, self._classes = dataset, classes
        self.spec = ClassificationSpec(facts.shape, len(classes), facts.mean, facts.std)

    def load(self, run: Run) -> None:
        chosen = torch.tensor(self._classes)

        def part(split: ArraySplit) -> ArraySplit:
            match = split.labels[:, None] == chosen
            rows = match.any(1)
            return ArraySplit(split.images[rows], match[rows].long().argmax(1))

        arrays = obtain(self._dataset, log=run.logger.info)
        self._take(Arrays(part(arrays.train), part(arrays.test)).to(run.device))


class _Features(InMemory):
    """Feature vectors, standardised inside the model by the training inputs' figures."""

    def __init__(self, classes: int, limit: int | None, test_limit: int | None):
        super().__init__([], 0, limit, test_limit)
        self.spec = ClassificationSpec((1,), classes, box=None)

    def _take_features(self, train: tuple, test: tuple, run: Run) -> None:
        (x, y), (xt, yt) = train, test
        mean, std = x.mean(0), x.std(0)
        std[std == 0] = 1.0
        self.spec = ClassificationSpec(
            x.shape[1:], self.spec.classes, tuple(mean.tolist()), tuple(std.tolist()), box=None
        )

        def part(x: np.ndarray, y: np.ndarray) -> ArraySplit:
            return ArraySplit(torch.from_numpy(x).float(), torch.from_numpy(y).long())

        self._take(Arrays(part(x, y), part(xt, yt)).to(run.device))


def _located(path: str) -> Path:
    """A user's path as it is if there is something, else below the directory of all data."""
    given = Path(path).expanduser()
    return given if given.is_absolute() or given.exists() else Path(data_root()).expanduser() / given


@tasks.register("feature_file")
class FeatureFile(_Features):
    """Features from an .npz with X_train, Y_train, X_test, Y_test: the format of the dog-against-fish set.

    Args:
        path: the file.
        classes: how many classes; labels are 0 to classes - 1.
        limit, test_limit: the first so many examples only.
    """

    def __init__(
        self,
        *,
        path: str,
        classes: PositiveInt = 2,
        limit: PositiveInt | None = None,
        test_limit: PositiveInt | None = None,
    ):
        if classes < 2:
            raise ConfigError("task.classes must be at least 2")
        super().__init__(classes, limit, test_limit)
        self._path = _located(path)

    def load(self, run: Run) -> None:
        if not self._path.is_file():
            raise DataError(
                f"{self._path} is not there: place an .npz with X_train (n, ...), Y_train (n,), X_test and Y_test, "
                "or name one with task.path="
            )
        try:
            with self._path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
                x, y, xt, yt = (file[name] for name in ("X_train", "Y_train", "X_test", "Y_test"))
        except (KeyError, ValueError, TypeError, OSError, EOFError, BadZipFile) as error:
            raise DataError(f"{self._path} does not hold X_train, Y_train, X_test and Y_test: {error}") from None
        for features, labels in ((x, y), (xt, yt)):
            whole = labels.ndim == 1 and np.isin(labels, np.arange(self.spec.classes)).all()
            if not whole or len(features) != len(labels) or not len(labels) or not np.isfinite(features).all():
                raise DataError(
                    f"{self._path}: needs finite features and as many labels from 0 to {self.spec.classes - 1}, "
                    f"got {features.shape} and {labels.shape}"
                )
        flat = (features.reshape(len(features), -1).astype(np.float64) for features in (x, xt))
        self._take_features((next(flat), y), (next(flat), yt), run)


@tasks.register("reviews")
class Reviews(_Features):
    """Two-class texts in the layout of aclImdb: {train,test}/{neg,pos}/*.txt, as TF-IDF reduced by an SVD.

    Neither the vocabulary nor the SVD, both of the training texts, sees a label.

    Args:
        path: the folder.
        dimension: components of the SVD.
        limit, test_limit: the first so many examples only, after a fixed shuffle.
    """

    def __init__(
        self,
        *,
        path: str,
        dimension: PositiveInt = 300,
        limit: PositiveInt | None = None,
        test_limit: PositiveInt | None = None,
    ):
        super().__init__(2, limit, test_limit)
        self._path, self._dimension = _located(path), dimension

    def load(self, run: Run) -> None:
        from sklearn.decomposition import TruncatedSVD
        from sklearn.feature_extraction.text import TfidfVectorizer

        (texts, y), (test_texts, yt) = self._read("train"), self._read("test")
        words = TfidfVectorizer(sublinear_tf=True, min_df=min(5, len(texts)))
        try:
            counts = words.fit_transform(texts)
            svd = TruncatedSVD(min(self._dimension, counts.shape[1] - 1), random_state=0)
            x = svd.fit_transform(counts)
        except ValueError as error:
            raise DataError(f"the texts in {self._path} have too few words in common: {error}") from None
        self._take_features((x, y), (svd.transform(words.transform(test_texts)), yt), run)

    def _read(self, split: str) -> tuple[list[str], np.ndarray]:
        files = [sorted((self._path / split / side).glob("*.txt")) for side in ("neg", "pos")]
        if not all(files):
            raise DataError(
                f"{self._path} holds no texts in {split}/neg and {split}/pos: unpack aclImdb there "
                "(https://ai.stanford.edu/~amaas/data/sentiment/), or name its folder with task.path="
            )
        labels = np.repeat([0, 1], [len(files[0]), len(files[1])])
        order = np.random.default_rng(0).permutation(len(labels))
        paths = [path for side in files for path in side]
        return [paths[i].read_text(encoding="utf-8", errors="replace") for i in order], labels[order]


@tasks.register("small_table")
class SmallTable(_Features):
    """A table that comes with scikit-learn, shuffled by a fixed permutation.

    Args:
        dataset: breast_cancer (569 rows, 2 classes), wine (178, 3) or iris (150, 3).
        train: the first so many rows train, the others test.
        limit, test_limit: the first so many of these only.
    """

    def __init__(
        self,
        *,
        dataset: Literal["breast_cancer", "wine", "iris"] = "breast_cancer",
        train: PositiveInt = 400,
        limit: PositiveInt | None = None,
        test_limit: PositiveInt | None = None,
    ):
        rows, classes = {"breast_cancer": (569, 2), "wine": (178, 3), "iris": (150, 3)}[dataset]
        if train >= rows:
            raise ConfigError(f"task.train={train} leaves none of the {rows} rows of {dataset} for testing")
        super().__init__(classes, limit, test_limit)
        self._dataset, self._train = dataset, train

    def load(self, run: Run) -> None:
        from sklearn import datasets

        x, y = getattr(datasets, f"load_{self._dataset}")(return_X_y=True)
        order = np.random.default_rng(0).permutation(len(y))
        train, test = order[: self._train], order[self._train :]
        self._take_features((x[train], y[train]), (x[test], y[test]), run)
