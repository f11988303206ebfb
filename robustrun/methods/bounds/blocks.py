"""Bounds of thousands of examples, some hundred at a time: what belongs to them stays in a core's cache."""

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from robustrun.methods.bounds.network import Network
from robustrun.methods.bounds.regions import Bounds, Region
from robustrun.methods.threads import map_blocks

_EXAMPLES = 256


def in_blocks(method: Callable[..., Bounds]) -> Callable[..., Bounds]:
    """`method(net, region, objective, ..., boxes=...)` for blocks of examples, a block a core, then joined.

    Only on the CPU and where no gradient is asked for: training sees its whole batch.
    """

    @functools.wraps(method)
    def blocked(net: Network, region: Region, objective: Tensor | None = None, **options) -> Bounds:
        count = region.lower.shape[0]
        if torch.is_grad_enabled() or count <= _EXAMPLES or region.lower.device.type != "cpu":
            return method(net, region, objective, **options)
        boxes = options.pop("boxes", None)
        own = objective is not None and objective.dim() == len(net.output.shape) + 2 and len(objective) == count

        def part(start: int) -> Bounds:
            here = slice(start, start + _EXAMPLES)
            given = options if boxes is None else options | {"boxes": {k: b.at(here) for k, b in boxes.items()}}
            return method(net, region[here], objective[here] if own else objective, **given)

        parts = map_blocks(part, range(0, count, _EXAMPLES))
        return Bounds(*(torch.cat(side) for side in zip(*parts, strict=True)))

    return blocked
