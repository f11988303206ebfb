"""Binary certificates: closed forms, every labelling of a dozen labels, derivatives, degenerate rows."""

import itertools
import math

import pytest
import torch

from robustrun.methods.smoothing import (
    LogMoment,
    RidgeHat,
    all_labellings,
    binary_vote,
    certify_binary,
    compress,
    enumerated_radius,
    enumerated_votes,
    exact_flips,
    group_by_label,
    kl_radius,
    minimise,
    np_radius,
    sampled_votes,
)
from robustrun.methods.smoothing.label_compress import log_products

torch.set_num_threads(1)


def problem(n, seed=0, queries=6, k=3):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, k, generator=g, dtype=torch.float64)
    y = (x[:, 0] + 0.5 * torch.randn(n, generator=g, dtype=torch.float64) > 0).long()
    return x, y, torch.randn(queries, k, generator=g, dtype=torch.float64)


def alphas(n, seed=0, intercept=True, regularisation=1.0):
    x, y, t = problem(n, seed)
    hat = RidgeHat.fit(x, intercept=intercept)
    return hat.alpha(hat.weights(t, regularisation)), y


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize(("n", "k"), [(30, 3), (8, 20)])
def test_alpha_is_the_ridge_prediction(intercept, n, k):
    x, y, t = problem(n, k=k)
    hat = RidgeHat.fit(x, intercept=intercept)
    alpha = hat.alpha(hat.weights(t, 0.7))
    mean, centre = (
        (x.mean(0), y.double().mean())
        if intercept
        else (torch.zeros(k, dtype=torch.float64), torch.tensor(0.0, dtype=torch.float64))
    )
    xc = x - mean
    w = torch.linalg.solve(xc.T @ xc + 0.7 * torch.eye(k, dtype=torch.float64), xc.T @ (y - centre))
    torch.testing.assert_close(alpha @ y.double(), (t - mean) @ w + centre, atol=1e-9, rtol=0)
    if intercept:
        torch.testing.assert_close(alpha.sum(1), torch.ones(len(t), dtype=torch.float64), atol=1e-9, rtol=0)


@pytest.mark.parametrize(("q", "seed", "intercept"), list(itertools.product([0.1, 0.3, 0.45], [0, 1], [True, False])))
def test_never_above_the_truth_over_all_labellings(q, seed, intercept):
    n = 10
    alpha, y = alphas(n, seed, intercept)
    alpha = torch.cat([alpha, torch.full((1, n), 1 / n, dtype=torch.float64)])
    vote = binary_vote(alpha, y, q)
    own = int((all_labellings(n) == y).all(1).nonzero())
    for row, a in enumerate(alpha):
        votes = enumerated_votes((all_labellings(n).double() @ a >= 0.5).long(), n, q)
        minority = votes[own].amin()
        assert vote.log_bound[row] >= minority.log() - 1e-9 or vote.log_bound[row] >= math.log(0.5)
        if vote.log_bound[row] < math.log(0.5):
            assert vote.prediction[row] == votes[own].argmax()
        truth = enumerated_radius(votes.argmax(1), y)
        exact = minority.log()[None]
        radii = [kl_radius(vote.log_bound[row : row + 1], q, n), kl_radius(exact, q, n), np_radius(exact, q, n)]
        assert radii[0] <= radii[1] <= radii[2] <= truth


def test_soundness_is_tested_on_certificates_that_are_not_zero():
    n, q = 12, 0.1
    y, a = torch.ones(n, dtype=torch.long), torch.full((1, n), 1 / n, dtype=torch.float64)
    vote = binary_vote(a, y, q)
    votes = enumerated_votes((all_labellings(n).double() @ a[0] >= 0.5 - 1e-12).long(), n, q)
    truth = enumerated_radius(votes.argmax(1), y)
    assert 1 <= int(kl_radius(vote.log_bound, q, n)) <= int(np_radius(vote.log_bound, q, n)) <= truth < n


