"""Radii from vote bounds: tabulated thresholds, inversion at the boundary, counts."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import binom

from robustrun.methods.smoothing import (
    clopper_pearson_lower,
    clopper_pearson_upper,
    flip_divergence,
    kl_radius,
    kl_thresholds,
    np_radius,
    np_thresholds,
)

TABLE = {
    (0.1, 2): {1: -2.89037, 2: -5.08760, 5: -11.67927, 10: -19.43809, 50: -90.53327, 100: -178.76697},
    (0.3, 2): {1: -1.54045, 5: -3.55580, 10: -5.19489, 50: -19.48229},
    (0.5, 10): {1: -2.890, 5: -6.731, 10: -12.487, 50: -51.768},
    (0.85, 10): {1: -0.811, 5: -1.145, 10: -1.446, 50: -2.894},
}


@pytest.mark.parametrize(("q", "classes"), TABLE)
def test_thresholds(q, classes):
    thresholds = np_thresholds(q, 100, classes=classes)
    assert (thresholds.diff() < 0).all()
    for r, expected in TABLE[q, classes].items():
        assert thresholds[r - 1].item() == pytest.approx(expected, abs=1e-5 if classes == 2 else 5e-4)


KL_TABLE = {
    0.1: {1: -4.89434, 2: -8.41719, 5: -18.96409, 10: -36.54189},
    0.3: {1: -1.90257, 5: -4.76694, 10: -8.16439, 50: -35.27821},
}


@pytest.mark.parametrize("q", KL_TABLE)
def test_kl_thresholds_are_where_its_radius_steps(q):
    thresholds = kl_thresholds(q, 100)
    for r, expected in KL_TABLE[q].items():
        assert thresholds[r - 1].item() == pytest.approx(expected, abs=1e-5)
    flips = torch.arange(1, 101)
    assert torch.equal(kl_radius(thresholds - 1e-9, q, 1000), flips)
    assert torch.equal(kl_radius(thresholds + 1e-9, q, 1000), flips - 1)
    assert (np_thresholds(q, 100) > thresholds).all()  # the tighter bound asks for less


@pytest.mark.parametrize("q", [0.05, 0.1, 0.3, 0.49])
def test_first_threshold_has_a_closed_form(q):
    assert np_thresholds(q, 1)[0].exp().item() == pytest.approx(q / (2 * (1 - q)), abs=1e-12)


@pytest.mark.parametrize("q", [0.1, 0.3, 0.45])
def test_thresholds_against_the_binomial_law(q):
    for r, ours in enumerate(np_thresholds(q, 60).tolist(), start=1):
        s = np.arange(r + 1)
        s0 = int(np.flatnonzero(binom.sf(s - 1, r, q) >= 0.5)[-1])
        gamma = (0.5 - binom.sf(s0, r, q)) / binom.pmf(s0, r, q)
        direct = binom.cdf(s0 - 1, r, 1 - q) + (1 - gamma) * binom.pmf(s0, r, 1 - q)
        assert ours == pytest.approx(math.log(direct), abs=1e-7)
        assert ours <= math.log(direct) + 1e-9


def test_kl_radius_at_its_own_thresholds():
    for q, expected in (
        (0.1, {1: -4.89434, 2: -8.41719, 5: -18.96409, 10: -36.54189}),
        (0.3, {1: -1.90257, 5: -4.76694, 10: -8.16439, 50: -35.27821}),
    ):
        for r, at in expected.items():
            nats = r * flip_divergence(q)
            # 4 B (1 - B) = e^(-2 nats)
            bound = math.log(-math.expm1(0.5 * math.log1p(-math.exp(-2 * nats))) / 2)
            assert bound == pytest.approx(at, abs=1e-5)
            below, above = (
                kl_radius(torch.tensor([bound + d], dtype=torch.float64), q, 10**6).item() for d in (-1e-8, 1e-8)
            )
            assert (below, above) == (r, r - 1)


def test_np_radius_at_its_own_thresholds():
    thresholds = np_thresholds(0.2, 40)
    assert np_radius(thresholds - 1e-9, 0.2, 40).tolist() == list(range(1, 41))
    assert np_radius(thresholds + 1e-9, 0.2, 40).tolist() == list(range(40))
    assert np_radius(thresholds, 0.2, 40).tolist() == list(range(40))  # the guarantee is strict


@pytest.mark.parametrize("radius", [kl_radius, np_radius])
def test_limits(radius):
    bounds = torch.tensor([math.log(0.5), 0.0, 3.0, math.inf, -math.inf, -1e6], dtype=torch.float64)
    assert radius(bounds, 0.1, 50).tolist() == [0, 0, 0, 0, 50, 50]
    bounds = torch.linspace(-300, 0, 200, dtype=torch.float64)
    assert (kl_radius(bounds, 0.1, 999) <= np_radius(bounds, 0.1, 999)).all()


def test_divergence():
    assert flip_divergence(0.1) == pytest.approx(0.8 * math.log(9), rel=1e-15)
    assert flip_divergence(0.3, 2) == flip_divergence(0.3)
    for q, classes in ((0.5, 2), (0.0, 2), (0.9, 10), (0.1, 1)):
        with pytest.raises(ValueError, match="q must lie"):
            flip_divergence(q, classes)


def test_clopper_pearson():
    counts = np.arange(0, 101)
    lower, upper = clopper_pearson_lower(counts, 100, 0.001), clopper_pearson_upper(counts, 100, 0.001)
    assert lower[0] == 0
    assert upper[100] == 1
    assert lower[100] == pytest.approx(0.001**0.01, rel=1e-11)
    for k in (1, 37, 66, 99):
        assert binom.sf(k - 1, 100, lower[k]) == pytest.approx(0.001, rel=1e-9)
        assert binom.sf(k - 1, 100, lower[k]) <= 0.001
    smallest = {50: 37, 100: 66, 500: 286, 1000: 550, 10_000: 5156, 100_000: 50_490}
    for trials, k in smallest.items():
        assert clopper_pearson_lower(k, trials, 0.001) > 0.5 >= clopper_pearson_lower(k - 1, trials, 0.001)
    for bad in ((-1, 10), (11, 10), (0, 0)):
        with pytest.raises(ValueError, match="counts"):
            clopper_pearson_lower(*bad, 0.1)
