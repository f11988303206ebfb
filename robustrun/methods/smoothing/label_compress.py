"""Sums of smooth functions of thousands of values, from a few Chebyshev nodes.

Source: interpolation as in Trefethen, "Approximation Theory and Approximation Practice", chapters 3 and 8.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

_CACHED = 1 << 18  # elements worked on at once: a handful of temporaries of this size fit in a core's cache


def by_rows(function: Callable[[slice], tuple[Tensor, ...]], like: Tensor) -> tuple[Tensor, ...]:
    """`function(rows)` for a few rows of `like` (b, n) at a time, joined: its temporaries stay in the cache."""
    size = _CACHED if like.device.type == "cpu" else 64 * _CACHED
    rows = max(1, size // max(like.shape[1], 1))
    parts = [function(slice(start, start + rows)) for start in range(0, max(len(like), 1), rows)]
    return parts[0] if len(parts) == 1 else tuple(torch.cat(column) for column in zip(*parts, strict=True))


def group_by_label(alpha: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, list[int]]:
    """`alpha` (b, n) with its columns in the order of their labels (n,), and how many there are of each class."""
    if (labels[1:] < labels[:-1]).any():
        alpha = alpha[:, labels.argsort(stable=True)]
    return alpha, labels.bincount(minlength=classes).tolist()


def group_sums(values: Tensor, sizes: list[int]) -> Tensor:
    """(b, G) sums of adjacent groups of columns of `values` (b, n)."""
    return torch.stack([group.sum(1) for group in values.split(sizes, 1)], 1)


@dataclass(frozen=True)
class Compressed:
    """Weighted Chebyshev nodes that stand for the n values of each row, group by group.

    `nodes` (b, N) and `weights` (b, G, N), signed: for smooth phi,
    `sum(phi(a_i) for i in group g) ~ sum(weights[:, g] * phi(nodes))`, for polynomials of degree < N to the
    precision of the pass. `sums` (b, G) of the groups and `largest` (b,) magnitude of a row are exact.
    """

    nodes: Tensor
    weights: Tensor
    sums: Tensor
    largest: Tensor

    def total(self, function: Callable[[Tensor], Tensor]) -> Tensor:
        """(b,) sum of `function` over all n values of each row, approximately."""
        return (self.weights.sum(1) * function(self.nodes)).sum(1)


def compress(values: Tensor, sizes: list[int], nodes: int = 16, precision: torch.dtype = torch.float32) -> Compressed:
    """Compress `values` (b, n), in adjacent groups of `sizes` columns, to `nodes` Chebyshev nodes a row.

    One pass over the values, in `precision`; independent of the noise level, so it is shared by all of them.
    """
    steps = torch.arange(nodes, dtype=values.dtype, device=values.device)
    angle = math.pi * (steps + 0.5) / nodes
    transform = torch.cos(steps[:, None] * angle) * (2 / nodes)
    transform[0] /= 2
    # T_{k+1} = 2 x T_k - T_{k-1}: with the signs + + - - of S_k every step is S_{k+1} = S_{k-1} +- 2 x S_k, in place
    signs = torch.tensor([1.0, 1.0, -1.0, -1.0], dtype=values.dtype, device=values.device).repeat(nodes // 4 + 1)
    counts = torch.tensor(sizes, dtype=precision, device=values.device)

    def part(rows: slice) -> tuple[Tensor, ...]:
        chunk = values[rows]
        low, high = chunk.amin(1, keepdim=True), chunk.amax(1, keepdim=True)
        sums = group_sums(chunk, sizes)
        centre, half = (low + high) / 2, ((high - low) / 2).clamp_min(1e-300)
        x = chunk.sub(centre).div_(half).to(precision)
        previous, current, twice = torch.ones_like(x), x, x + x
        moments = [counts.expand(len(x), -1)]
        for k in range(1, nodes):
            moments.append(group_sums(current, sizes))
            if k + 1 < nodes:
                previous.addcmul_(twice, current, value=-1.0 if k % 2 else 1.0)
                previous, current = current, previous
        weights = (torch.stack(moments, -1).to(values.dtype) * signs[:nodes]) @ transform
        largest = torch.maximum(-low, high).squeeze(1)
        return centre + half * torch.cos(angle), weights, sums, largest

    return Compressed(*by_rows(part, values))


def log_products(factors: Tensor, sizes: list[int], span: float) -> tuple[Tensor, Tensor]:
    """(b, G) sums of log(factors) over adjacent groups of columns, and the same of their rounding errors.

    factors: (b, n), positive, each within e^-span and e^span; overwritten. A logarithm is taken of products of
    several factors, as many as cannot overflow, which costs a multiplication a factor instead of a logarithm.
    """
    # up to 2^(levels + 1) factors meet where the numbers of columns are odd
    levels = min(4, max(0, int(math.log2(max(300.0 / max(span, 1e-3), 1.0)))))
    eps = torch.finfo(factors.dtype).eps
    sums, errors = [], []
    for group in factors.split(sizes, 1):
        n = group.shape[1]
        for _ in range(levels):
            if group.shape[1] < 2:
                break
            half = group.shape[1] // 2
            left_over = group[:, 2 * half :]
            group = group[:, :half].mul_(group[:, half : 2 * half])
            if left_over.shape[1]:
                group[:, :1] *= left_over
        logs = group.log_()
        sums.append(logs.sum(1))
        # each product is off by eps a factor, each logarithm by eps of itself, and the sum by eps an addition
        errors.append(eps * (n + (logs.shape[1] + 4) * logs.abs_().sum(1)))
    return torch.stack(sums, 1), torch.stack(errors, 1)
