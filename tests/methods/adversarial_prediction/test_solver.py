"""The batched solvers: against the linear program, a plain recursion, and degenerate batches."""

import numpy as np
import pytest
import torch

from robustrun.methods.adversarial_prediction import (
    ADMM,
    ALL,
    NAMED,
    TN,
    TP,
    Metric,
    accuracy,
    f1,
    f2,
    game_of,
    kappa,
    parse_metric,
    precision,
    project,
    recall,
    solve_game,
    solve_lp,
)
from robustrun.methods.adversarial_prediction.admm import State, _Step
from robustrun.methods.adversarial_prediction.exact import separable_form

CPU = torch.device("cpu")


def _batch(games, n, scale=0.5, seed=0, positives=0.3):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(games, n, generator=generator, dtype=torch.float64) * scale
    return scores, (torch.rand(games, n, generator=generator) < positives).long()


@pytest.mark.parametrize("name", NAMED)
def test_bounds_enclose_the_linear_program(name):
    scores, labels = _batch(3, 7)
    metric = NAMED[name]()
    solution = solve_game(scores, labels, metric, admm=ADMM(tolerance=5e-4, max_iterations=1000, check_every=20))
    for i in range(3):
        value = solve_lp(scores[i], labels[i], metric)[1]
        assert value <= solution.value[i] + 1e-8
        assert value >= solution.value[i] - solution.gap[i] - 1e-8
        assert solution.value[i] - value < 5e-3


@pytest.mark.parametrize("scale", [0.1, 1.0])
def test_the_gap_closes_at_the_recipes_batch_size(scale):
    gaps = []
    for name in ("precision", "f2", "kappa"):
        scores, labels = _batch(2, 25, scale)
        solution = solve_game(scores, labels, NAMED[name](), admm=ADMM(tolerance=3e-3, max_iterations=1000))
        gaps += solution.gap.tolist()
    assert np.median(gaps) < 5e-3
    assert max(gaps) < 0.05


def test_constrained_lower_bound_comes_close():
    metric = parse_metric("precision st recall >= 0.8")
    scores, labels = _batch(1, 25, 0.3, seed=3)
    solution = solve_game(scores, labels, metric, admm=ADMM(tolerance=0, max_iterations=1000, check_every=50))
    value = solve_lp(scores[0], labels[0], metric)[1]
    assert value - 0.01 <= solution.value[0] - solution.gap[0] <= value + 1e-8


def test_the_predictor_meets_the_constraint_with_equality_where_it_is_active():
    from robustrun.methods.adversarial_prediction import Constraints

    metric = precision().subject_to(recall() >= 0.8)
    scores, labels = _batch(4, 12, 0.05)
    labels[:, 0] = 1
    play = ADMM(tolerance=1e-3, max_iterations=2000).solve(game_of(metric, 12, CPU), scores, labels)
    reached = Constraints.of(metric, labels).values(play.predictor)[:, 0]
    assert (reached >= 0.8 - 1e-9).all()
    assert (reached <= 0.83).all()


def test_the_plain_recursion():
    """100 iterations at rho = 1, alpha = 1 against the same recursion on dense matrices with a dense inverse."""
    n, metric = 6, f2()
    game = game_of(metric, n, CPU)
    scores = _batch(1, n)[0][0].sort(descending=True).values
    a, b = game.joint.numpy(), game.totals.numpy()
    linear = np.kron(a.T, np.eye(n)) + np.kron(b.T, np.ones((n, n)))  # vec X (l, i) -> vec Z (k, i)
    offset = np.repeat(game.predictor_bonus.numpy(), n)
    inverse = np.linalg.inv(np.eye(n * n) + linear.T @ linear)
    tilt = (game.adversary_bonus.numpy()[:, None] - scores.numpy()).ravel()

    def onto(x):
        return project(torch.from_numpy(x.reshape(n, n)))[0].numpy().ravel()

    x = w = u = np.zeros(n * n)
    for _ in range(100):
        z_of_x = linear @ x + offset
        q = onto(x + w - tilt)
        z = z_of_x + u - onto(z_of_x + u)
        x = inverse @ (q - w + linear.T @ (z - u - offset))
        w, u = w + x - q, u + linear @ x + offset - z
    step = _Step(ADMM(penalty=1.0, relaxation=1.0), game, scores[None], None)
    state = State.cold(1, n, 0, CPU)
    state = state._replace(payoffs=step.payoffs(state.free, state.weights))
    for _ in range(100):
        state, adversary, _ = step(state)
    np.testing.assert_allclose(adversary[0].numpy().ravel(), q, atol=1e-8)
    np.testing.assert_allclose(state.free[0].numpy().ravel(), x, atol=1e-8)


def test_batched_games_are_single_games():
    scores, labels = _batch(5, 9)
    options = ADMM(tolerance=5e-3, max_iterations=200)
    for metric in (f1(), parse_metric("precision st recall >= 0.7")):
        together = solve_game(scores, labels, metric, admm=options)
        assert len(set(together.iterations.tolist())) > 1
        for i in range(5):
            alone = solve_game(scores[i : i + 1], labels[i : i + 1], metric, admm=options)
            assert alone.iterations[0] == together.iterations[i]
            torch.testing.assert_close(alone.marginals[0], together.marginals[i], atol=1e-8, rtol=0)


