import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.special import ndtr, ndtri

from robustrun.errors import JobFailed
from robustrun.methods.smoothing import (
    ABSTAIN,
    Gaussian,
    Laplace,
    NoisyVotes,
    Uniform,
    certified_accuracy,
    certify,
    clopper_pearson_lower,
    noise_law,
    predict,
    to_three_digits,
    top_two_pvalue,
    upper_envelope,
)

ALPHA = 0.001


class Ballot:
    """Votes drawn from fixed class probabilities (B, K)."""

    def __init__(self, probabilities, seed=0):
        self.p = np.asarray(probabilities, float)
        self.generator = np.random.default_rng(seed)
        self.drawn = 0

    def __call__(self, rows, first, count):
        self.drawn += len(rows) * count
        return torch.from_numpy(self.generator.multinomial(count, self.p[rows.numpy()]))


def counted(*counts):
    """Votes that are these counts whatever is asked."""
    return lambda rows, first, count: torch.tensor(counts, dtype=torch.int64)[rows]


@pytest.mark.parametrize(("k", "n"), [(37, 50), (66, 100), (286, 500), (550, 1000), (5156, 10_000), (50_490, 100_000)])
def test_the_least_count_that_certifies(k, n):
    assert clopper_pearson_lower(k, n, ALPHA) >= 0.5 > clopper_pearson_lower(k - 1, n, ALPHA)


@given(st.integers(1, 400), st.data(), st.sampled_from([0.05, 0.001, 1e-5]))
@settings(deadline=None, max_examples=60)
def test_the_bound_is_the_beta_quantile_and_solves_the_binomial_tail(n, data, alpha):
    k = data.draw(st.integers(1, n))
    bound = clopper_pearson_lower(k, n, alpha)
    assert bound == pytest.approx(stats.beta.ppf(alpha, k, n - k + 1), rel=2e-12, abs=1e-12)
    assert stats.binom.sf(k - 1, n, bound) == pytest.approx(alpha, rel=1e-8)
    assert clopper_pearson_lower(0, n, alpha) == 0


@pytest.mark.parametrize(("n", "cap"), [(100, 1.50048), (1000, 2.46326), (10_000, 3.19858), (100_000, 3.81146)])
def test_radii_are_capped_by_the_number_of_draws(n, cap):
    for sigma in (0.25, 1.0):
        found = certify(counted([n, 0]), 1, Gaussian(sigma), n0=1, n=n, alpha=ALPHA)
        assert found.radius[0] / sigma == pytest.approx(cap, abs=1e-5)
        assert found.prediction[0] == 0


def test_radius_grows_with_votes_and_sigma():
    p = clopper_pearson_lower(np.arange(5200, 10_001, 100), 10_000, ALPHA)
    radii = np.stack([Gaussian(sigma).radius(p) for sigma in (0.12, 0.25, 0.5, 1.0)])
    assert (np.diff(radii, axis=0) > 0).all()
    assert (np.diff(radii, axis=1) > 0).all()
    assert Gaussian(1.0).radius(0.3) == 0


def test_the_certified_radius_of_a_halfspace_is_below_the_true_one():
    """f(z) = 1[w.z + b > 0] at distance m: p = Phi(m / sigma) and the true radius is m."""
    sigma, m, runs, n = 0.5, 0.4, 2000, 1000
    p = ndtr(m / sigma)
    found = certify(Ballot(np.tile([1 - p, p], (runs, 1))), runs, Gaussian(sigma), n0=100, n=n, alpha=0.05)
    wrong = (found.radius > m).mean()
    assert wrong <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / runs)
    assert wrong > 0.02, "the bound should not be much looser than its level"
    assert found.radius.mean() < m
    sharp = certify(Ballot(np.tile([1 - p, p], (20, 1))), 20, Gaussian(sigma), n0=100, n=10**6, alpha=ALPHA)
    assert sharp.radius.mean() == pytest.approx(m, rel=0.01)


def test_a_wrong_guess_is_certified_only_by_bad_luck():
    runs, alpha = 20_000, 0.01
    generator = np.random.default_rng(1)
    successes = generator.binomial(1000, 0.5, runs)
    assert (clopper_pearson_lower(successes, 1000, alpha) > 0.5).mean() <= alpha + 3 * np.sqrt(alpha / runs)
    tossed = predict(Ballot(np.full((runs, 2), 0.5)), runs, n=1000, alpha=ALPHA)
    assert (tossed != ABSTAIN).mean() <= ALPHA + 3 * np.sqrt(ALPHA / runs)


