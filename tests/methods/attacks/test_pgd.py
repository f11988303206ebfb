import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from robustrun.methods.attacks import Ball, fgsm, norms, perturb, pgd
from tests.methods.attacks.networks import Counted, Linear2, convnet, mlp


def plain_pgd(net, x, y, norm, epsilon, alpha, steps, starts):
    """The papers' loop, as written: every example through the network at every step, largest loss kept."""
    ball = Ball(x, norm, epsilon)
    best_loss, best_delta = torch.zeros(len(x)), torch.zeros_like(x)
    for delta in starts:
        delta = ball.project(delta)
        for _ in range(steps):
            leaf = delta.clone().requires_grad_()
            logits = net(x + leaf)
            (gradient,) = torch.autograd.grad(F.cross_entropy(logits, y), leaf)
            moves = logits.argmax(1) == y
            delta = torch.where(moves.view(-1, 1, 1, 1), ball.step(delta, gradient, alpha), delta)
        loss = F.cross_entropy(net(x + delta), y, reduction="none").detach()
        better = loss >= best_loss
        best_delta[better], best_loss[better] = delta[better], loss[better]
    return best_delta, best_loss


@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 0.04), ("l2", 0.3)])
def test_compaction_changes_nothing(norm, epsilon):
    net, x = mlp(), torch.rand(200, 1, 4, 4)
    y = net(x).argmax(1)
    ball = Ball(x, norm, epsilon)
    starts = [ball.start("uniform") for _ in range(3)]
    result = pgd(
        net,
        x,
        y,
        norm=norm,
        epsilon=epsilon,
        alpha=epsilon / 4,
        steps=10,
        restarts=3,
        noise=torch.stack(starts),
    )
    delta, loss = plain_pgd(net, x, y, norm, epsilon, epsilon / 4, 10, starts)
    torch.testing.assert_close(result.delta, delta, atol=1e-6, rtol=0)
    torch.testing.assert_close(result.loss, loss, atol=1e-5, rtol=1e-5)
    assert torch.equal(result.success, net(x + delta).argmax(1) != y)
    assert 20 < result.success.sum() < 180


def test_counts_are_what_the_network_saw():
    x = torch.rand(100, 1, 4, 4)
    for select in ("max_loss", "any_break"):
        net = Counted(mlp())
        y = net.network(x).argmax(1)
        result = pgd(net, x, y, epsilon=0.04, alpha=0.01, steps=10, restarts=3, select=select)
        assert result.forwards == net.examples
        assert result.forwards < 100 * 11 * 3
        assert result.backwards < result.forwards


def test_broken_examples_never_move_and_cost_one_look():
    net, x = Counted(mlp()), torch.rand(20, 1, 4, 4)
    y = (net.network(x).argmax(1) + 1) % 5
    result = pgd(net, x, y, epsilon=0.0, alpha=0.1, steps=50, restarts=4)
    assert result.success.all()
    assert net.calls == 4
    net.calls = 0
    result = pgd(net, x, y, epsilon=0.1, alpha=0.1, steps=50, restarts=4, select="any_break")
    assert net.calls == 1
    assert not result.delta.any()


def test_linear_model_robust_accuracy():
    torch.manual_seed(0)
    w, x, y = (
        torch.randn(12, dtype=torch.float64),
        torch.rand(500, 12, dtype=torch.float64),
        torch.randint(2, (500,)),
    )
    x = 0.4 + 0.2 * x
    net, sign = Linear2(w, b=-0.5 * w.sum().item()), 2 * y - 1
    signed = sign * (x - 0.5).matmul(w)
    clean = signed > 0
    for norm, dual in (("linf", w.abs().sum()), ("l2", w.norm())):
        epsilon = (0.2 / dual).item()
        robust = signed > epsilon * dual
        assert 50 < robust.sum() < clean.sum()
        one = fgsm(net, x, y, norm=norm, epsilon=epsilon)
        many = pgd(net, x, y, norm=norm, epsilon=epsilon, alpha=epsilon, steps=60, freeze=False)
        assert torch.equal(~many.success, robust)
        assert torch.equal(~one.success, robust)
        direction = w.sign() if norm == "linf" else w / w.norm()
        torch.testing.assert_close(many.delta, -sign[:, None] * epsilon * direction, atol=1e-6, rtol=0)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("loss", ["cross_entropy", "margin", "dlr"])
@pytest.mark.parametrize("freeze", [True, False])
def test_invariants(norm, loss, freeze):
    net, x = convnet().train(), torch.rand(12, 3, 8, 8)
    y, epsilon = torch.randint(4, (12,)), torch.linspace(0, 0.5, 12)
    state = {k: v.clone() for k, v in net.state_dict().items()}
    net[0].eval()
    result = pgd(
        net,
        x,
        y,
        norm=norm,
        epsilon=epsilon,
        alpha=epsilon / 3,
        steps=6,
        restarts=2,
        loss=loss,
        freeze=freeze,
    )
    assert (norms(result.delta, norm) <= epsilon * (1 + 1e-6)).all()
    assert (x + result.delta).min() >= -1e-7
    assert (x + result.delta).max() <= 1 + 1e-7
    assert result.delta.isfinite().all()
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())  # running statistics too
    assert all(p.grad is None and p.requires_grad for p in net.parameters())
    assert net.training
    assert not net[0].training
    net.eval()
    assert torch.equal(result.success, net(x + result.delta).argmax(1) != y)


