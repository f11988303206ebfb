import pytest
import torch
from torch import nn

from robustrun.errors import ConfigError
from robustrun.methods.folding import InferenceCopy, fold_batch_norm
from robustrun.models.cifar_resnet import CifarResNet
from robustrun.models.denoisers import Denoiser, DiffusionDenoiser, DnCNN, MemNet
from robustrun.roles import ClassificationSpec

CIFAR = ClassificationSpec((3, 32, 32), 10, (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))


def parameters(module):
    return sum(p.numel() for p in module.parameters())


def randomised(module):
    """Statistics and scales that are not those of initialisation, so that folding has something to fold."""
    torch.manual_seed(1)
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.running_mean.normal_(std=0.2)
                part.running_var.uniform_(0.5, 1.5)
                part.weight.uniform_(0.5, 1.5)
                part.bias.normal_(std=0.1)
            elif isinstance(part, nn.Conv2d) and not part.weight.any():
                part.weight.normal_(std=0.05)
    return module.eval()


@pytest.mark.parametrize(
    ("make", "count"),
    [
        (lambda: DnCNN(3), 558_400),
        (lambda: DnCNN(1), 556_096),
        (lambda: DnCNN(3, width=128), 2_222_720),
        (lambda: MemNet(3), 1_436_678),
        (lambda: CifarResNet(CIFAR), 1_730_714),
        (lambda: CifarResNet(CIFAR, depth=20), 272_474),
    ],
)
def test_parameters_are_counted_as_published(make, count):
    with torch.device("meta"):
        assert parameters(make()) == count


def test_trainable_tensors():
    assert len(list(DnCNN(3).parameters())) == 48
    assert len(list(MemNet(3).parameters())) == 123


def test_a_fresh_dncnn_is_the_identity_with_orthogonal_layers():
    torch.manual_seed(0)
    denoiser = DnCNN(3)
    images = torch.rand(2, 3, 9, 7)
    assert torch.equal(denoiser(images), images)
    assert torch.equal(denoiser.eval()(images), images)
    middle = denoiser.layers[2].weight.flatten(1)
    assert (middle @ middle.T - torch.eye(64)).norm() < 1e-4
    assert sum(isinstance(m, nn.BatchNorm2d) for m in denoiser.modules()) == 15
    noisy = images.repeat(150, 1, 3, 3) + 0.25 * torch.randn(300, 3, 27, 21)
    with torch.no_grad():
        error = DnCNN(3, depth=3, width=4)(noisy) - images.repeat(150, 1, 3, 3)
    assert float((error**2).mean()) == pytest.approx(0.0625, rel=0.01)


@pytest.mark.parametrize("momentum", [0.95, 0.1])
def test_running_statistics_move_by_the_momentum(momentum):
    torch.manual_seed(0)
    denoiser = DnCNN(1, depth=3, width=8, momentum=momentum)
    images = torch.rand(4, 1, 6, 6)
    seen = denoiser.layers[2](denoiser.layers[1](denoiser.layers[0](images)))
    norm = denoiser.layers[3]
    assert norm.eps == 1e-4
    denoiser.train()(images)
    assert torch.allclose(norm.running_mean, momentum * seen.mean((0, 2, 3)), atol=1e-6)
    unbiased = seen.transpose(0, 1).flatten(1).var(1)
    assert torch.allclose(norm.running_var, 1 - momentum + momentum * unbiased, atol=1e-6)


def test_memnet_gates_read_everything_so_far():
    net = MemNet(3, width=4)
    assert [block.gate[2].in_channels for block in net.blocks] == [(6 + k) * 4 for k in (1, 2, 3)]
    images = torch.rand(2, 3, 8, 8)
    assert net(images).shape == images.shape
    nn.init.zeros_(net.reconstruct[2].weight)
    assert torch.equal(net(images), images)


