"""Multi-class certificates, partition aggregation and attacks."""

import itertools
import math

import pytest
import torch
from torch.nn.functional import one_hot

from robustrun.methods.smoothing import (
    RidgeHat,
    all_labellings,
    binary_vote,
    certify_multiclass,
    distance_order,
    enumerated_radius,
    enumerated_votes,
    exact_flips,
    exact_flips_multiclass,
    fit_logistic,
    flips_to_break,
    influence_order,
    kl_radius,
    kl_radius_multiclass,
    np_radius,
    partition_radius,
    partition_votes,
    rival_votes,
)

torch.set_num_threads(1)


def blobs(n, classes, seed=0, queries=7, k=4):
    g = torch.Generator().manual_seed(seed)
    centres = 2 * torch.randn(classes, k, generator=g, dtype=torch.float64)
    y = torch.randint(classes, (n,), generator=g)
    t = torch.randint(classes, (queries,), generator=g)
    noise = torch.randn(n + queries, k, generator=g, dtype=torch.float64)
    return centres[y] + noise[:n], y, centres[t] + noise[n:], t


def base_answers(alpha, n, classes):
    return (one_hot(all_labellings(n, classes), classes).double() * alpha[:, None]).sum(1).argmax(1)


@pytest.mark.parametrize(("q", "seed"), list(itertools.product([0.01, 0.1, 0.3, 0.5], [0, 1])))
def test_never_above_the_truth_over_all_labellings(q, seed):
    n, classes = 7, 3
    x, y, t, _ = blobs(n, classes, seed, 4)
    hat = RidgeHat.fit(x)
    alpha = torch.cat([hat.alpha(hat.weights(t, 1.0)), torch.full((1, n), 1 / n, dtype=torch.float64)])
    for labels in (y, torch.ones(n, dtype=torch.long)):
        votes = rival_votes(alpha, labels, classes, q, tilts=2)
        log_bound = votes.log_rivals.logsumexp(1)
        radii = torch.maximum(kl_radius_multiclass(votes.log_rivals, q, n), np_radius(log_bound, q, n, classes))
        own = int((all_labellings(n, classes) == labels).all(1).nonzero())
        for row, a in enumerate(alpha):
            exact = enumerated_votes(base_answers(a, n, classes), n, q, classes)
            winner = int(votes.prediction[row])
            if log_bound[row] < math.log(0.5):
                assert exact[own].argmax() == winner
            rivals = exact[own][torch.arange(classes) != winner]
            assert (rivals.log() <= votes.log_rivals[row] + 1e-9).all()
            if radii[row] > 0:
                assert radii[row] <= enumerated_radius(exact.argmax(1), labels, classes)
    if q == 0.01:
        assert radii[-1] >= 1  # the test would say nothing of radii that are all zero


def test_two_classes_are_the_binary_case():
    x, y, t, _ = blobs(80, 2)
    hat = RidgeHat.fit(x)
    alpha = hat.alpha(hat.weights(t, 3.0))
    binary = binary_vote(alpha, y, 0.2, tolerance=1e-13)
    multi = rival_votes(alpha, y, 2, 0.2, tolerance=0.0)
    assert torch.equal(binary.prediction, multi.prediction)
    torch.testing.assert_close(multi.log_rivals[:, 0], binary.log_bound, atol=1e-9, rtol=1e-9)
    assert torch.equal(kl_radius_multiclass(multi.log_rivals, 0.2, 80), kl_radius(binary.log_bound, 0.2, 80))


def test_few_tilts_lose_almost_nothing_and_stay_sound():
    x, y, t, _ = blobs(300, 5, queries=30)
    hat = RidgeHat.fit(x)
    alpha = hat.alpha(hat.weights(t, 50.0))
    best = rival_votes(alpha, y, 5, 0.2, tilts=4, tolerance=0.0)
    for tilts in (1, 2):
        few = rival_votes(alpha, y, 5, 0.2, tilts=tilts)
        assert (few.log_rivals >= best.log_rivals - 1e-6).all()
    assert (few.log_rivals.logsumexp(1) - best.log_rivals.logsumexp(1)).median() < 0.05


def test_a_union_of_thousands_of_nats_gives_a_finite_radius():
    log_rivals = torch.full((1, 9), -2000.0, dtype=torch.float64)
    radius = kl_radius_multiclass(log_rivals, 0.1, 60_000).item()
    kappa = (1 - 1 / 9) * math.log(81)
    assert radius == pytest.approx((1000 - math.log(2)) / kappa, abs=1.5)
    assert kl_radius_multiclass(torch.zeros(1, 9, dtype=torch.float64), 0.1, 60_000).item() == 0


def test_a_query_that_no_label_moves():
    votes = rival_votes(torch.zeros(1, 6, dtype=torch.float64), torch.tensor([2, 2, 1, 1, 2, 0]), 3, 0.1)
    assert votes.prediction.item() == 0
    assert kl_radius_multiclass(votes.log_rivals, 0.1, 6).item() == 6
    assert np_radius(votes.log_rivals.logsumexp(1), 0.1, 6, 3).item() == 6


@pytest.mark.parametrize("seed", range(3))
def test_exact_flips_against_all_labellings(seed):
    n, classes = 7, 3
    x, y, t, _ = blobs(n, classes, seed)
    hat = RidgeHat.fit(x)
    ties = torch.randint(-2, 4, (6, n), generator=torch.Generator().manual_seed(seed)) / 8.0
    alpha = torch.cat([hat.alpha(hat.weights(t, 1.0)), ties.double()])
    result = exact_flips_multiclass(alpha, one_hot(y, classes).double())
    for row, a in enumerate(alpha):
        assert result.radius[row] == enumerated_radius(base_answers(a, n, classes), y, classes)


