"""CERTIFY and PREDICT of randomized smoothing, for a batch of examples at once.

Source: Cohen, Rosenfeld and Kolter, "Certified adversarial robustness via randomized smoothing" (ICML 2019), for any
law of noise that knows its radius.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import betainc
from torch import Tensor

from robustrun.methods.smoothing.binomial import clopper_pearson_lower
from robustrun.methods.smoothing.gaussian_noise import Noise, Norm
from robustrun.methods.smoothing.gaussian_votes import Votes

ABSTAIN = -1


@dataclass(frozen=True)
class SmoothedCertificate:
    """One entry an example, int64 and float64 arrays (B,).

    Attributes:
        prediction: the certified class, or -1 for abstention.
        radius: the certified radius, 0 where abstaining.
        guess: the class that the selection draws chose.
        successes, trials: votes for the guess among the estimation draws.
        p_lower: lower confidence bound on the probability of the guess.
    """

    prediction: NDArray[np.int64]
    radius: NDArray[np.float64]
    guess: NDArray[np.int64]
    successes: NDArray[np.int64]
    trials: NDArray[np.int64]
    p_lower: NDArray[np.float64]


def certify(
    votes: Votes,
    examples: int,
    noise: Noise,
    *,
    n0: int = 100,
    n: int = 10_000,
    alpha: float = 0.001,
    norm: Norm = "l2",
    dimension: int = 1,
    labels: Tensor | None = None,
) -> SmoothedCertificate:
    """CERTIFY: with probability at least 1 - `alpha` an example's answer holds in the open ball of its radius.

    Draws 0 ... n0 - 1 choose a class (the lowest index on a tie), the `n` fresh ones after them bound its
    probability from below (one-sided Clopper-Pearson).

    Args:
        votes: see `Votes`.
        examples: how many there are.
        noise, norm, dimension: the law of the noise; the norm of the radius and the number of input coordinates.
        labels: (B,) if given, an example whose guess is another class abstains without estimation draws: that
            cannot change certified accuracy, and saves its cost.
    """
    guess = select(votes, examples, n0)
    trials = np.where(worth(guess, labels), n, 0)
    rows = np.flatnonzero(trials)
    successes = np.zeros(examples, dtype=np.int64)
    successes[rows] = count_of(votes, rows, guess, n0, n)
    p_lower = np.zeros(examples)
    p_lower[rows] = clopper_pearson_lower(successes[rows], n, alpha)
    return conclude(guess, successes, trials, p_lower, noise, norm, dimension)


def predict(votes: Votes, examples: int, *, n: int = 10_000, alpha: float = 0.001) -> NDArray[np.int64]:
    """PREDICT: the smoothed classifier's class (B,), or -1; wrong with probability at most `alpha` an example.

    Exact two-sided binomial test of the two largest counts (Hung and Fithian, 2019, for its validity). Votes for no
    class count as one more class, which never wins.
    """
    counts = votes(torch.arange(examples), 0, n).cpu().numpy()
    best = counts.argmax(1)
    most = counts[np.arange(examples), best]
    np.put_along_axis(counts, best[:, None], n - counts.sum(1, keepdims=True), axis=1)  # the votes for no class
    answered = top_two_pvalue(most, counts.max(1)) <= alpha
    return np.where(answered & (most > counts.max(1)), best, ABSTAIN)


def top_two_pvalue(most: NDArray[np.int64], second: NDArray[np.int64]) -> NDArray[np.float64]:
    """Two-sided p-value of `most` against `second` successes under a fair coin; arrays broadcast."""
    k, n = np.broadcast_arrays(np.maximum(most, second), np.add(most, second))
    # P(X >= k) = I_{1/2}(k, n - k + 1)
    return np.minimum(1.0, 2 * betainc(np.maximum(k, 1.0), n - k + 1.0, 0.5)) * (k > 0) + (k == 0)


def select(votes: Votes, examples: int, n0: int) -> NDArray[np.int64]:
    """The class that most of the first `n0` draws chose, the lowest index on a tie (B,)."""
    return votes(torch.arange(examples), 0, n0).cpu().numpy().argmax(1)


def count_of(votes: Votes, rows: NDArray[np.int64], guess: NDArray[np.int64], first: int, count: int) -> NDArray:
    """Votes (R,) for the guess among the draws `first` ... `first + count - 1` of the examples at `rows` (R,)."""
    if not len(rows) or not count:
        return np.zeros(len(rows), dtype=np.int64)
    counts = votes(torch.from_numpy(rows), first, count).cpu().numpy()
    return counts[np.arange(len(rows)), guess[rows]]


def conclude(
    guess: NDArray[np.int64],
    successes: NDArray[np.int64],
    trials: NDArray[np.int64],
    p_lower: NDArray[np.float64],
    noise: Noise,
    norm: Norm,
    dimension: int,
) -> SmoothedCertificate:
    """Answer where the bound reaches 1/2, abstain elsewhere; all arrays (B,)."""
    answered = p_lower >= 0.5
    radius = np.where(answered, noise.radius(p_lower, norm, dimension), 0.0)
    return SmoothedCertificate(np.where(answered, guess, ABSTAIN), radius, guess, successes, trials, p_lower)


def worth(guess: NDArray[np.int64], labels: Tensor | None) -> NDArray[np.bool_]:
    """(B,) bool: whether estimation draws can still change certified accuracy; not where the guess is wrong already."""
    return np.ones(len(guess), dtype=bool) if labels is None else guess == labels.cpu().numpy()
