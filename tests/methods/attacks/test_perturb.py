import pytest
import torch
import torch.nn.functional as F
from torch import nn

from robustrun.methods.attacks import batch_norm_mode, norms, perturb
from tests.methods.attacks.networks import Linear2, convnet, mlp


def test_linear_model_closed_form_whatever_the_start():
    torch.manual_seed(0)
    w = torch.randn(20)
    x, y = 0.4 + 0.2 * torch.rand(64, 20), torch.randint(2, (64,))
    delta = perturb(Linear2(w), x, y, epsilon=0.1, alpha=0.2)
    torch.testing.assert_close(delta, -(2 * y[:, None] - 1) * 0.1 * w.sign(), atol=1e-7, rtol=0)


def test_alpha_epsilon_from_zero_is_fgsm():
    net, x = mlp(), torch.rand(8, 1, 4, 4)
    y = net(x).argmax(1)
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(net(leaf), y), leaf)
    expected = (x + 0.1 * gradient.sign()).clamp(0, 1) - x
    torch.testing.assert_close(perturb(net, x, y, epsilon=0.1, alpha=0.1, start="zero"), expected)


def test_distribution_of_fast_training_perturbations():
    # A positive gradient and alpha = 1.25 eps: eps with probability 5/8, else uniform on (eps/4, eps).
    torch.manual_seed(0)
    x, y = torch.full((1000, 1000), 0.5), torch.ones(1000, dtype=torch.long)
    delta = perturb(Linear2(-torch.ones(1000)), x, y, epsilon=0.1, alpha=0.125) / 0.1
    assert (delta > 1 - 1e-6).double().mean().item() == pytest.approx(0.625, abs=2e-3)
    assert delta.double().mean().item() == pytest.approx(0.859375, abs=2e-3)
    assert delta.min() >= 0.25


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("init_box", ["none", "project", "clamp_forward"])
@pytest.mark.parametrize("start", ["zero", "uniform", "corners", "wide", "gaussian", "cube"])
def test_invariants(norm, init_box, start):
    net, x = convnet().train(), torch.rand(6, 3, 8, 8).round(decimals=1)
    net[0].bias.requires_grad_(False)
    y, epsilon = torch.randint(4, (6,)), 0.1 if norm == "linf" else 0.8
    parameters = [p.clone() for p in net.parameters()]
    wanted = [p.requires_grad for p in net.parameters()]
    for steps in (1, 3):
        delta = perturb(
            net, x, y, norm=norm, epsilon=epsilon, alpha=epsilon, steps=steps, init_box=init_box, start=start
        )
        assert (norms(delta, norm) <= epsilon * (1 + 1e-6)).all()
        assert (x + delta).min() >= -1e-7
        assert (x + delta).max() <= 1 + 1e-7
        assert delta.isfinite().all()
        assert not delta.requires_grad
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), parameters, strict=True))
    assert all(p.grad is None for p in net.parameters())
    assert [p.requires_grad for p in net.parameters()] == wanted
    assert net.training


def test_box_conventions_of_the_start():
    """On black pixels: `none` steps from below the box, `project` from its edge, `clamp_forward` does not."""
    x, y = torch.zeros(1, 4), torch.tensor([0])
    noise = torch.tensor([[-0.2, -0.05, 0.05, 0.2]])
    net = Linear2(torch.ones(4))  # the loss of class 0 grows with every pixel

    def attack(init_box):
        return perturb(net, x, y, epsilon=0.3, alpha=0.15, noise=noise, init_box=init_box)

    torch.testing.assert_close(attack("none"), torch.tensor([[0.0, 0.1, 0.2, 0.3]]))
    torch.testing.assert_close(attack("project"), torch.tensor([[0.15, 0.15, 0.2, 0.3]]))
    torch.testing.assert_close(attack("clamp_forward"), torch.tensor([[0.0, 0.0, 0.2, 0.3]]))


def test_pixel_space_equals_normalised_space():
    torch.manual_seed(0)
    net = convnet(norm=False).double()
    mean = torch.tensor([0.49, 0.48, 0.45], dtype=torch.float64).view(1, 3, 1, 1)
    std = torch.tensor([0.25, 0.24, 0.26], dtype=torch.float64).view(1, 3, 1, 1)
    x, y = torch.rand(5, 3, 8, 8, dtype=torch.float64), torch.randint(4, (5,))
    noise = 0.1 * (2 * torch.rand_like(x) - 1)
    options = {"steps": 5, "init_box": "project"}
    pixel = perturb(lambda v: net((v - mean) / std), x, y, epsilon=0.1, alpha=0.03, noise=noise, **options)
    normalised = perturb(
        net,
        (x - mean) / std,
        y,
        epsilon=0.1 / std,
        alpha=0.03 / std,
        noise=noise / std,
        box=((0 - mean) / std, (1 - mean) / std),
        **options,
    )
    torch.testing.assert_close(std * normalised, pixel, atol=1e-12, rtol=0)


def test_frozen_examples_stay_at_their_start():
    net, x = mlp(), torch.rand(40, 1, 4, 4)
    noise = 0.05 * (2 * torch.rand_like(x) - 1)
    start = (x + noise).clamp(0, 1) - x
    y = net(x + start).argmax(1)
    wrong = torch.arange(40) % 2 == 0
    y[wrong] = (y[wrong] + 1) % 5
    delta = perturb(net, x, y, epsilon=0.05, alpha=0.02, steps=4, noise=noise, freeze=True)
    torch.testing.assert_close(delta[wrong], start[wrong])
    assert ((delta - start).abs().flatten(1).amax(1) > 0)[~wrong].all()


