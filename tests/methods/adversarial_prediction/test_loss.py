"""The loss: its value, its gradient, and that training with it raises the metric."""

import numpy as np
import pytest
import torch
from torch import nn

from robustrun.methods.adversarial_prediction import AdversarialPredictionLoss, accuracy, f_beta, solve_lp


def _data(seed, n=6):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(n, generator=generator, dtype=torch.float64) * 0.4
    return scores.requires_grad_(), (torch.rand(n, generator=generator) < 0.4).double()


def test_value_and_gradient_with_the_exact_solver():
    loss_of = AdversarialPredictionLoss("f_beta(2)", method="lp")
    scores, labels = _data(0)
    loss = loss_of(scores, labels)
    q, value = solve_lp(scores.detach(), labels, f_beta(2))
    assert loss.item() == pytest.approx(-(value + (scores * labels).sum().item()), abs=1e-9)
    loss.backward()
    np.testing.assert_allclose(scores.grad, q - labels.numpy(), atol=1e-9)
    for i in range(6):
        step = 1e-5 * torch.eye(6, dtype=torch.float64)[i]
        slope = (loss_of(scores + step, labels) - loss_of(scores - step, labels)).item() / 2e-5
        assert slope == pytest.approx(scores.grad[i].item(), abs=1e-5)


def test_the_incoming_gradient_counts():
    for method in ("lp", "admm"):
        loss_of = AdversarialPredictionLoss("f1", method=method, warm_start=False)
        scores, labels = _data(1)
        (single,) = torch.autograd.grad(loss_of(scores, labels), scores)
        (scaled,) = torch.autograd.grad(3 * loss_of(scores, labels), scores)
        torch.testing.assert_close(scaled, 3 * single)
        assert single.any()


def test_convex():
    loss_of = AdversarialPredictionLoss("kappa", method="lp")
    for seed in range(5):
        (a, labels), (b, _) = _data(seed), _data(seed + 100)
        assert loss_of((a + b) / 2, labels) <= (loss_of(a, labels) + loss_of(b, labels)) / 2 + 1e-9


def test_several_games_and_one():
    loss_of = AdversarialPredictionLoss("f1", warm_start=False, tolerance=1e-3)
    scores = torch.randn(3, 7, generator=torch.Generator().manual_seed(0), requires_grad=True)
    labels = (torch.rand(3, 7, generator=torch.Generator().manual_seed(1)) < 0.5).float()
    losses = loss_of(scores, labels)
    assert losses.shape == (3,)
    assert losses.dtype == torch.float32
    for i in range(3):
        assert loss_of(scores[i], labels[i]).item() == pytest.approx(losses[i].item(), abs=1e-6)
    losses.sum().backward()
    assert scores.grad.shape == (3, 7)
    assert loss_of(scores[:1, :1].flatten(), labels[0, :1]).ndim == 0


def test_half_precision_scores():
    scores = torch.randn(5, generator=torch.Generator().manual_seed(0)).bfloat16().requires_grad_()
    loss = AdversarialPredictionLoss("f1")(scores, torch.tensor([1, 0, 0, 1, 0]))
    loss.backward()
    assert scores.grad.dtype == torch.bfloat16
    assert torch.isfinite(scores.grad).all()


def test_no_second_derivative_and_bad_shapes():
    loss_of = AdversarialPredictionLoss(accuracy())
    scores, labels = _data(2)
    (gradient,) = torch.autograd.grad(loss_of(scores, labels), scores, create_graph=True)
    with pytest.raises(RuntimeError, match="does not require grad"):
        gradient.sum().backward()
    with pytest.raises(ValueError, match="shape"):
        loss_of(scores, labels[:-1])
    with pytest.raises(ValueError, match="must be"):
        loss_of(scores[:, None, None], labels[:, None, None])


def test_warm_states_belong_to_the_module():
    scores, labels = _data(3, 25)
    one, other = (AdversarialPredictionLoss("f1", tolerance=1e-2, max_iterations=500) for _ in range(2))
    first = one(scores, labels)
    cold = one.last.iterations.item()
    one(scores, labels)
    assert one.last.iterations.item() < cold
    assert other(scores, labels).item() == first.item()


def _train(X, y, loss_of, lr):
    model = nn.Linear(2, 1)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    optimiser = torch.optim.SGD(model.parameters(), lr=lr)
    batches = torch.randperm(1000, generator=torch.Generator().manual_seed(0)).split(25)
    for epoch in range(8):
        for i in torch.randperm(40, generator=torch.Generator().manual_seed(epoch)).tolist():
            optimiser.zero_grad()
            loss_of(model(X[batches[i]]).flatten(), y[batches[i]]).backward()
            optimiser.step()
    return (model(X).flatten() >= 0).int().numpy()


def test_training_on_f_raises_f():
    """1,000 points, 10 % positives shifted by (1.5, 1.5): cross-entropy predicts too few of them."""
    random = np.random.default_rng(2)
    y = np.zeros(1000, int)
    y[random.permutation(1000)[:100]] = 1
    X = torch.from_numpy(random.normal(size=(1000, 2)) + 1.5 * y[:, None]).float()
    labels = torch.from_numpy(y).float()
    entropy = _train(X, labels, nn.BCEWithLogitsLoss(), 5e-2)
    for beta, margin in ((1, 0.05), (2, 0.15)):
        metric = f_beta(beta)
        options = {"tolerance": 0.1, "max_iterations": 10}
        trained = _train(X, labels, AdversarialPredictionLoss(metric, **options), 3e-3)
        assert metric(trained, y) > metric(entropy, y) + margin
        assert trained[y == 1].mean() > 0.6