@pytest.mark.parametrize(
    ("most", "second", "answers"),
    [(10, 0, False), (11, 0, True), (5200, 4800, True), (5165, 4835, False), (50, 50, False)],
)
def test_predict(most, second, answers):
    found = predict(counted([second, most, 0]), 1, n=most + second, alpha=ALPHA)
    assert found[0] == (1 if answers else ABSTAIN)
    assert top_two_pvalue(most, second) == pytest.approx(stats.binomtest(most, most + second).pvalue, rel=1e-10)


def test_votes_for_no_class_can_win_but_are_no_answer():
    assert predict(counted([20, 1]), 1, n=21)[0] == 0
    assert predict(counted([20, 1]), 1, n=50)[0] == ABSTAIN  # 29 draws had no class
    assert predict(counted([40, 1]), 1, n=80)[0] == ABSTAIN


def test_labels_save_draws_and_leave_certified_accuracy_alone():
    p = [[0.9, 0.1], [0.1, 0.9], [0.8, 0.2]]
    labels = torch.tensor([0, 0, 1])
    all_, some = Ballot(p, 3), Ballot(p, 3)
    whole = certify(all_, 3, Gaussian(1.0), n=1000)
    less = certify(some, 3, Gaussian(1.0), n=1000, labels=labels)
    assert all_.drawn - some.drawn == 2000
    assert less.prediction.tolist() == [0, ABSTAIN, ABSTAIN]
    assert whole.prediction.tolist() == [0, 1, 0]
    assert less.trials.tolist() == [1000, 0, 0]


# ------------------------------------------------------------------------------------------ sampling


def linear_votes(batch_size, *, indices=(3, 9, 40), sigma=0.5, scale=1.0, seed=7):
    torch.manual_seed(0)
    weight = torch.randn(4, 12)
    inputs = torch.rand(3, 3, 2, 2) * scale

    def classify(noisy, *_):
        return (noisy / scale).flatten(1) @ weight.T

    return NoisyVotes(
        classify,
        inputs,
        torch.tensor(indices),
        noise=Gaussian(sigma * scale),
        seed=seed,
        classes=4,
        batch_size=batch_size,
    )


def test_counts_do_not_depend_on_batches_or_company():
    rows = torch.arange(3)
    whole = linear_votes(1000)(rows, 0, 101)
    assert whole.sum(1).tolist() == [101] * 3
    for size in (1, 7, 50, 303):
        assert torch.equal(linear_votes(size)(rows, 0, 101), whole)
    alone = linear_votes(16)(torch.tensor([2]), 0, 101)
    assert torch.equal(alone, whole[2:])
    pieces = linear_votes(16)(rows, 0, 40) + linear_votes(16)(rows, 40, 61)
    assert torch.equal(pieces, whole)
    assert not torch.equal(linear_votes(16)(rows, 101, 101), whole), "selection and estimation draws differ"
    assert not torch.equal(linear_votes(16, seed=8)(rows, 0, 101), whole)


def test_scaling_inputs_and_noise_scales_the_radius():
    plain = certify(linear_votes(64), 3, Gaussian(0.5), n=200)
    double = certify(linear_votes(64, scale=2.0), 3, Gaussian(1.0), n=200)
    assert plain.successes.tolist() == double.successes.tolist()
    assert (plain.radius * 2).tolist() == double.radius.tolist()


def test_degenerate_classifiers():
    def votes(classify, classes):
        return NoisyVotes(classify, torch.zeros(1, 2), torch.tensor([0]), noise=Gaussian(1.0), seed=0, classes=classes)

    constant = votes(lambda noisy, *_: torch.zeros(len(noisy), 3), 3)
    assert certify(constant, 1, Gaussian(1.0), n=100).radius[0] == pytest.approx(1.50048, abs=1e-5)
    single = votes(lambda noisy, *_: noisy[:, :1], 1)
    assert certify(single, 1, Gaussian(1.0), n=100).prediction[0] == 0
    silent = votes(lambda noisy, *_: torch.full((len(noisy),), -1), 3)
    assert certify(silent, 1, Gaussian(1.0), n=100).prediction[0] == ABSTAIN
    with pytest.raises(JobFailed, match="NaN"):
        certify(votes(lambda noisy, *_: noisy.fill_(float("nan")), 2), 1, Gaussian(1.0), n=100)
    with pytest.raises(JobFailed, match="unknown class"):
        certify(votes(lambda noisy, *_: torch.full((len(noisy),), 5), 2), 1, Gaussian(1.0), n=100)
    with pytest.raises(ValueError, match="sigma must be positive"):
        Gaussian(0.0)


# ------------------------------------------------------------------------------------------- noise


