import numpy as np
import pytest
import torch
from scipy.special import ndtr

from robustrun.methods.smoothing import (
    Gaussian,
    certified_accuracy,
    certify,
    certify_adaptive,
    looks,
    spending,
)
from tests.methods.smoothing.test_gaussian import Ballot

SIGMA = 0.5
GRID = np.array([0.25, 0.5, 0.75, 1.0])


def halfspace(m, runs, seed=0):
    p = ndtr(np.broadcast_to(m, runs) / SIGMA)
    return Ballot(np.stack([p, 1 - p], 1), seed)


def test_looks_end_at_n_and_levels_add_up_to_alpha():
    for n in (1, 10, 49, 50, 51, 100, 997, 10_000):
        plan = looks(n)
        assert plan[-1] == n
        assert plan[0] >= 1
        assert (np.diff(plan) > 0).all()
        assert spending(len(plan), 0.001).sum() == pytest.approx(0.001)
        assert (spending(len(plan), 0.001) > 0).all()


@pytest.mark.parametrize("m", [0.25, 0.5, 0.01])
def test_stopping_early_does_not_raise_the_failure_probability(m):
    """The true radius is just below a grid point (or any value): certifying more has at most probability alpha."""
    runs, alpha = 4000, 0.05
    found = certify_adaptive(halfspace(m - 1e-9, runs), runs, Gaussian(SIGMA), radii=GRID, n=2000, alpha=alpha)
    assert (found.radius > m).mean() <= alpha + 3 * np.sqrt(alpha * (1 - alpha) / runs)


def test_peeking_at_plain_bounds_would_not_be_valid():
    """What the test above guards against: the level of every look at alpha fails far more often."""
    generator = np.random.default_rng(0)
    steps = generator.random((4000, 2000)) < 0.5
    counts = steps.cumsum(1)[:, looks(2000) - 1]
    from robustrun.methods.smoothing import clopper_pearson_lower

    plain = clopper_pearson_lower(counts, looks(2000), 0.05).max(1)
    levels = spending(len(looks(2000)), 0.05)
    spent = np.stack([clopper_pearson_lower(c, d, a) for c, d, a in zip(counts.T, looks(2000), levels, strict=True)])
    assert (plain > 0.5).mean() > 0.07
    assert (spent.max(0) > 0.5).mean() <= 0.05


def test_a_third_of_the_draws_at_equal_certified_accuracy():
    runs = 600
    margins = np.random.default_rng(2).exponential(0.4, runs) - 0.1
    plain, adaptive = halfspace(margins, runs, 1), halfspace(margins, runs, 1)
    fixed = certify(plain, runs, Gaussian(SIGMA), n=10_000)
    early = certify_adaptive(adaptive, runs, Gaussian(SIGMA), radii=GRID, n=10_000)
    assert adaptive.drawn * 3 < plain.drawn
    at = np.append(0.0, GRID)
    difference = certified_accuracy(fixed.prediction == 0, fixed.radius, at) - certified_accuracy(
        early.prediction == 0, early.radius, at
    )
    assert np.abs(difference).max() <= 0.015
    assert (early.trials <= 10_000).all()


def test_decided_examples_leave_and_undecided_go_on():
    votes = halfspace(np.array([-1.0, 0.8, 0.535]), 3)
    found = certify_adaptive(votes, 3, Gaussian(SIGMA), radii=[0.5], n=5000, labels=torch.tensor([0, 0, 0]))
    assert found.trials[0] == 0, "its guess is wrong"
    assert found.trials[1] < found.trials[2] <= 5000
