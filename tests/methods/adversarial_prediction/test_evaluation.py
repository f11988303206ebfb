"""Bootstrap intervals, thresholds and precision at a recall, against direct computations."""

import numpy as np
import pytest
from sklearn.metrics import f1_score, precision_recall_curve

from robustrun.methods.adversarial_prediction import (
    bootstrap_interval,
    f1,
    f2,
    paired_interval,
    parse_metric,
    precision,
    precision_at_recall,
    recall,
    threshold_curve,
    tuned_threshold,
)


def _problem(n=400, seed=0):
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < 0.25).astype(int)
    return np.round(rng.normal(size=n) + labels, 1), labels  # rounded: with ties


def test_the_bootstrap_is_that_of_the_examples():
    scores, labels = _problem()
    guess = (scores > 0.5).astype(int)
    found = bootstrap_interval(f1(), guess, labels, np.random.default_rng(0), resamples=4000)
    rng = np.random.default_rng(1)
    direct = [f1_score(labels[rows], guess[rows]) for rows in rng.integers(0, 400, size=(600, 400))]
    assert found.value == pytest.approx(f1_score(labels, guess))
    assert (found.low, found.high) == pytest.approx(np.quantile(direct, [0.025, 0.975]), abs=0.02)


def test_the_interval_covers():
    """95 % intervals of a proportion cover it about 95 times in 100."""
    rng, hits = np.random.default_rng(2), 0
    for _ in range(300):
        guess, labels = np.ones(200, int), (rng.random(200) < 0.3).astype(int)
        _, low, high = bootstrap_interval(precision(), guess, labels, rng, resamples=400)
        hits += low <= 0.3 <= high
    assert 0.9 < hits / 300 < 0.99


def test_a_paired_interval_is_narrower_than_two_alone():
    scores, labels = _problem(1000)
    one, other = (scores > 0.5).astype(int), (scores > 0.7).astype(int)
    rng = np.random.default_rng(0)
    value, low, high = paired_interval(f2(), one, other, labels, rng)
    assert value == pytest.approx(f2()(one, labels) - f2()(other, labels))
    assert low < value < high
    alone = bootstrap_interval(f2(), one, labels, rng)
    assert high - low < alone.high - alone.low
    assert paired_interval(f2(), one, one, labels, rng) == (0.0, 0.0, 0.0)


def test_threshold_curve_and_the_best_threshold():
    scores, labels = _problem()
    thresholds = np.linspace(-3, 4, 71)
    curve = threshold_curve(f2(), scores, labels, thresholds)
    np.testing.assert_allclose(curve, [f2()((scores >= t).astype(int), labels) for t in thresholds])
    best = tuned_threshold(f2(), scores, labels)
    assert threshold_curve(f2(), scores, labels, [best])[0] >= curve.max() - 0.01


def test_a_tuned_threshold_meets_the_constraints():
    scores, labels = _problem()
    metric = parse_metric("precision st recall >= 0.8")
    guess = (scores >= tuned_threshold(metric, scores, labels)).astype(int)
    assert recall()(guess, labels) >= 0.8
    unconstrained = (scores >= tuned_threshold(precision(), scores, labels)).astype(int)
    assert precision()(unconstrained, labels) >= precision()(guess, labels)


def test_precision_at_recall_is_the_first_point_of_the_curve():
    scores, labels = _problem()
    precisions, recalls, _ = precision_recall_curve(labels, scores)
    for wanted in (0.3, 0.6, 0.8, 1.0):
        expected = precisions[np.flatnonzero(recalls >= wanted - 1e-12)[-1]]
        found = precision_at_recall(scores, labels, wanted, np.random.default_rng(0))
        assert found.value == pytest.approx(expected)
        assert found.low <= found.value <= found.high