def test_permutations_permute():
    scores, labels = _batch(1, 11)
    order = torch.randperm(11, generator=torch.Generator().manual_seed(1))
    left = solve_game(scores, labels, kappa())
    right = solve_game(scores[:, order], labels[:, order], kappa())
    torch.testing.assert_close(left.marginals[:, order], right.marginals)


def test_a_warm_start_needs_fewer_iterations():
    scores, labels = _batch(8, 25)
    options = ADMM(tolerance=0.02, max_iterations=500, check_every=5)
    cold = solve_game(scores, labels, f2(), admm=options)
    moved = scores + 0.02 * torch.randn(scores.shape, generator=torch.Generator().manual_seed(2), dtype=scores.dtype)
    warm = solve_game(moved, labels, f2(), admm=options, start=cold.state)
    assert (cold.gap <= 0.02).all()
    assert (warm.gap <= 0.02).all()
    assert warm.iterations.sum() < 0.5 * cold.iterations.sum()


def test_over_relaxation_helps():
    scores, labels = _batch(12, 25)
    plain, relaxed = (
        solve_game(scores, labels, f1(), admm=ADMM(tolerance=0, max_iterations=100, relaxation=alpha)).gap.mean()
        for alpha in (1.0, 1.6)
    )
    assert relaxed < 0.7 * plain


def test_accuracy_has_a_closed_form():
    n = 7
    scores, labels = _batch(4, n, 0.3)
    solution = solve_game(scores, labels, accuracy())
    s = n * scores
    per_sample = torch.where(s > 1, 1 - s, torch.where(s < -1, torch.ones_like(s), (1 - s) / 2))
    torch.testing.assert_close(solution.value, per_sample.mean(-1))
    expected = torch.where(s > 1, 1.0, torch.where(s < -1, 0.0, 0.5)).to(scores)
    torch.testing.assert_close(solution.marginals, expected)
    assert solution.value[0].item() == pytest.approx(solve_lp(scores[0], labels[0], accuracy())[1], abs=1e-8)


def test_linear_utilities_have_a_closed_form():
    scores, labels = _batch(3, 6, 0.4)
    for metric in (Metric((3 * TP + TN) / ALL), parse_metric("(tp - 0.3*fp)/all"), parse_metric("(tn - 2*fn)/all + 1")):
        assert separable_form(metric, 6) is not None
        solution = solve_game(scores, labels, metric)
        for i in range(3):
            assert solution.value[i].item() == pytest.approx(solve_lp(scores[i], labels[i], metric)[1], abs=1e-8)
    for metric in (f1(), recall(), kappa(), accuracy().subject_to(recall() >= 0.5)):
        assert separable_form(metric, 6) is None


@pytest.mark.parametrize("name", NAMED)
def test_saturation(name):
    metric = NAMED[name]()
    margin = 2.5
    y = torch.tensor([[0.0] * 6, [1.0] * 6, [1.0, 0, 0, 1, 0, 0]])
    scores = margin * (2 * y - 1)
    solution = solve_game(scores, y, metric, admm=ADMM(tolerance=1e-6, max_iterations=1000))
    assert (-(solution.value + (scores * y).sum(-1))).tolist() == pytest.approx([-1.0] * 3, abs=1e-3)
    torch.testing.assert_close(solution.marginals, y, atol=2e-3, rtol=0)


def test_degenerate_batches():
    options = ADMM(max_iterations=200)
    for metric in (f1(), kappa(), accuracy(), parse_metric("precision st recall >= 0.8")):
        for scores in (torch.zeros(2, 1), torch.zeros(2, 5), torch.tensor([[1e6] * 4, [-1e6] * 4])):
            for y in (torch.zeros_like(scores), torch.ones_like(scores)):
                solution = solve_game(scores, y, metric, admm=options)
                assert torch.isfinite(solution.value).all()
                assert ((solution.marginals >= 0) & (solution.marginals <= 1)).all()
                if scores.abs().max() > 1:
                    torch.testing.assert_close(solution.marginals, (scores > 0).to(scores), atol=1e-6, rtol=0)
    one = torch.tensor([[0.3]])
    values = [solve_game(one, one.ceil(), NAMED[m](), method="lp").value for m in ("f1", "precision", "recall", "gpr")]
    assert torch.stack(values).flatten().tolist() == pytest.approx([(1 - 0.3) / 2] * 4)


def test_wrong_input():
    zeros = torch.zeros(1, 3)
    with pytest.raises(ValueError, match="diverged"):
        solve_game(torch.tensor([[float("nan"), 0.0, 0.0]]), zeros, f1())
    with pytest.raises(ValueError, match="0 or 1"):
        solve_game(zeros, zeros - 1, f1())
    with pytest.raises(ValueError, match="both be"):
        solve_game(zeros, torch.zeros(3), f1())
    with pytest.raises(ValueError, match="at least one"):
        solve_game(torch.zeros(1, 0), torch.zeros(1, 0), f1())


def test_two_solvers_at_once_do_not_touch_each_other():
    scores, labels = _batch(2, 8)
    alone = solve_game(scores[:1], labels[:1], f1())
    solve_game(scores[1:], labels[1:], f2())
    torch.testing.assert_close(solve_game(scores[:1], labels[:1], f1()).marginals, alone.marginals, atol=0, rtol=0)