def test_derivatives_of_k():
    alpha, y = alphas(20)
    q, t = 0.2, torch.linspace(-3, 5, 6, dtype=torch.float64, requires_grad=True)
    p = q + (1 - 2 * q) * y.double()
    plain = t / 2 + torch.log1p(p * torch.expm1(-t[:, None] * alpha)).sum(1)
    (first,) = torch.autograd.grad(plain.sum(), t, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), t)
    k = LogMoment(alpha, p, slope=0.5)
    value, d1, d2 = k(t.detach())
    torch.testing.assert_close(value, plain.detach(), atol=1e-10, rtol=0)
    assert (value >= plain.detach() - 1e-15).all()
    torch.testing.assert_close(d1, first.detach(), atol=1e-9, rtol=0)
    torch.testing.assert_close(d2, second, atol=1e-9, rtol=0)
    assert (d2 > 0).all()
    zero, slope, _ = k(torch.zeros(6, dtype=torch.float64))
    torch.testing.assert_close(zero, torch.zeros(6, dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close(slope, 0.5 - alpha @ p, atol=1e-12, rtol=0)


@pytest.mark.parametrize("q", [0.45, 0.3, 0.1, 1e-3, 1e-6])
def test_no_t_is_better(q):
    alpha, y = alphas(200, regularisation=30.0)
    vote = binary_vote(alpha, y, q, tolerance=1e-10)
    k = LogMoment(alpha, q + (1 - 2 * q) * y.double(), slope=0.5)
    for factor in torch.logspace(-2, 1, 100, dtype=torch.float64):
        assert (vote.log_bound <= k(vote.t * factor)[0] + 1e-8).all()


@pytest.mark.parametrize("q", [0.05, 0.1, 0.3, 0.45])
def test_equal_weights_have_a_closed_form(q):
    n = 500
    vote = binary_vote(
        torch.full((1, n), 1 / n, dtype=torch.float64), torch.ones(n, dtype=torch.long), q, tolerance=1e-16
    )
    assert vote.prediction.item() == 1
    assert vote.t.item() == pytest.approx(n * math.log((1 - q) / q), rel=1e-8)
    assert vote.log_bound.item() == pytest.approx(n * math.log(2 * math.sqrt(q * (1 - q))), rel=1e-9)


def test_one_label_has_a_closed_form():
    q = 0.1
    for a in (0.8, 2.0, 1e3, 1e6):
        vote = binary_vote(torch.tensor([[a]], dtype=torch.float64), torch.ones(1, dtype=torch.long), q)
        assert vote.t.item() == pytest.approx(math.log((1 - q) * (2 * a - 1) / q) / a, rel=1e-6)
        assert vote.log_bound.item() >= math.log(q)
    assert vote.log_bound.item() == pytest.approx(math.log(q), abs=1e-4)


def test_swapping_the_classes_negates_t():
    alpha, y = alphas(60)
    one, other = (binary_vote(alpha, labels, 0.2, tolerance=1e-10) for labels in (y, 1 - y))
    assert torch.equal(one.prediction, 1 - other.prediction)
    torch.testing.assert_close(one.log_bound, other.log_bound, atol=1e-8, rtol=0)
    torch.testing.assert_close(one.t, -other.t, rtol=1e-4, atol=1e-4)


def test_degenerate_rows():
    n, q = 9, 0.1
    y = torch.tensor([1, 0, 1, 0, 1, 0, 1, 0, 1])
    heavy = torch.full((n,), 1e-6)
    heavy[0] = 1e3
    rows = torch.stack([torch.zeros(n), torch.full((n,), 0.4 / n), torch.full((n,), 0.5 / n), heavy]).double()
    vote = binary_vote(rows, y, q)
    assert not vote.log_bound.isnan().any()
    assert not vote.t.isnan().any()
    assert vote.prediction[:2].tolist() == [0, 0]
    assert kl_radius(vote.log_bound, q, n)[:2].tolist() == [n, n] == np_radius(vote.log_bound, q, n)[:2].tolist()
    assert vote.log_bound[3].item() == pytest.approx(math.log(q), abs=0.01)


def test_a_bound_of_hundreds_of_nats_gives_a_finite_radius():
    n, q = 5000, 0.1
    g = torch.Generator().manual_seed(0)
    alpha = (torch.rand(3, n, generator=g, dtype=torch.float64) + 0.5) / n
    y = (torch.rand(n, generator=g) < 0.85).long()
    vote = binary_vote(alpha, y, q)
    assert (vote.log_bound < -200).all()
    kl, exact = kl_radius(vote.log_bound, q, n), np_radius(vote.log_bound, q, n)
    kappa = (1 - 2 * q) * math.log((1 - q) / q)
    torch.testing.assert_close(kl.double(), (-vote.log_bound - math.log(4)) / (2 * kappa), atol=1.0, rtol=0)
    assert (exact < n).all()
    assert (exact > 1.9 * kl).all()


def test_small_noise_approaches_the_exact_number_of_flips():
    load_breast_cancer = pytest.importorskip("sklearn.datasets").load_breast_cancer
    import numpy as np

    x, y = load_breast_cancer(return_X_y=True)
    order = np.random.default_rng(0).permutation(569)
    x, y = torch.tensor(x[order]), torch.tensor(y[order])
    x = (x - x[:400].mean(0)) / x[:400].std(0, correction=0)
    hat = RidgeHat.fit(x[:400])
    alpha = hat.alpha(hat.weights(x[400:], 1000.0))
    q = 1e-6
    vote = binary_vote(alpha, y[:400], q)
    nats = -vote.log_bound / ((1 - 2 * q) * math.log((1 - q) / q))
    exact = exact_flips(alpha, y[:400])
    assert nats.median() / exact.fractional.median() == pytest.approx(1, abs=0.05)

    # the same task at q = 0.1: accuracy and certified accuracy, checked against an independent implementation
    (certificate,) = certify_binary(hat, y[:400], x[400:], [0.1], 1000.0)
    correct = certificate.prediction == y[400:]
    assert correct.double().mean() == pytest.approx(0.941, abs=1e-3)
    for radius, expected in (
        (certificate.radius_kl, (0.858, 0.710, 0.580, 0.207)),
        (certificate.radius_np, (0.888, 0.781, 0.710, 0.574)),
        (exact.radius, (0.935, 0.888, 0.834, 0.722)),
    ):
        measured = [(correct & (radius >= r)).double().mean().item() for r in (1, 5, 10, 20)]
        assert measured == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("intercept", [True, False])
def test_exact_flips_against_all_labellings(intercept):
    n = 9
    alpha, y = alphas(n, 3, intercept)
    # ties at the threshold too: eighths are exact, and their sums hit 1/2
    ties = torch.randint(-3, 5, (8, n), generator=torch.Generator().manual_seed(1)) / 8.0
    alpha = torch.cat([alpha, ties.double()])
    result = exact_flips(alpha, y)
    for row, a in enumerate(alpha):
        answers = ((all_labellings(n).double() * a).sum(1) >= 0.5).long()
        assert result.radius[row] == enumerated_radius(answers, y)


def test_sampling_agrees_with_the_bound():
    x, y, t = problem(60, queries=5)
    hat = RidgeHat.fit(x)
    vote = binary_vote(hat.alpha(hat.weights(t, 1.0)), y, 0.2)
    sampled = sampled_votes(
        hat, y, 2, t, 0.2, 1.0, samples=20_000, generator=torch.Generator().manual_seed(0), batch=500
    )
    agrees = sampled.prediction == vote.prediction
    frequency = torch.where(agrees, sampled.votes, 20_000 - sampled.votes) / 20_000
    assert (frequency >= 1 - vote.log_bound.exp() - 4 * 0.5 / math.sqrt(20_000)).all()
    assert (sampled.radius_kl <= sampled.radius_np).all()


def test_order_of_rows_and_of_blocks_changes_nothing(monkeypatch):
    x, y, t = problem(80, queries=12)
    order = torch.randperm(80, generator=torch.Generator().manual_seed(2))
    (one,) = certify_binary(RidgeHat.fit(x), y, t, [0.3], 2.0)
    (two,) = certify_binary(RidgeHat.fit(x[order]), y[order], t, [0.3], 2.0)
    monkeypatch.setattr("robustrun.methods.smoothing.label_hat._BLOCK", 200)
    monkeypatch.setattr("robustrun.methods.smoothing.label_compress._CACHED", 300)
    (three,) = certify_binary(RidgeHat.fit(x), y, t, [0.3], 2.0)
    for other in (two, three):
        torch.testing.assert_close(one.log_bound, other.log_bound, atol=1e-9, rtol=0)
        assert torch.equal(one.radius_np, other.radius_np)


def test_compression_is_exact_for_polynomials():
    alpha, y = alphas(50)
    grouped, sizes = group_by_label(alpha, y, 2)
    short = compress(grouped, sizes, precision=torch.float64)
    for power in (0, 1, 5, 15):
        ours = (short.weights * short.nodes[:, None] ** power).sum(-1)
        plain = torch.stack([p.pow(power).sum(1) for p in grouped.split(sizes, 1)], 1)
        torch.testing.assert_close(ours, plain, rtol=1e-9, atol=1e-12)


def test_a_bad_start_only_costs_time():
    alpha, y = alphas(40)
    k = LogMoment(alpha, 0.2 + 0.6 * y.double(), slope=0.5)
    side = torch.where(k(torch.zeros(6, dtype=torch.float64))[1] < 0, 1.0, -1.0).double()
    good = minimise(k, side, side)
    for size in (1e-12, 1e3, 1e9):
        torch.testing.assert_close(minimise(k, side * size, side)[1], good[1], atol=1e-8, rtol=0)


@pytest.mark.parametrize("q", [0.0, 0.5, 0.7, math.nan])
def test_impossible_noise_is_refused(q):
    alpha, y = alphas(10)
    with pytest.raises(ValueError, match="q must lie"):
        binary_vote(alpha, y, q)


def test_products_of_factors_give_their_logarithms():
    g = torch.Generator().manual_seed(0)
    for span in (0.1, 30.0, 500.0):
        logs = span * (2 * torch.rand(3, 301, generator=g, dtype=torch.float64) - 1)
        logs[0] = span  # the worst case of every product
        sums, errors = log_products(logs.exp(), [1, 100, 200], span)
        exact = torch.stack([part.sum(1) for part in logs.split([1, 100, 200], 1)], 1)
        assert ((sums - exact).abs() <= errors + 1e-15 * span * 301).all()
        assert (errors < 1e-13 * (1 + span * 301)).all()


def test_constant_features_change_nothing():
    x, y, t = problem(30)
    still = torch.cat([x, torch.full((30, 2), 0.7, dtype=torch.float64)], 1)
    plain, more = RidgeHat.fit(x), RidgeHat.fit(still)
    queries = torch.cat([t, torch.randn(6, 2, dtype=torch.float64)], 1)
    torch.testing.assert_close(more.alpha(more.weights(queries, 1.0)), plain.alpha(plain.weights(t, 1.0)))
    weight, bias = more.coefficients(y.double()[:, None], 1.0)
    torch.testing.assert_close((queries @ weight + bias)[:, 0], plain.alpha(plain.weights(t, 1.0)) @ y.double())
    assert (weight[3:] == 0).all()
    flat = RidgeHat.fit(still[:, 3:])
    torch.testing.assert_close(flat.alpha(flat.weights(queries[:, 3:], 1.0)), torch.full((6, 30), 1 / 30).double())