def test_scaling_the_loss_changes_nothing():
    net, x = mlp(), torch.rand(10, 1, 4, 4)
    y = net(x).argmax(1)
    for norm, scale in (("linf", 1024.0), ("linf", 2.0**-10), ("l2", 1e3), ("l2", 1e-3)):
        plain, scaled = (
            perturb(
                net,
                x,
                y,
                norm=norm,
                epsilon=0.1,
                alpha=0.05,
                steps=3,
                start="zero",
                loss=lambda z, t, c=c: c * F.cross_entropy(z, t, reduction="none"),
            )
            for c in (1.0, scale)
        )
        torch.testing.assert_close(scaled, plain, rtol=0, atol=0 if norm == "linf" else 1e-6)


def test_mixup_loss():
    net, x = mlp(), torch.rand(10, 1, 4, 4)
    y, other = torch.randint(5, (10,)), torch.randint(5, (10,))

    def mixed(weight, a, b):
        def loss(logits, _):
            return weight * F.cross_entropy(logits, a, reduction="none") + (1 - weight) * F.cross_entropy(
                logits, b, reduction="none"
            )

        return perturb(net, x, y, epsilon=0.1, alpha=0.04, steps=3, start="zero", loss=loss)

    plain = perturb(net, x, y, epsilon=0.1, alpha=0.04, steps=3, start="zero")
    assert torch.equal(mixed(1.0, y, other), plain)
    assert torch.equal(mixed(0.25, y, other), mixed(0.75, other, y))


def test_n_fgsm_may_leave_the_ball_but_not_the_box():
    torch.manual_seed(0)
    x, y = torch.rand(4, 50), torch.ones(4, dtype=torch.long)
    delta = perturb(
        Linear2(-torch.ones(50)), x, y, epsilon=0.1, alpha=0.1, start="wide", init_box="none", clip_ball=False
    )
    assert 0.2 < delta.max() <= 0.3 + 1e-6
    assert (x + delta).min() >= -1e-7
    assert (x + delta).max() <= 1 + 1e-7


@pytest.mark.parametrize(("steps", "updates"), [(1, 1), (7, 7)])
def test_batch_norm_counts_every_step_unless_told_not_to(steps, updates):
    net, x, y = convnet().train(), torch.rand(6, 3, 8, 8), torch.randint(4, (6,))
    counter = net[1].num_batches_tracked
    perturb(net, x, y, epsilon=0.1, alpha=0.05, steps=steps)
    assert counter.item() == updates
    mean = net[1].running_mean.clone()
    for mode in ("frozen", "eval"):
        with batch_norm_mode(net, mode):
            perturb(net, x, y, epsilon=0.1, alpha=0.05, steps=steps)
        assert counter.item() == updates
        assert torch.equal(net[1].running_mean, mean)
        assert net[1].training
        assert net[1].track_running_stats
    with batch_norm_mode(net, "train"):
        net(x)
    assert counter.item() == updates + 1


def test_frozen_batch_norm_uses_batch_statistics_and_eval_does_not():
    net, x = convnet().train(), torch.rand(6, 3, 8, 8)
    expected = convnet().train()(x)
    with batch_norm_mode(net, "frozen"):
        torch.testing.assert_close(net(x), expected)
    with batch_norm_mode(net, "eval"):
        assert (net(x) - expected).abs().max() > 1e-3
    with pytest.raises(ValueError, match="unknown batch normalisation mode"), batch_norm_mode(net, "off"):
        pass


def test_attack_gradients_do_not_leak_into_the_update():
    x, y = torch.rand(6, 3, 8, 8), torch.randint(4, (6,))
    attacked, plain = convnet(norm=False), convnet(norm=False)
    delta = perturb(attacked, x, y, epsilon=0.0, alpha=0.1)
    for net, points in ((attacked, x + delta), (plain, x)):
        optimiser = torch.optim.SGD(net.parameters(), lr=0.1)
        F.cross_entropy(net(points), y).backward()
        optimiser.step()
    for p, q in zip(attacked.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p, q, atol=1e-6, rtol=0)


def test_under_autocast():
    net, x = mlp(), torch.rand(10, 1, 4, 4)
    y = net(x).argmax(1)
    with torch.autocast("cpu", torch.bfloat16):
        delta = perturb(net, x, y, epsilon=0.05, alpha=0.05, start="zero")
        loss = F.cross_entropy(net(x + delta), y)
    assert delta.dtype == torch.float32
    exact = perturb(net, x, y, epsilon=0.05, alpha=0.05, start="zero")
    assert (delta == exact).double().mean() > 0.9
    loss.backward()  # parameters still learn from the pass after the attack
    assert all(p.grad is not None for p in net.parameters())


def test_degenerate_inputs():
    black, y = torch.zeros(1, 3, 8, 8), torch.tensor([0])
    net = convnet().eval()
    assert not perturb(net, black, y, epsilon=0.0, alpha=0.1).any()
    assert perturb(net, black, y, epsilon=0.1, alpha=0.1).isfinite().all()

    class Constant(nn.Module):
        def forward(self, x):
            return torch.zeros(len(x), 4) + 0 * x.sum((1, 2, 3))[:, None]

    noise = 0.05 * torch.rand_like(black)
    for norm in ("linf", "l2"):
        delta = perturb(Constant(), black, y, norm=norm, epsilon=1.0, alpha=0.1, steps=3, noise=noise)
        torch.testing.assert_close(delta, noise)
    with pytest.raises(ValueError, match="init_box"):
        perturb(net, black, y, epsilon=0.1, alpha=0.1, init_box="clamp")
