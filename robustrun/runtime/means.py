"""Running means that stay on the device."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from robustrun.runtime.distributed import Distributed


class RunningMeans:
    """Weighted means of named values; adding waits for nothing, sums are float64 where the device has it."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._dtype = torch.float32 if device.type == "mps" else torch.float64
        self._sums: dict[str, Tensor] = {}
        self._weights: dict[str, float] = {}

    def add(self, weight: float, values: Mapping[str, Any]) -> None:
        """Add a value (a number or a tensor, averaged over its entries) of that weight to each mean."""
        for name, value in values.items():
            if name not in self._sums:
                self._sums[name] = torch.zeros((), dtype=self._dtype, device=self._device)
                self._weights[name] = 0.0
            if isinstance(value, Tensor):
                value = value.detach()
                if value.ndim or not value.is_floating_point():
                    value = value.to(self._dtype).mean()
                # Promoted before it is scaled: a bfloat16 product would lose digits.
                self._sums[name].add_(value.to(self._dtype), alpha=weight)
            else:
                self._sums[name] += value * weight
            self._weights[name] += weight

    def local(self) -> dict[str, float]:
        """The means on this rank."""
        if not self._sums:
            return {}
        sums = torch.stack(list(self._sums.values())).tolist()
        return {
            name: total / (self._weights[name] or 1.0) for name, total in zip(self._sums, sums, strict=True)
        }

    def reduce(self, distributed: Distributed) -> dict[str, float]:
        """The means over all ranks, which must have added the same names."""
        if not self._sums or distributed.world_size == 1:
            return self.local()
        sums = torch.stack(list(self._sums.values())).cpu()
        weights = torch.tensor(list(self._weights.values()), dtype=sums.dtype)
        total, weight = distributed.all_reduce_sum(torch.stack([sums, weights]))
        return dict(zip(self._sums, (total / weight).tolist(), strict=True))

    def clear(self) -> None:
        self._sums.clear()
        self._weights.clear()

    def state_dict(self) -> dict[str, Any]:
        return {"sums": dict(self._sums), "weights": dict(self._weights)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._sums = {name: value.to(self._device) for name, value in state["sums"].items()}
        self._weights = dict(state["weights"])
