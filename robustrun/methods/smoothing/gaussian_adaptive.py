r"""CERTIFY that stops sampling an example once its certificate on a grid of radii is decided.

Looks are taken after fixed numbers of draws $n_1 < ... < n_K = n$, and each look's Clopper-Pearson bound has its own
level $\alpha_k$ with $\sum_k \alpha_k = \alpha$. By the union bound all K lower bounds hold together with probability
$1 - \alpha$, so their maximum is a lower bound at whatever look one stops, for whatever reason. That is Bonferroni's
form of alpha spending in group-sequential tests (Lan and DeMets, Biometrika 1983). Half of alpha is kept for the last
look, so that radii lose little against the full number of draws.

An example is decided at radius r if the lower bound certifies r, or if r is hopeless: the last look would not certify
it even if all draws to come succeeded at the rate of an upper bound of level `futility`. A radius given up wrongly
costs that radius, never soundness.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from robustrun.methods.smoothing.binomial import clopper_pearson_lower, clopper_pearson_upper
from robustrun.methods.smoothing.gaussian import SmoothedCertificate, conclude, count_of, select, worth
from robustrun.methods.smoothing.gaussian_noise import Noise, Norm
from robustrun.methods.smoothing.gaussian_votes import Votes


def looks(n: int, first: int = 50, growth: float = 1.3) -> NDArray[np.int64]:
    """Numbers of draws (L,) at which to look: geometric, from about `first` up to `n` exactly."""
    count = max(0, int(np.log(n / first) / np.log(growth))) if n > first else 0
    return np.unique(np.ceil(n / growth ** np.arange(count, -1, -1)).astype(np.int64))


def spending(count: int, alpha: float) -> NDArray[np.float64]:
    """The levels (count,) of the looks: half of alpha for the last, the rest in equal parts; their sum is alpha."""
    if count == 1:
        return np.array([alpha])
    return np.append(np.full(count - 1, alpha / 2 / (count - 1)), alpha / 2)


def certify_adaptive(
    votes: Votes,
    examples: int,
    noise: Noise,
    *,
    radii: ArrayLike,
    n0: int = 100,
    n: int = 10_000,
    alpha: float = 0.001,
    norm: Norm = "l2",
    dimension: int = 1,
    labels: Tensor | None = None,
    futility: float = 0.01,
) -> SmoothedCertificate:
    """As `certify`, with at most `n` estimation draws an example and mostly far fewer.

    The statement is the same: with probability at least 1 - `alpha` an example's answer holds within its radius.
    `radii` (R,) is the grid on which certified accuracy will be read off; 0, the bare answer, always belongs to it.
    """
    guess = select(votes, examples, n0)
    needed = np.unique(np.append(noise.probability(np.asarray(radii, float), norm, dimension), 0.5))
    plan = looks(n)
    successes, trials = (np.zeros(examples, dtype=np.int64) for _ in range(2))
    p_lower = np.zeros(examples)
    open_ = np.flatnonzero(worth(guess, labels))
    for draws, level in zip(plan, spending(len(plan), alpha), strict=True):
        done = int(trials[open_[0]]) if len(open_) else draws
        successes[open_] += count_of(votes, open_, guess, n0 + done, int(draws) - done)
        trials[open_] = draws
        bound = clopper_pearson_lower(successes[open_], draws, level)
        p_lower[open_] = np.maximum(p_lower[open_], bound)
        hope = _last_bound(successes[open_], draws, n, alpha / 2, futility)
        next_ = np.append(needed, np.inf)[np.searchsorted(needed, p_lower[open_], side="right")]
        open_ = open_[hope >= next_]
        if not len(open_):
            break
    return conclude(guess, successes, trials, p_lower, noise, norm, dimension)


def _last_bound(successes: NDArray[np.int64], draws: int, n: int, level: float, futility: float) -> NDArray[np.float64]:
    """What the last look's bound can be hoped to be: if the draws to come succeed at the upper confidence bound."""
    upper = clopper_pearson_upper(successes, draws, futility)
    return np.asarray(clopper_pearson_lower(successes + (n - draws) * upper, n, level))
