"""Certifying from a log alone: no network, no denoiser, and any number of draws up to those that were made."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from robustrun.errors import DataError
from robustrun.query.log import read_lines


class LoggedVotes:
    """Votes (see `robustrun.methods.smoothing.Votes`) of the images in a log, in ascending order of their numbers.

    Attributes:
        head: what the log says of itself: provider, noise, seed, number of selection draws.
        images: (B,) the images' numbers; position b in the votes is `images[b]`.
        names: the labels; class k is `names[k]`, in order of first appearance.
        truth: (B,) the class of the clean image, -1 where it was not asked.

    Raises:
        DataError: it is no log of queries.
    """

    def __init__(self, path: Path):
        try:
            self.head, *entries = read_lines(path)
            keyed = {(entry["image"], entry["draw"]): entry["label"] for entry in entries}
        except (ValueError, OSError) as error:
            raise DataError(f"{path} is no log of queries: {error}") from None
        self.images = np.unique([image for image, _ in keyed]).astype(np.int64)
        self.names = list(dict.fromkeys(label for label in keyed.values() if label is not None))
        number = {name: k for k, name in enumerate(self.names)} | {None: -1}
        self._labels = {key: number[label] for key, label in keyed.items()}
        self.truth = np.array([self._labels.get((int(i), -1), -1) for i in self.images])

    def __call__(self, rows: Tensor, first: int, count: int) -> Tensor:
        """Counts (len(rows), classes) of draws `first` ... `first + count - 1`; DataError if one is missing."""
        counts = torch.zeros(len(rows), len(self.names), dtype=torch.int64)
        for position, row in enumerate(rows.tolist()):
            image = int(self.images[row])
            try:
                labels = torch.tensor([self._labels[image, draw] for draw in range(first, first + count)])
            except KeyError as missing:
                raise DataError(f"the log has no draw {missing.args[0][1]} of image {image}") from None
            counts[position] = torch.bincount(labels[labels >= 0], minlength=len(self.names))
        return counts
