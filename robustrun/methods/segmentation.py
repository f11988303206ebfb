"""Labels for every pixel: the loss, the confusion matrix and what is read off it, and prediction of whole images."""

import itertools
import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def pixel_cross_entropy(
    logits: Tensor, targets: Tensor, *, weights: Tensor | None = None, ignore_index: int = 255
) -> Tensor:
    """Mean cross-entropy over the pixels that count, each weighted by its label's weight; 0 if none counts.

    Args:
        logits: (B, classes, H, W).
        targets: (B, H, W) int64; pixels of label `ignore_index` do not count.
        weights: (classes,).
    """
    total = F.cross_entropy(logits, targets, weight=weights, ignore_index=ignore_index, reduction="sum")
    counted = targets != ignore_index
    if weights is None:
        return total / counted.sum().clamp_min(1)
    # The smallest normal number only keeps 0 / 0 away.
    scale = (weights[targets.where(counted, 0)] * counted).sum()
    return total / scale.clamp_min(torch.finfo(total.dtype).tiny)


def confusion_matrix(predicted: Tensor, targets: Tensor, classes: int, ignore_index: int = 255) -> Tensor:
    """(B, classes, classes) int64: how many pixels of each image have the label (row) and the prediction (column).

    Args:
        predicted: (B, H, W) int64 below `classes`.
        targets: (B, H, W) int64 below `classes`, or `ignore_index`.
    """
    first = torch.arange(len(targets), device=targets.device).view(-1, 1, 1) * classes
    cells = (first + targets) * classes + predicted
    counts = torch.bincount(cells[targets != ignore_index], minlength=len(targets) * classes**2)
    return counts.view(-1, classes, classes)


def intersection_over_union(confusion: Tensor) -> Tensor:
    """(..., classes) float64 of confusion matrices (..., classes, classes); 0 for a class that never occurs."""
    hit = confusion.diagonal(dim1=-2, dim2=-1)
    union = confusion.sum(-1) + confusion.sum(-2) - hit
    return hit.double() / union.clamp_min(1)


def recall(confusion: Tensor) -> Tensor:
    """(..., classes) float64: the fraction of a class' pixels that is found; 0 for a class that never occurs."""
    return confusion.diagonal(dim1=-2, dim2=-1).double() / confusion.sum(-1).clamp_min(1)


def segment(
    model: Callable[[Tensor], Tensor],
    images: Tensor,
    *,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    window: tuple[int, int] | None = None,
) -> Tensor:
    """What a model gives for whole images, (B, classes, H, W): logits, or the mean of probabilities over several looks.

    Args:
        model: (B, C, h, w) to logits (B, classes, h, w).
        images: (B, C, H, W).
        scales: the image is also looked at in these sizes (sides rounded to multiples of 32).
        flip: and mirrored.
        window: (h, w) of a window that slides over the image in steps of two thirds of its size; None: all at once.
    """
    if tuple(scales) == (1.0,) and not flip and window is None:
        return model(images).float()
    looks = itertools.product(scales, (False, True) if flip else (False,))
    total = sum(_look(model, images, scale, mirrored, window) for scale, mirrored in looks)
    return total / (len(scales) * (2 if flip else 1))


def _look(model: Callable, images: Tensor, scale: float, mirrored: bool, window: tuple[int, int] | None) -> Tensor:
    size = images.shape[-2:]
    if scale != 1:
        images = _resized(images, [max(32, 32 * round(side * scale / 32)) for side in size])
    if mirrored:
        images = images.flip(-1)
    probabilities = _slide(model, images, window) if window else model(images).float().softmax(1)
    return _resized(probabilities.flip(-1) if mirrored else probabilities, size)


def _slide(model: Callable, images: Tensor, window: tuple[int, int]) -> Tensor:
    height, width = images.shape[-2:]
    h, w = min(window[0], height), min(window[1], width)
    total, looks = 0.0, images.new_zeros(height, width)
    for top, left in itertools.product(_starts(height, h), _starts(width, w)):
        here = (..., slice(top, top + h), slice(left, left + w))
        probabilities = model(images[here].contiguous()).float().softmax(1)
        if not isinstance(total, Tensor):
            total = probabilities.new_zeros(*probabilities.shape[:2], height, width)
        total[here] += probabilities
        looks[here] += 1
    return total / looks


def _starts(length: int, window: int) -> list[int]:
    """Where windows begin: evenly spread, at most two thirds of a window apart, the last at the end."""
    steps = math.ceil((length - window) / max(1, 2 * window // 3))
    return [round(i * (length - window) / steps) for i in range(steps + 1)] if steps else [0]


def _resized(images: Tensor, size: Sequence[int]) -> Tensor:
    if tuple(images.shape[-2:]) == tuple(size):
        return images
    return F.interpolate(images, tuple(size), mode="bilinear", align_corners=False)
