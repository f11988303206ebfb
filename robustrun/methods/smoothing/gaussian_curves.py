"""Certified accuracy as a function of the radius, and the best of several models at each radius."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray


def certified_accuracy(correct: ArrayLike, radius: ArrayLike, at: ArrayLike) -> NDArray[np.float64]:
    """Fraction of examples that are answered correctly with a certified radius of at least `at` (R,)."""
    correct, radius, at = np.asarray(correct, bool), np.asarray(radius, float), np.asarray(at, float)
    return (correct & (radius >= at[..., None])).mean(-1)


def upper_envelope(
    models: Sequence[tuple[ArrayLike, ArrayLike]], at: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Of several models' (correct, radius), the most accurate at each radius: how published tables choose.

    Returns:
        (standard accuracy, certified accuracy, which model), one entry a radius; the standard accuracy is certified
        accuracy at radius 0, and decides among equals.
    """
    certified = np.stack([certified_accuracy(correct, radius, at) for correct, radius in models])
    standard = np.array([np.mean(np.asarray(correct, bool)) for correct, _ in models])
    best = np.lexsort((np.broadcast_to(standard[:, None], certified.shape), certified), axis=0)[-1]
    return standard[best], certified[best, np.arange(certified.shape[1])], best


def to_three_digits(radius: ArrayLike) -> NDArray[np.float64]:
    """Radii, elementwise, as arXiv 2003.01908 logged them before thresholding: 0.7996 passes 0.8. No claim."""
    radius = np.asarray(radius, float)
    scale = 10.0 ** (2 - np.floor(np.log10(np.where(radius > 0, radius, 1.0))))
    return np.round(radius * scale) / scale