@pytest.mark.parametrize("law", ["gaussian", "laplace", "uniform"])
def test_noise_has_the_law_it_says(law):
    sigma = 0.7
    noise = noise_law(law, sigma)
    drawn = noise.draw(0, torch.zeros(40, dtype=torch.int64), (500,), torch.arange(40)).double().flatten().numpy()
    expected = {
        "gaussian": stats.norm(scale=sigma),
        "laplace": stats.laplace(scale=sigma / np.sqrt(2)),
        "uniform": stats.uniform(-np.sqrt(3) * sigma, 2 * np.sqrt(3) * sigma),
    }[law]
    assert drawn.std() == pytest.approx(sigma, rel=0.03)
    assert stats.kstest(drawn, expected.cdf).pvalue > 1e-3
    for norm in noise.norms:
        p = np.array([0.5, 0.7, 0.99])
        assert noise.probability(noise.radius(p, norm, 12), norm, 12) == pytest.approx(p, abs=1e-11)
    with pytest.raises(ValueError, match="no certificate"):
        noise.radius(0.9, "linf" if law != "gaussian" else "l7")


def test_norms_of_gaussian_noise():
    assert Gaussian(0.5).radius(0.9, "l1") == Gaussian(0.5).radius(0.9, "l2")
    assert Gaussian(0.5).radius(0.9, "linf", 100) == pytest.approx(0.05 * ndtri(0.9))


@pytest.mark.parametrize("noise", [Laplace(0.6), Uniform(0.6)])
def test_l1_radii_are_tight_on_a_halfspace_of_one_coordinate(noise):
    """f(z) = 1[z_1 > -m]: its vote at a shift of R against it is 1/2 exactly where the certificate ends (Laplace),
    and never before."""
    law = {
        Laplace: stats.laplace(scale=noise.sigma / np.sqrt(2)),
        Uniform: stats.uniform(-np.sqrt(3) * noise.sigma, 2 * np.sqrt(3) * noise.sigma),
    }[type(noise)]
    for m in (0.05, 0.3, 0.8):
        radius = float(noise.radius(law.sf(-m)))
        assert law.sf(-m + radius) >= 0.5 - 1e-9
        assert radius == pytest.approx(m, rel=1e-9)


# ------------------------------------------------------------------------------------------ curves


def test_certified_accuracy_counts_neither_abstentions_nor_wrong_answers():
    correct, radius = [True, True, False, False, True], [0.7, 0.3, 9.0, 0.0, 0.0]
    at = np.array([0.0, 0.3, 0.5, 2.0])
    assert certified_accuracy(correct, radius, at).tolist() == [0.6, 0.4, 0.2, 0.0]


def test_upper_envelope_breaks_ties_by_standard_accuracy():
    m1 = ([1, 1, 0, 0], [0.7, 0.3, 0.6, 0.0])
    m2 = ([1, 1, 1, 0], [1.2, 0.2, 0.9, 0.0])
    standard, certified, which = upper_envelope([m1, m2], [0.25, 0.5, 1.0, 1.25])
    assert standard.tolist() == [0.75] * 4
    assert certified.tolist() == [0.5, 0.5, 0.25, 0.0]
    assert which.tolist() == [1] * 4


def test_three_digits():
    assert to_three_digits([0.7996, 0.03838, 0.0, 1.5993]).tolist() == [0.8, 0.0384, 0.0, 1.6]


def test_no_attack_inside_the_radius_flips_the_vote():
    """A nonlinear f in the plane: gradient-free search for the worst point of the l2 ball, its vote by quadrature."""
    sigma = 0.5

    def inside(points):
        return ((points**2).sum(-1) < 1.0) | ((points - 2.2).abs().sum(-1) < 0.5)

    def classify(noisy, *_):
        return inside(noisy).long()

    inputs = torch.tensor([[0.1, 0.2], [0.6, -0.3], [1.8, 0.0], [1.0, 1.0]])
    noise = Gaussian(sigma)
    votes = NoisyVotes(classify, inputs, torch.arange(4), noise=noise, seed=1, classes=2)
    found = certify(votes, 4, noise, n=2000)
    assert (found.radius > 0.05).sum() >= 3
    angles = torch.linspace(0, 2 * np.pi, 33)[:-1]
    circle = torch.stack([angles.cos(), angles.sin()], 1)
    steps = torch.linspace(-4, 4, 161, dtype=torch.float64) * sigma
    grid = torch.stack(torch.meshgrid(steps, steps, indexing="ij"), -1).view(-1, 2)
    weight = torch.exp(-(grid**2).sum(1) / (2 * sigma**2))
    for point, prediction, radius in zip(inputs, found.prediction, found.radius, strict=True):
        for share in (0.5, 0.999):
            moved = point + circle * float(radius) * share
            p = (inside(moved[:, None] + grid).double() * weight).sum(1) / weight.sum()
            assert prediction == ABSTAIN or ((p > 0.5) == bool(prediction)).all()
