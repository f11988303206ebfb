import pytest
import torch
from torch import nn

from robustrun.errors import ConfigError, DataError
from robustrun.models.mnist_cnn import MnistCNN
from robustrun.models.normalize import normalization
from robustrun.models.preact_resnet import PreActBlock, PreActResNet18
from robustrun.models.resnet import ResNet
from robustrun.models.wide_resnet import WideBlock, WideResNet
from robustrun.roles import ClassificationSpec

MNIST = ClassificationSpec(input_shape=(1, 28, 28), classes=10)
CIFAR = ClassificationSpec(
    input_shape=(3, 32, 32), classes=10, mean=(0.4914, 0.4822, 0.4465), std=(0.2471, 0.2435, 0.2616)
)
CIFAR100 = ClassificationSpec(input_shape=(3, 32, 32), classes=100, mean=CIFAR.mean, std=CIFAR.std)
IMAGENET = ClassificationSpec(
    input_shape=(3, 224, 224), classes=1000, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
)


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("build", "count"),
    [
        (lambda: MnistCNN(MNIST), 166_406),
        (lambda: PreActResNet18(CIFAR), 11_172_170),
        (lambda: PreActResNet18(CIFAR, shortcut_on="preact"), 11_172_170),
        (lambda: PreActResNet18(CIFAR100), 11_218_340),
        (lambda: ResNet(IMAGENET), 25_557_032),
        *[
            (lambda k=k: WideResNet(CIFAR, depth=34, widen_factor=k), count)
            for k, count in [
                (1, 466_714),
                (2, 1_855_578),
                (4, 7_399_130),
                (5, 11_554_074),
                (10, 46_160_474),
                (20, 184_531_674),
            ]
        ],
    ],
)
def test_parameter_counts_are_the_papers(build, count):
    with torch.device("meta"):  # counts need no memory
        assert parameters(build()) == count


@pytest.mark.parametrize(
    ("build", "shape"),
    [
        (lambda s: MnistCNN(s), (1, 28, 28)),
        (lambda s: MnistCNN(s, width=0.5), (3, 32, 32)),
        (lambda s: PreActResNet18(s, width=4), (1, 28, 28)),
        (lambda s: PreActResNet18(s, width=4), (3, 48, 40)),
        (lambda s: WideResNet(s, depth=10, widen_factor=1), (2, 32, 32)),
        (lambda s: ResNet(s, arch="resnet18"), (3, 64, 64)),
        (lambda s: ResNet(s, arch="resnet18"), (1, 64, 64)),
    ],
)
def test_logits_for_any_channels_size_and_number_of_classes(build, shape):
    model = build(ClassificationSpec(input_shape=shape, classes=7, mean=(0.5,) * shape[0], std=(0.2,) * shape[0]))
    logits = model.eval()(torch.rand(2, *shape))
    assert logits.shape == (2, 7)
    assert logits.isfinite().all()


def test_normalization_is_that_of_the_spec_and_not_part_of_the_state():
    layer, x = normalization(CIFAR), torch.rand(4, 3, 32, 32)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (CIFAR.mean, CIFAR.std))
    torch.testing.assert_close(layer(x), (x - mean) / std, rtol=1e-6, atol=1e-6)
    assert not layer.state_dict()
    assert isinstance(normalization(MNIST), nn.Identity)


def test_normalization_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="does not fit 3 channels"):
        normalization(ClassificationSpec(input_shape=(3, 8, 8), classes=2, mean=(0.5,), std=(0.5,)))


def test_models_normalise_themselves():
    plain = ClassificationSpec(input_shape=CIFAR.input_shape, classes=10)
    x = torch.rand(2, 3, 32, 32)
    for build in (MnistCNN, lambda s: PreActResNet18(s, width=4), lambda s: WideResNet(s, depth=10)):
        with_layer, without = build(CIFAR).eval(), build(plain).eval()
        without.load_state_dict(with_layer.state_dict())
        torch.testing.assert_close(with_layer(x), without(normalization(CIFAR)(x)))


def test_shortcut_variants_share_weights_but_not_the_function():
    torch.manual_seed(0)
    on_input, preact = (PreActResNet18(CIFAR, width=8, shortcut_on=v).eval() for v in ("input", "preact"))
    preact.load_state_dict(on_input.state_dict())
    x = torch.rand(2, 3, 32, 32)
    assert (on_input(x) - preact(x)).abs().max() > 1e-3

    block_a, block_b = PreActBlock(8, 8, 1, "input").eval(), PreActBlock(8, 8, 1, "preact").eval()
    block_b.load_state_dict(block_a.state_dict())
    x = torch.randn(2, 8, 6, 6)
    assert torch.equal(block_a(x), block_b(x))  # nothing is projected


def test_projection_shortcuts_see_what_they_should():
    x = torch.randn(2, 4, 6, 6)
    blocks = [
        PreActBlock(4, 8, 2, "input"),
        PreActBlock(4, 8, 2, "preact"),
        WideBlock(4, 8, 2),
        WideBlock(4, 4, 1),
    ]
    shortcuts = [
        lambda b: b.shortcut(x),
        lambda b: b.shortcut(x.relu()),
        lambda b: b.convShortcut(x.relu()),
        lambda b: x,
    ]
    for block, shortcut in zip(blocks, shortcuts, strict=True):
        block.eval()  # fresh running statistics: batch normalisation is the identity up to its epsilon
        nn.init.zeros_(block.conv2.weight)
        torch.testing.assert_close(block(x), shortcut(block), rtol=1e-4, atol=1e-4)


def test_wide_resnet_initialisation():
    torch.manual_seed(0)
    model = WideResNet(CIFAR, depth=10, widen_factor=4)
    conv = model.block3.layer[0].conv2
    assert conv.weight.std().item() == pytest.approx((2 / (9 * 256)) ** 0.5, rel=0.01)
    assert not model.fc.bias.any()


def test_wide_resnet_depth_is_checked():
    with pytest.raises(ConfigError, match=r"6 n \+ 4"):
        WideResNet(CIFAR, depth=20)


def test_resnet_loads_weights_from_a_file(tmp_path):
    spec = ClassificationSpec(input_shape=(3, 64, 64), classes=5)
    first = ResNet(spec, arch="resnet18")
    state = {f"module.{k}": v for k, v in first.network.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "weights.pt")
    second = ResNet(spec, arch="resnet18", weights=str(tmp_path / "weights.pt"))
    x = torch.rand(2, 3, 64, 64)
    assert torch.equal(first.eval()(x), second.eval()(x))

    with pytest.raises(DataError, match="no weights at"):
        ResNet(spec, arch="resnet18", weights=str(tmp_path / "missing.pt"))
    (tmp_path / "broken.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(DataError, match="does not hold weights"):
        ResNet(spec, arch="resnet18", weights=str(tmp_path / "broken.pt"))


def test_models_that_need_images_say_so():
    with pytest.raises(ValueError, match="images"):
        MnistCNN(ClassificationSpec(input_shape=(784,), classes=10))
