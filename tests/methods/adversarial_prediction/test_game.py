"""The marginal game against the brute-force game, its closed forms, symmetries and certificates."""

import numpy as np
import pytest
import torch

from robustrun.methods.adversarial_prediction import (
    ALL,
    NAMED,
    TN,
    TP,
    Constraints,
    Metric,
    f1,
    f2,
    game_of,
    label_marginals,
    parse_metric,
    precision,
    project,
    recall,
    solve_cvxpy,
    solve_lp,
    specificity,
)
from tests.methods.adversarial_prediction.games import brute_force_value, vectors

CPU = torch.device("cpu")
PLAIN = [name for name in NAMED if not NAMED[name]().constraints]
CONSTRAINED = [name for name in NAMED if NAMED[name]().constraints]


@pytest.mark.parametrize("name", PLAIN)
def test_payoffs_of_all_pairs_of_vectors(name):
    n, metric = 5, NAMED[name]()
    game = game_of(metric, n, CPU)
    everything = torch.from_numpy(vectors(n))
    marginals = label_marginals(everything)
    payoffs = game.payoffs(marginals)  # (truth, k, i)
    bonus = (marginals * game.adversary_bonus.unsqueeze(-1)).sum((-1, -2)) + game.constant
    values = torch.einsum("gki,tki->gt", marginals, payoffs) + bonus
    direct = [[metric(g, t) for t in vectors(n)] for g in vectors(n)]
    np.testing.assert_allclose(values, direct, atol=1e-10)