def test_flipping_the_most_influential_labels_never_beats_a_certificate():
    x, y, t, _ = blobs(200, 3, queries=20)
    hat, q = RidgeHat.fit(x), 0.1
    alpha = hat.alpha(hat.weights(t, 100.0))
    (certificate,) = certify_multiclass(hat, y, 3, t, [q], 100.0)
    assert certificate.radius_kl.max() >= 3
    for row in range(len(t)):
        own = int(certificate.prediction[row])
        radius = int(torch.maximum(certificate.radius_kl, certificate.radius_np)[row])
        for rival in (c for c in range(3) if c != own):
            harm = alpha[row].abs() + alpha[row] * ((y == own).double() - (y == rival).double())
            worst = harm.topk(radius).indices
            flipped = y.clone()
            flipped[worst] = torch.where(alpha[row, worst] > 0, rival, own)
            after = rival_votes(alpha[row : row + 1], flipped, 3, q)
            assert after.prediction.item() == own or after.log_rivals.logsumexp(1).item() >= math.log(0.5)


def test_partition_radius():
    votes = torch.tensor([[10, 4, 0], [5, 5, 0], [4, 10, 0], [0, 5, 6]])
    prediction, radius = partition_radius(votes)
    assert prediction.tolist() == [0, 0, 1, 2]
    assert radius.tolist() == [3, 0, 2, 0]


def test_partition_certificate_against_flips_of_its_own_training_set():
    x, y, t, truth = blobs(120, 3, queries=15)

    def run(labels):
        return partition_votes(
            x, labels, 3, t, parts=30, regularisation=1.0, generator=torch.Generator().manual_seed(0), batch=7
        )

    clean = run(y)
    assert (clean.prediction == truth).double().mean() > 0.8
    assert clean.votes.sum(1).tolist() == [30] * 15
    assert clean.radius.max() >= 5
    g = torch.Generator().manual_seed(1)
    for _ in range(20):
        r = int(torch.randint(1, 8, (1,), generator=g))
        flipped = y.clone()
        at = torch.randperm(120, generator=g)[:r]
        flipped[at] = (flipped[at] + 1) % 3
        after = run(flipped)
        assert (after.prediction == clean.prediction)[clean.radius >= r].all()
    with pytest.raises(ValueError, match="parts must lie"):
        partition_votes(x, y, 3, t, parts=121, regularisation=1.0, generator=g)


def logistic_problem():
    x, y, t, _ = blobs(150, 2, queries=8)
    return torch.cat([x, torch.ones(150, 1)], 1), y, torch.cat([t, torch.ones(8, 1)], 1)


def test_logistic_regression_reaches_a_stationary_point():
    x, y, _ = logistic_problem()
    w = fit_logistic(x, torch.stack([y, 1 - y, torch.roll(y, 3)])).requires_grad_()
    labels = torch.stack([y, 1 - y, torch.roll(y, 3)]).double()
    loss = torch.nn.functional.binary_cross_entropy_with_logits(w @ x.T, labels, reduction="none").mean(1)
    (gradient,) = torch.autograd.grad((loss + 5e-4 * w.square().sum(1)).sum(), w)
    assert gradient.norm(dim=1).max() < 1e-7


def test_influence_order_is_what_retraining_shows():
    x, y, t = logistic_problem()
    w = fit_logistic(x, y[None], penalty=0.1)[0]
    order = influence_order(x, y, w, t, penalty=0.1)
    side = torch.where(t @ w >= 0, 1.0, -1.0)
    flips = fit_logistic(x, y ^ torch.eye(150, dtype=torch.long), penalty=0.1)
    harm = -side[:, None] * (t @ flips.T - (t @ w)[:, None])  # what flipping each label alone costs the score
    for row in range(len(t)):  # rank correlation
        ranks = torch.stack([order[row].argsort(), harm[row].argsort(descending=True).argsort()]).double()
        assert torch.corrcoef(ranks)[0, 1] > 0.95


def test_attacks_break_what_they_say():
    x, y, t = logistic_problem()
    w = fit_logistic(x, y[None])[0]
    answer = t @ w >= 0
    influence = flips_to_break(x, y, t, influence_order(x, y, w, t))
    distance = flips_to_break(x, y, t, distance_order(x, y, t, answer.long()))
    assert (influence <= 75).all()
    anyhow = torch.rand(8, 150, generator=torch.Generator().manual_seed(0)).argsort(1)
    blind = flips_to_break(x, y, t, anyhow).double().median()
    assert max(influence.double().median(), distance.double().median()) < blind
    order = influence_order(x, y, w, t)
    for row in range(len(t)):
        flipped = y.clone()
        flipped[order[row, : influence[row]]] ^= 1
        assert (t[row] @ fit_logistic(x, flipped[None])[0] >= 0) != answer[row]


def test_exact_flips_of_two_classes_agree():
    x, y, t, _ = blobs(60, 2)
    hat = RidgeHat.fit(x)
    alpha = hat.alpha(hat.weights(t, 3.0))
    assert torch.equal(exact_flips(alpha, y).radius, exact_flips_multiclass(alpha, one_hot(y, 2).double()).radius)