FOLDED = {
    "dncnn": lambda: DnCNN(3, depth=5),
    "resnet": lambda: CifarResNet(CIFAR, depth=8),
    "memnet": lambda: MemNet(3, width=8),
}


@pytest.mark.parametrize("make", FOLDED.values(), ids=FOLDED)
def test_folding_changes_nothing_but_rounding(make):
    torch.manual_seed(0)
    model = randomised(make())
    folded = InferenceCopy(model)
    images = torch.rand(3, 3, 32, 32)
    norms = [sum(isinstance(m, nn.BatchNorm2d) for m in net.modules()) for net in (model, folded)]
    assert norms[1] < norms[0] or isinstance(model, MemNet)
    with torch.no_grad():
        wanted = model(images)
        assert (folded(images) - wanted).abs().max() < 1e-4 * max(1.0, wanted.abs().max())
        half = InferenceCopy(model, torch.bfloat16)
        assert half.converted
        assert (half(images).float() - wanted).abs().mean() < 0.05 * wanted.abs().mean() + 0.01
        assert torch.equal(model(images), wanted), "the model itself is left alone"


def test_a_network_that_cannot_be_traced_is_left_as_it_is():
    class Branching(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    model = Branching()
    assert fold_batch_norm(model) is model
    assert not InferenceCopy(model, torch.bfloat16).converted
    assert InferenceCopy(model, torch.bfloat16)(torch.ones(2)).tolist() == [1, 1]


def test_a_shared_convolution_is_not_folded():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1)

        def forward(self, x):
            return self.norm(self.conv(x)) + self.conv(2 * x)

    model = randomised(Shared())
    x = torch.rand(2, 1, 3, 3)
    assert torch.allclose(fold_batch_norm(model)(x), model(x), atol=1e-6)


def test_one_step_of_diffusion_takes_gaussian_noise_away():
    """The optimal noise prediction for images that are all c: (x_t - sqrt(a) c) / sqrt(1 - a), so that x_0 = c."""
    alphas = torch.linspace(0.999, 0.01, 200)
    sigma, c = 0.4, 0.3

    class Knows(nn.Module):
        def forward(self, state, steps):
            a = alphas[steps].view(-1, 1, 1, 1)
            return torch.cat([(state - a.sqrt() * (2 * c - 1)) / (1 - a).sqrt(), torch.zeros_like(state)], 1)

    denoiser = DiffusionDenoiser(Knows(), alphas, sigma=sigma)
    a = alphas[denoiser.step]
    assert float((1 - a) / a) == pytest.approx((2 * sigma) ** 2, rel=0.05)
    noisy = c + sigma * torch.randn(4, 3, 8, 8)
    assert torch.allclose(denoiser(noisy), torch.full_like(noisy, c), atol=1e-5)
    resized = DiffusionDenoiser(Knows(), alphas, sigma=sigma, size=16)
    assert resized(noisy).shape == noisy.shape


def test_choices():
    assert isinstance(Denoiser(name="identity").build(3), nn.Identity)
    assert isinstance(Denoiser(name="memnet", width=4).build(1), MemNet)
    with pytest.raises(ConfigError, match="weights"):
        Denoiser(name="diffusion").build(3)
    with pytest.raises(ConfigError, match="6 n"):
        CifarResNet(CIFAR, depth=111)


@pytest.mark.parametrize("images", [0, 1, 7])
def test_a_large_batch_is_cut_and_answered_in_order(images, monkeypatch):
    passes = []
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 3)).eval()
    copied = InferenceCopy(model)
    copied.network.register_forward_pre_hook(lambda _, inputs: passes.append(len(inputs[0])))
    monkeypatch.setattr("robustrun.methods.folding.PIXELS", 3 * 64)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    x = torch.rand(images, 1, 8, 8)
    with torch.no_grad():
        assert torch.allclose(copied(x), model(x), atol=1e-6)
    assert passes == {0: [0], 1: [1], 7: [3, 3, 1]}[images]
