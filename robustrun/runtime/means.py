"""Running means that stay on the device."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from robustrun.runtime.distributed import Distributed


class RunningMeans:
    """Weighted means of named values; adding waits for nothing, sums are float64 where the device has it."""

    def __init__(self, device: torch.device, distributed: Distributed) -> None:
        self._device, self._distributed = device, distributed
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
        return {name: total / (self._weights[name] or 1.0) for name, total in zip(self._sums, sums, strict=True)}

    def joined(self) -> dict[str, float]:
        """The means over all ranks, which must have added the same names."""
        sums, weights = self._of_ranks().sum(dim=0).unbind(-1)
        return dict(zip(self._sums, (sums / weights).tolist(), strict=True))

    def _of_ranks(self) -> Tensor:
        """Every rank's sums and weights, (ranks, names, 2), on the CPU."""
        ranks = torch.zeros(self._distributed.world_size, len(self._sums), 2, dtype=self._dtype)
        if self._sums:
            mine = ranks[self._distributed.rank]
            mine[:, 0] = torch.stack(list(self._sums.values())).cpu()
            mine[:, 1] = torch.tensor(list(self._weights.values()))
            self._distributed.all_reduce_sum(ranks)
        return ranks

    def clear(self) -> None:
        self._sums.clear()
        self._weights.clear()

    def state_dict(self) -> dict[str, Any]:
        """The state of all ranks; each must ask for it."""
        return {"names": list(self._sums), "ranks": self._of_ranks()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Each rank takes up its own sums; if their number has changed, rank 0 takes all of them."""
        ranks, rank = state["ranks"].to(self._dtype), self._distributed.rank
        if len(ranks) != self._distributed.world_size:
            ranks = torch.cat([ranks.sum(dim=0, keepdim=True), torch.zeros(rank, *ranks.shape[1:])])
        self._sums = {name: ranks[rank, i, 0].to(self._device) for i, name in enumerate(state["names"])}
        self._weights = {name: ranks[rank, i, 1].item() for i, name in enumerate(state["names"])}