@pytest.mark.parametrize("name", PLAIN)
def test_adjoint_is_the_transpose(name):
    game = game_of(NAMED[name](), 7, CPU)
    x, z = torch.randn(2, 7, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert (game.apply(x) * z).sum() == pytest.approx((x * game.adjoint(z)).sum().item())
    dense = game.joint.T @ x + (game.totals.T @ x.sum(-1)).unsqueeze(-1)
    torch.testing.assert_close(game.apply(x), dense, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("name", NAMED)
def test_linear_program_equals_the_brute_force_game(name):
    rng = np.random.default_rng(0)
    metric = NAMED[name]()
    for n in (1, 2, 3, 4, 5):
        for labels in (np.zeros(n, int), np.ones(n, int), rng.integers(0, 2, n)):
            scores = rng.normal(size=n) * rng.choice([0.1, 0.5])
            expected = brute_force_value(scores, labels, metric)
            assert solve_lp(scores, labels, metric)[1] == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize("name", ["f2", "kappa", "precision_given_recall_specificity"])
def test_cvxpy_reference_agrees(name):
    rng = np.random.default_rng(1)
    scores, labels = rng.normal(size=6) * 0.3, rng.integers(0, 2, 6)
    metric = NAMED[name]()
    assert solve_cvxpy(scores, labels, metric) == pytest.approx(solve_lp(scores, labels, metric)[1], abs=1e-6)


def test_values_at_zero_scores():
    for n in (2, 5, 9):
        expected = {
            "accuracy": 1 / 2,
            "recall": 1 / 2,
            "specificity": 1 / 2,
            "balanced_accuracy": 1 / 4,
            "precision": 1 / (n + 1),
            "f1": 2 / (n + 3),
            "f2": 5 / (n + 9),
            "gpr": 1 / (1 + np.sqrt(n)),
            **dict.fromkeys(("informedness", "markedness", "kappa", "mcc"), 0.0),
        }
        for name, value in expected.items():
            assert solve_lp(np.zeros(n), np.zeros(n), NAMED[name]())[1] == pytest.approx(value, abs=1e-6), name


def test_symmetries():
    rng = np.random.default_rng(2)
    scores, labels = rng.normal(size=7) * 0.3, np.zeros(7)
    order = rng.permutation(7)
    for name in ("f1", "mcc"):
        value = solve_lp(scores, labels, NAMED[name]())[1]
        assert solve_lp(scores[order], labels, NAMED[name]())[1] == pytest.approx(value, abs=1e-7)
    swapped = solve_lp(-scores, labels, recall())[1] - scores.sum()
    assert solve_lp(scores, labels, specificity())[1] == pytest.approx(swapped, abs=1e-7)
    for name in ("accuracy", "kappa", "mcc", "informedness", "markedness"):
        value = solve_lp(scores, labels, NAMED[name]())[1]
        assert solve_lp(-scores, labels, NAMED[name]())[1] - scores.sum() == pytest.approx(value, abs=1e-7)


def test_marginals_are_the_values_gradient():
    rng = np.random.default_rng(3)
    for metric in (f1(), f2(), NAMED["kappa"](), parse_metric("precision st recall >= 0.6")):
        scores, labels = rng.normal(size=6) * 0.4, rng.integers(0, 2, 6)
        q, _ = solve_lp(scores, labels, metric)
        for i in range(6):
            step = 1e-5 * np.eye(6)[i]
            slope = solve_lp(scores + step, labels, metric)[1] - solve_lp(scores - step, labels, metric)[1]
            assert slope / 2e-5 == pytest.approx(-q[i], abs=1e-5)


@pytest.mark.parametrize("name", PLAIN)
def test_any_play_in_the_polytope_bounds_the_value(name):
    metric, n = NAMED[name](), 6
    game = game_of(metric, n, CPU)
    generator = torch.Generator().manual_seed(4)
    scores = torch.randn(n, generator=generator, dtype=torch.float64) * 0.5
    value = solve_lp(scores, np.zeros(n), metric)[1]
    plays, _ = project(torch.randn(200, n, n, generator=generator, dtype=torch.float64))
    assert (game.upper(plays, scores) >= value - 1e-8).all()
    assert (game.lower(plays, scores) <= value + 1e-8).all()


@pytest.mark.parametrize("metric", [precision(), recall(), specificity(), f1()])
def test_constraints_count_every_prediction_right(metric):
    n = 4
    objective = precision().subject_to(metric >= 0.5)
    everything = vectors(n)
    marginals = label_marginals(torch.from_numpy(everything))
    for labels in everything:
        constraints = Constraints.of(objective, torch.from_numpy(labels)[None].expand(len(everything), n))
        expected = [metric(guess, labels) for guess in everything]
        np.testing.assert_allclose(constraints.values(marginals)[:, 0], expected, atol=1e-12)
        repaired = constraints.repaired(marginals)
        assert (constraints.values(repaired) >= 0.5 - 1e-8).all()
        torch.testing.assert_close(project(repaired)[0], repaired, atol=1e-9, rtol=0)


def test_constraints_only_lower_the_value():
    rng = np.random.default_rng(5)
    scores, labels = rng.normal(size=8) * 0.3, np.array([1, 0, 0, 1, 0, 0, 1, 0])
    values = [solve_lp(scores, labels, precision().subject_to(recall() >= t))[1] for t in (0.0, 0.3, 0.6, 0.9, 1.0)]
    assert values[0] == pytest.approx(solve_lp(scores, labels, precision())[1], abs=1e-8)
    assert (np.diff(values) <= 1e-9).all()
    assert values[-1] < values[0] - 0.01


def test_the_factorisation_of_the_payoffs_is_low_rank():
    for name in PLAIN:
        game = game_of(NAMED[name](), 200, CPU)
        assert game.scale.numel() <= 40
        rebuilt = game.left @ (game.scale.unsqueeze(-1) * game.right.T)
        torch.testing.assert_close(rebuilt, game.joint, atol=1e-12, rtol=1e-12)


def test_utilities_of_ones_own():
    metric = Metric((3 * TP + TN) / ALL)
    rng = np.random.default_rng(6)
    scores, labels = rng.normal(size=4) * 0.5, np.zeros(4, int)
    assert solve_lp(scores, labels, metric)[1] == pytest.approx(brute_force_value(scores, labels, metric), abs=1e-8)
