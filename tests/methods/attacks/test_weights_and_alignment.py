"""Adversarial weight perturbation and gradient alignment, against closed forms of small networks."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from robustrun.methods.attacks import cross_entropy, gradient_alignment, kl_divergence, weight_perturbation


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).double()


X, Y = torch.randn(6, 5, generator=torch.Generator().manual_seed(1)).double(), torch.tensor([0, 1, 2, 0, 1, 2])


def test_weights_climb_by_gamma_times_their_norm_and_come_back_to_the_last_bit():
    model, gamma = net(), 0.05
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    attack = weight_perturbation(model, lambda: F.cross_entropy(model(X), Y), gamma)
    start = F.cross_entropy(model(X), Y).item()
    attack.apply()
    attack.apply()  # once is enough
    for name, p in model.named_parameters():
        moved = (p.detach() - before[name]).norm()
        assert moved == pytest.approx(gamma * before[name].norm().item() if p.ndim > 1 else 0.0, rel=1e-9)
    assert F.cross_entropy(model(X), Y).item() > start
    attack.undo()
    attack.undo()
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert all(p.grad is None for p in model.parameters())


def test_a_weight_without_a_gradient_stays():
    model = net()
    with torch.no_grad():
        model[2].weight.zero_()  # then the first layer has no influence
    before = model[0].weight.detach().clone()
    attack = weight_perturbation(model, lambda: F.cross_entropy(model(X), Y), 0.5)
    attack.apply()
    assert torch.equal(model[0].weight, before)
    assert model[2].weight.isfinite().all()


def test_a_linear_two_class_model_is_perfectly_aligned():
    """Its input gradients are multiples, with one sign, of one vector."""
    model = nn.Linear(5, 2).double()
    noise = torch.randn_like(X)
    assert gradient_alignment(model, X, Y % 2, noise).tolist() == pytest.approx([1.0] * 6, abs=1e-9)


def test_alignment_is_the_cosine_of_the_gradients():
    model, noise = net(), 0.5 * torch.randn(6, 5, generator=torch.Generator().manual_seed(2)).double()
    found = gradient_alignment(model, X, Y, noise)
    for value, x, y, shift in zip(found, X, Y, noise, strict=True):
        gradient = torch.func.grad(lambda point, label=y: F.cross_entropy(model(point), label))
        a, b = gradient(x), gradient(x + shift)
        assert value.item() == pytest.approx((a @ b / (a.norm() * b.norm())).item(), abs=1e-9)


def test_alignment_is_differentiable_in_the_parameters():
    model = net()
    value = gradient_alignment(model, X, Y, torch.full_like(X, 0.3)).mean()
    gradient = torch.autograd.grad(value, model[0].weight)[0]
    step = 1e-6
    with torch.no_grad():
        model[0].weight[2, 3] += step
    moved = gradient_alignment(model, X, Y, torch.full_like(X, 0.3)).mean()
    assert ((moved - value) / step).item() == pytest.approx(gradient[2, 3].item(), rel=1e-3, abs=1e-7)


def test_a_constant_network_has_alignment_zero_and_no_nan():
    model = net()
    with torch.no_grad():
        model[2].weight.zero_()
    value = gradient_alignment(model, X, Y, torch.ones_like(X))
    assert torch.equal(value, torch.zeros_like(value))
    gradients = torch.autograd.grad(value.sum(), list(model.parameters()), allow_unused=True)
    assert all(g is None or g.isfinite().all() for g in gradients)


def test_the_divergence_vanishes_with_its_gradient_where_predictions_agree():
    logits = torch.randn(4, 3).double().requires_grad_()
    value = kl_divergence(logits, logits.detach().softmax(1))
    assert value.tolist() == pytest.approx([0.0] * 4, abs=1e-12)
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    assert gradient.abs().max() < 1e-12


def test_cross_entropy_takes_shares():
    logits, shares = torch.randn(4, 3), torch.tensor([[0.2, 0.8, 0.0]] * 4)
    by_hand = 0.2 * cross_entropy(logits, torch.zeros(4, dtype=torch.long))
    by_hand += 0.8 * cross_entropy(logits, torch.ones(4, dtype=torch.long))
    assert torch.allclose(cross_entropy(logits, shares), by_hand, atol=1e-6)
