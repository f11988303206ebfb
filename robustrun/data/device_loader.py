"""Minibatches of a split that lives on the device."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from robustrun.data.augment import Augmentation


class Batch(NamedTuple):
    """One minibatch on the device. `indices` are the examples' numbers in their split."""

    inputs: Tensor
    targets: Tensor
    indices: Tensor


def batch_slice(step: int, batch_size: int, size: int, rank: int, world_size: int) -> slice:
    """A rank's part of the joined batch of a step, as positions in an epoch of `size` examples.

    Contiguous, sizes differing by one at most, the larger ones first: as `torch.tensor_split` cuts.
    """
    first = step * batch_size
    each, rest = divmod(min(batch_size, size - first), world_size)
    first += rank * each + min(rank, rest)
    return slice(first, first + each + (rank < rest))


class DeviceLoader:
    """Batches of a split held on the device, gathered and augmented there; no host sync in the loop.

    Everything random about epoch `e` (order and augmentations) is drawn for the whole epoch in advance, on
    the CPU, from generators seeded by `seed_for("order", e)` and `seed_for("augment", e)`: it depends on
    (seed, e) alone, and is the same on every device, on every rank, and from whatever step on.

    `len(loader)` is the number of steps an epoch; `size` the number of examples.

    Raises:
        ValueError: the batch size is below 1, or seeds are needed and not given.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        batch_size: int,
        *,
        device: torch.device | str = "cpu",
        seed_for: Callable[..., int] | None = None,
        shuffle: bool = False,
        augment: Sequence[Augmentation] = (),
        dtype: torch.dtype = torch.float32,
        rank: int = 0,
        world_size: int = 1,
        drop_last: bool = False,
        indices: Sequence[int] | Tensor | None = None,
        companions: Sequence[int] | Tensor | None = None,
        channels_last: bool = False,
    ):
        """
        Args:
            images: (N, C, H, W) uint8, served as `dtype` in [0, 1]; or of a floating type (any shape), served
                unscaled. Already on `device`, they are shared, not copied.
            labels: (N, ...) of any type.
            batch_size: of the joined batch; under data parallelism each rank gets its slice of it.
            seed_for: stable hash of a key to a seed; needed if `shuffle` or `augment`.
            drop_last: leave out the short last batch.
            indices: restrict to these examples, in this order (before shuffling).
            companions: each example is followed by one drawn from these, with replacement: batches are half and
                half, and an epoch has twice the examples. Needs `shuffle`.
        """
        if batch_size < 1:
            raise ValueError(f"the batch size is {batch_size}, but must be at least 1")
        if (shuffle or augment) and seed_for is None:
            raise ValueError("shuffling and augmenting need seed_for")
        self.batch_size = batch_size
        self._device = torch.device(device)
        self._images, self._labels = images.to(self._device), labels.to(self._device)
        self._indices = torch.arange(len(images)) if indices is None else torch.as_tensor(indices, dtype=torch.int64)
        self._companions = None if companions is None else torch.as_tensor(companions, dtype=torch.int64)
        self._seed_for, self._shuffle, self._augment = seed_for, shuffle, tuple(augment)
        self._dtype, self._channels_last, self._drop_last = dtype, channels_last, drop_last
        self._rank, self._world_size = rank, world_size

    @property
    def size(self) -> int:
        """Examples an epoch."""
        return len(self._indices) * (1 if self._companions is None else 2)

    def __len__(self) -> int:
        return self.size // self.batch_size if self._drop_last else -(-self.size // self.batch_size)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of one epoch from step `start` on."""
        order = self._order(epoch)
        draws = self._draw(epoch)
        for step in range(start, len(self)):
            here = batch_slice(step, self.batch_size, self.size, self._rank, self._world_size)
            chosen = order[here]
            images = self._as_float(self._images[chosen])
            for augmentation, draw in zip(self._augment, draws, strict=True):
                if not len(images):  # a rank's share of a short last batch
                    break
                images = augmentation(images, *(values[here] for values in draw))
            yield Batch(self._as_output(images), self._labels[chosen], chosen)

    def _order(self, epoch: int) -> Tensor:
        if not self._shuffle:
            return self._to_device(self._indices)
        order = self._indices[torch.randperm(len(self._indices), generator=self._generator("order", epoch))]
        if self._companions is not None:
            generator = self._generator("companions", epoch)
            drawn = self._companions[torch.randint(len(self._companions), order.shape, generator=generator)]
            order = torch.stack((order, drawn), 1).flatten()
        return self._to_device(order)

    def _draw(self, epoch: int) -> list[tuple[Tensor, ...]]:
        """Each augmentation's random numbers, one row a position in the epoch."""
        if not self._augment:
            return []
        generator = self._generator("augment", epoch)
        return [
            tuple(self._to_device(values) for values in augmentation.draw(self.size, self._images.shape[1:], generator))
            for augmentation in self._augment
        ]

    def _generator(self, *key: object) -> torch.Generator:
        return torch.Generator().manual_seed(self._seed_for(*key))

    def _to_device(self, values: Tensor) -> Tensor:
        if self._device.type == "cuda":
            return values.pin_memory().to(self._device, non_blocking=True)
        return values.to(self._device)

    def _as_float(self, images: Tensor) -> Tensor:
        return images if images.is_floating_point() else images.float().div_(255)

    def _as_output(self, images: Tensor) -> Tensor:
        memory_format = torch.channels_last if self._channels_last else torch.contiguous_format
        return images.to(self._dtype, memory_format=memory_format)