@pytest.mark.parametrize("compact", [True, False])
def test_when_an_example_breaks_is_when_a_shorter_attack_breaks_it(compact):
    net, x = mlp(hidden=64, classes=10), torch.rand(150, 1, 4, 4)
    y = net(x).argmax(1)
    y[:5] = (y[:5] + 1) % 10
    noise = torch.zeros(1, *x.shape).uniform_(-0.1, 0.1)
    attack = {"epsilon": 0.1, "alpha": 0.015, "noise": noise, "keep_mode": not compact}
    whole = pgd(net, x, y, steps=6, **attack)
    assert len(whole.broken_after.unique()) > 3
    for steps in range(7):
        broken = pgd(net, x, y, steps=steps, **attack).success
        assert torch.equal((whole.broken_after >= 0) & (whole.broken_after <= steps), broken)


def test_restarts_are_counted_one_after_another():
    net, x = mlp(hidden=64, classes=10), torch.rand(150, 1, 4, 4)
    y = net(x).argmax(1)
    attack = {"epsilon": 0.05, "alpha": 0.01, "steps": 3, "select": "any_break"}
    noise = torch.zeros(3, *x.shape).uniform_(-0.05, 0.05)
    after = pgd(net, x, y, restarts=3, noise=noise, **attack).broken_after
    for number in (1, 2, 3):
        broken = pgd(net, x, y, restarts=number, noise=noise, **attack).success
        assert torch.equal((after >= 0) & (after <= 3 * number), broken)
    assert (after > 3).any()


def test_more_restarts_never_help_the_defender():
    net, x = mlp(), torch.rand(300, 1, 4, 4)
    y = net(x).argmax(1)
    ball = Ball(x, "linf", 0.03)
    starts = torch.stack([ball.start() for _ in range(6)])
    options = {"epsilon": 0.03, "alpha": 0.01, "steps": 4, "noise": starts}
    previous, robust = None, math.inf
    for restarts in range(1, 7):
        largest = pgd(net, x, y, restarts=restarts, **options)
        strict = pgd(net, x, y, restarts=restarts, select="any_break", **options)
        assert previous is None or (largest.loss >= previous - 1e-6).all()
        survivors = (~strict.success).sum()
        assert survivors <= robust
        assert survivors <= (~largest.success).sum()
        assert torch.equal(strict.success, net(x + strict.delta).argmax(1) != y)
        previous, robust = largest.loss, survivors


def test_reaches_the_maximum_that_a_grid_finds():
    side = torch.linspace(-0.3, 0.3, 121)
    grid = torch.cartesian_prod(side, side)
    x, reached, broken = torch.full((1, 2), 0.5), 0, 0
    for seed in range(12):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))
        y = net(x).argmax(1)
        with torch.no_grad():
            logits = net(x + grid)
        maximum = F.cross_entropy(logits, y.expand(len(grid)), reduction="none").max()
        options = {"epsilon": 0.3, "alpha": 0.04, "steps": 50, "restarts": 10}
        result = pgd(net, x, y, freeze=False, **options)
        reached += result.loss.item() >= 0.98 * maximum.item()
        strict = pgd(net, x, y, select="any_break", **options)
        broken += strict.success.item() >= (logits.argmax(1) != y).any().item()
    assert reached >= 11
    assert broken >= 11


def test_targeted():
    net, x = mlp(), torch.rand(100, 1, 4, 4)
    goal = (net(x).argmax(1) + 2) % 5
    # Where the target is the third class or below, the plain DLR loss has no gradient: it reaches fewer.
    for loss, reached in (("cross_entropy", 0.9), ("margin", 0.9), ("dlr", 0.2)):
        result = pgd(net, x, goal, epsilon=0.6, alpha=0.1, steps=20, targeted=True, loss=loss)
        assert torch.equal(result.success, net(x + result.delta).argmax(1) == goal)
        assert result.success.double().mean() > reached


def test_keeping_the_mode_is_the_training_loop():
    x, y = torch.rand(10, 3, 8, 8), torch.randint(4, (10,))
    noise = 0.05 * torch.rand_like(x)
    kept, trained = convnet().train(), convnet().train()
    result = pgd(kept, x, y, epsilon=0.1, alpha=0.05, steps=3, noise=noise[None], keep_mode=True)
    delta = perturb(trained, x, y, epsilon=0.1, alpha=0.05, steps=3, noise=noise, freeze=True)
    assert torch.equal(result.delta, delta)
    assert kept[1].num_batches_tracked == trained[1].num_batches_tracked + 1  # the final look


def test_degenerate():
    net, x = mlp(), torch.rand(5, 1, 4, 4)
    y = net(x).argmax(1)
    assert not pgd(net, x, y, epsilon=0.0, alpha=0.1, steps=3).success.any()
    start = pgd(net, x, y, epsilon=0.1, alpha=0.1, steps=0, noise=0.05 * torch.ones(1, *x.shape))
    torch.testing.assert_close(start.delta, torch.minimum(torch.tensor(0.05), 1 - x))
    assert pgd(net, x[:1], y[:1], epsilon=0.1, alpha=0.1, steps=2).delta.shape == (1, 1, 4, 4)
    assert pgd(net, x[:0], y[:0], epsilon=0.1, alpha=0.1, steps=2).delta.shape == (0, 1, 4, 4)
    with torch.no_grad():
        assert torch.equal(net(x).argmax(1), y)
        pgd(net, x, y, epsilon=0.1, alpha=0.1, steps=1)  # makes its own gradients
    with pytest.raises(ValueError, match="restart"):
        pgd(net, x, y, epsilon=0.1, alpha=0.1, steps=1, restarts=0)
    with pytest.raises(ValueError, match="select"):
        pgd(net, x, y, epsilon=0.1, alpha=0.1, steps=1, select="best")
