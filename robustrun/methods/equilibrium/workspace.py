"""Buffers that a solver takes once and uses again: nothing of the state's size is allocated in an iteration."""

import torch
from torch import Tensor


class Workspace:
    """Named buffers that grow and never shrink, one a device and dtype.

    A buffer's content lasts until the next `take` of the same name, so what leaves a solver is never one of them.
    """

    def __init__(self) -> None:
        self._buffers: dict[tuple, Tensor] = {}

    def take(self, name: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """An uninitialised contiguous tensor of that shape, with the dtype and device of `like`."""
        key = name, like.dtype, like.device
        size = torch.Size(shape).numel()
        buffer = self._buffers.get(key)
        if buffer is None or buffer.numel() < size:
            self._buffers.pop(key, None)  # the old one goes before the new one comes
            self._buffers[key] = buffer = torch.empty(size, dtype=like.dtype, device=like.device)
        return buffer[:size].view(shape)

    @property
    def bytes(self) -> int:
        """Of all buffers together."""
        return sum(buffer.numel() * buffer.element_size() for buffer in self._buffers.values())

    def __getstate__(self) -> dict:
        return {"_buffers": {}}  # copies and pickles begin with none
