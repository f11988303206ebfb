"""Confidence bounds on a probability from counts: float64, rounded to the safe side."""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betaincinv

_ROUNDING = 1e-12  # relative; above the error of the inverse incomplete beta function


def clopper_pearson_lower(successes: ArrayLike, trials: ArrayLike, alpha: float) -> NDArray[np.float64] | np.float64:
    """Lower bound on a success probability that holds with probability at least 1 - alpha; arrays broadcast.

    The alpha-quantile of Beta(successes, trials - successes + 1), 0 for no success. Source: Clopper and Pearson,
    Biometrika 26 (1934). Raises ValueError unless 0 <= successes <= trials, trials > 0 and 0 < alpha < 1.
    """
    k, n = np.broadcast_arrays(np.asarray(successes, float), np.asarray(trials, float))
    if not 0 < alpha < 1 or (k < 0).any() or (k > n).any() or (n <= 0).any():
        raise ValueError("counts must satisfy 0 <= successes <= trials, trials > 0, and alpha lie in (0, 1)")
    bound = np.where(k > 0, betaincinv(np.maximum(k, 1.0), n - k + 1, alpha), 0.0)
    # alpha^(1/n) for n of n, where the inverse is least accurate
    return np.where((k == n), alpha ** (1 / n), bound)[()] * (1 - _ROUNDING)


def clopper_pearson_upper(successes: ArrayLike, trials: ArrayLike, alpha: float) -> NDArray[np.float64] | np.float64:
    """Upper counterpart of `clopper_pearson_lower`, by symmetry."""
    failures = np.subtract(np.asarray(trials, float), successes)
    return 1 - clopper_pearson_lower(failures, trials, alpha)
