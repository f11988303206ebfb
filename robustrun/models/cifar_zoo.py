"""Well-known networks at the size of CIFAR-10, surrogates for a classifier behind an API (arXiv 2003.01908).

All start without pooling, average what is left of the image, and end in one linear layer.
"""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustrun.models.cifar_resnet import BasicBlock
from robustrun.models.normalize import image_shape, normalization
from robustrun.models.preact_resnet import PreActBlock
from robustrun.registry import models
from robustrun.roles import ClassificationSpec

Arch = Literal[
    "vgg16", "vgg19", "resnet18", "resnet18_narrow", "preact_resnet18", "resnext29", "mobilenet_v1", "mobilenet_v2",
    "senet18", "shufflenet_v2", "efficientnet_b0", "googlenet", "densenet121",
]  # fmt: skip


def _conv(channels: int, out_channels: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """Convolution without bias and normalisation."""
    convolution = nn.Conv2d(channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [convolution, nn.BatchNorm2d(out_channels)]


def _vgg(channels: int, repeats: tuple[int, ...]) -> tuple[nn.Module, int]:
    layers: list[nn.Module] = []
    for width, count in zip((64, 128, 256, 512, 512), repeats, strict=True):
        for _ in range(count):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers), channels


def _resnet18(channels: int, first: int = 64) -> tuple[nn.Module, int]:
    layers: list[nn.Module] = [*_conv(channels, first), nn.ReLU()]
    channels = first
    for width, stride in ((first, 1), (2 * first, 2), (4 * first, 2), (8 * first, 2)):
        layers += [BasicBlock(channels, width, stride), BasicBlock(width, width, 1)]
        channels = width
    return nn.Sequential(*layers), channels


def _preact_resnet18(channels: int) -> tuple[nn.Module, int]:
    """Without the normalisation and activation that usually end it."""
    layers: list[nn.Module] = [nn.Conv2d(channels, 64, 3, padding=1, bias=False)]
    channels = 64
    for width, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        layers += [PreActBlock(channels, width, stride, "preact"), PreActBlock(width, width, 1, "preact")]
        channels = width
    return nn.Sequential(*layers), channels


class GroupedBlock(nn.Module):
    """A bottleneck whose 3x3 convolution works on two groups of channels; twice as wide outside as inside."""

    def __init__(self, channels: int, width: int, stride: int):
        super().__init__()
        self.layers = nn.Sequential(
            *_conv(channels, width, 1),
            nn.ReLU(),
            *_conv(width, width, 3, stride, groups=2),
            nn.ReLU(),
            *_conv(width, 2 * width, 1),
        )
        same = stride == 1 and channels == 2 * width
        self.shortcut = nn.Identity() if same else nn.Sequential(*_conv(channels, 2 * width, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.layers(x) + self.shortcut(x))


def _resnext29(channels: int) -> tuple[nn.Module, int]:
    layers: list[nn.Module] = [*_conv(channels, 64, 1), nn.ReLU()]
    channels = 64
    for width, stride in ((128, 1), (256, 2), (512, 2)):
        for number in range(3):
            layers.append(GroupedBlock(channels, width, stride if number == 0 else 1))
            channels = 2 * width
    return nn.Sequential(*layers), channels


def _mobilenet_v1(channels: int) -> tuple[nn.Module, int]:
    layers: list[nn.Module] = [*_conv(channels, 32), nn.ReLU()]
    channels = 32
    plan = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1)]
    for width, stride in plan:
        layers += [*_conv(channels, channels, 3, stride, channels), nn.ReLU(), *_conv(channels, width, 1), nn.ReLU()]
        channels = width
    return nn.Sequential(*layers), channels


class InvertedResidual(nn.Module):
    """Expand, convolve each channel, project; a 1x1 shortcut where the width changes, none where the stride is 2."""

    def __init__(self, expand: int, channels: int, out_channels: int, stride: int):
        super().__init__()
        wide = expand * channels
        self.layers = nn.Sequential(
            *_conv(channels, wide, 1),
            nn.ReLU(),
            *_conv(wide, wide, 3, stride, wide),
            nn.ReLU(),
            *_conv(wide, out_channels, 1),
        )
        self.shortcut = None
        if stride == 1:
            same = channels == out_channels
            self.shortcut = nn.Identity() if same else nn.Sequential(*_conv(channels, out_channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.layers(x)
        return y if self.shortcut is None else y + self.shortcut(x)


def _mobilenet_v2(channels: int) -> tuple[nn.Module, int]:
    layers: list[nn.Module] = [*_conv(channels, 32), nn.ReLU()]
    channels = 32
    plan = [(1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]
    for expand, width, count, stride in plan:
        for number in range(count):
            layers.append(InvertedResidual(expand, channels, width, stride if number == 0 else 1))
            channels = width
    return nn.Sequential(*layers, *_conv(channels, 1280, 1), nn.ReLU()), 1280


def _excitation(channels: int) -> nn.Module:
    """Squeeze and excitation of ratio 16: a factor in (0, 1) for every channel."""
    return nn.Sequential(
        nn.AdaptiveAvgPool2d(1),
        nn.Conv2d(channels, channels // 16, 1),
        nn.ReLU(),
        nn.Conv2d(channels // 16, channels, 1),
        nn.Sigmoid(),
    )


class SqueezeBlock(nn.Module):
    """A pre-activation block whose output is scaled channel by channel."""

    def __init__(self, channels: int, out_channels: int, stride: int):
        super().__init__()
        self.activate = nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU())
        self.layers = nn.Sequential(
            *_conv(channels, out_channels, 3, stride),
            nn.ReLU(),
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
        )
        self.scale = _excitation(out_channels)
        self.shortcut = None
        if stride != 1 or channels != out_channels:
            self.shortcut = nn.Conv2d(channels, out_channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        a = self.activate(x)
        y = self.layers(a)
        return y * self.scale(y) + (x if self.shortcut is None else self.shortcut(a))


def _senet18(channels: int) -> tuple[nn.Module, int]:
    layers: list[nn.Module] = [*_conv(channels, 64), nn.ReLU()]
    channels = 64
    for width, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        layers += [SqueezeBlock(channels, width, stride), SqueezeBlock(width, width, 1)]
        channels = width
    return nn.Sequential(*layers), channels


class ShuffleBlock(nn.Module):
    """Two halves, the second convolved, their channels interleaved; with stride 2 both are made from the whole."""

    def __init__(self, channels: int, out_channels: int, stride: int):
        super().__init__()
        half = out_channels // 2
        inner = channels if stride == 2 else half
        self.convolved = nn.Sequential(
            *_conv(inner, half, 1), nn.ReLU(), *_conv(half, half, 3, stride, half), *_conv(half, half, 1), nn.ReLU()
        )
        self.down = None
        if stride == 2:
            self.down = nn.Sequential(*_conv(channels, channels, 3, 2, channels), *_conv(channels, half, 1), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, 1) if self.down is None else (self.down(x), x)
        return torch.stack((left, self.convolved(right)), 2).flatten(1, 2)


def _shufflenet_v2(channels: int) -> tuple[nn.Module, int]:
    layers: list[nn.Module] = [*_conv(channels, 24), nn.ReLU()]
    channels = 24
    for width, count in ((116, 3), (232, 7), (464, 3)):
        layers += [ShuffleBlock(channels, width, 2), *(ShuffleBlock(width, width, 1) for _ in range(count))]
        channels = width
    return nn.Sequential(*layers, *_conv(channels, 1024, 1), nn.ReLU()), 1024


class ScaledResidual(InvertedResidual):
    """An inverted residual whose output is scaled channel by channel; with stride 2 the unscaled one is added to it."""

    def __init__(self, expand: int, channels: int, out_channels: int, stride: int):
        super().__init__(expand, channels, out_channels, stride)
        self.scale = _excitation(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layers(x)
        return y * self.scale(y) + (y if self.shortcut is None else self.shortcut(x))


def _efficientnet_b0(channels: int) -> tuple[nn.Module, int]:
    layers: list[nn.Module] = [*_conv(channels, 32), nn.ReLU()]
    channels = 32
    plan = [(1, 16, 1, 2), (6, 24, 2, 1), (6, 40, 2, 2), (6, 80, 3, 2), (6, 112, 3, 1), (6, 192, 4, 2), (6, 320, 1, 2)]
    for expand, width, count, stride in plan:
        for number in range(count):
            layers.append(ScaledResidual(expand, channels, width, stride if number == 0 else 1))
            channels = width
    return nn.Sequential(*layers), channels


class Inception(nn.Module):
    """Four branches side by side: 1x1; 1x1, 3x3; 1x1, 3x3, 3x3; pooling, 1x1."""

    def __init__(self, channels: int, one: int, three: tuple[int, int], five: tuple[int, int], pooled: int):
        super().__init__()
        (few, many), (fewer, more) = three, five
        self.branches = nn.ModuleList(
            nn.Sequential(*layers)
            for layers in (
                _biased(channels, one, 1),
                (*_biased(channels, few, 1), *_biased(few, many)),
                (*_biased(channels, fewer, 1), *_biased(fewer, more), *_biased(more, more)),
                (nn.MaxPool2d(3, 1, 1), *_biased(channels, pooled, 1)),
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


def _biased(channels: int, out_channels: int, kernel: int = 3) -> list[nn.Module]:
    """Convolution with bias, normalisation, rectifier."""
    return [nn.Conv2d(channels, out_channels, kernel, padding=kernel // 2), nn.BatchNorm2d(out_channels), nn.ReLU()]


_INCEPTIONS = (
    ((64, (96, 128), (16, 32), 32), (128, (128, 192), (32, 96), 64)),
    (
        (192, (96, 208), (16, 48), 64), (160, (112, 224), (24, 64), 64), (128, (128, 256), (24, 64), 64),
        (112, (144, 288), (32, 64), 64), (256, (160, 320), (32, 128), 128),
    ),
    ((256, (160, 320), (32, 128), 128), (384, (192, 384), (48, 128), 128)),
)  # fmt: skip


def _googlenet(channels: int) -> tuple[nn.Module, int]:
    layers: list[nn.Module] = _biased(channels, 192)
    channels = 192
    for number, stage in enumerate(_INCEPTIONS):
        if number:
            layers.append(nn.MaxPool2d(3, 2, 1))
        for one, three, five, pooled in stage:
            layers.append(Inception(channels, one, three, five, pooled))
            channels = one + three[1] + five[1] + pooled
    return nn.Sequential(*layers), channels


class DenseLayer(nn.Module):
    """A bottleneck of four times the growth; its output is joined to its input."""

    def __init__(self, channels: int, growth: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            *_conv(channels, 4 * growth, 1),
            nn.ReLU(),
            nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.layers(x), x], 1)


def _densenet121(channels: int, growth: int = 32) -> tuple[nn.Module, int]:
    layers: list[nn.Module] = [nn.Conv2d(channels, 2 * growth, 3, padding=1, bias=False)]
    channels = 2 * growth
    for number, count in enumerate((6, 12, 24, 16)):
        if number:
            half = channels // 2
            layers += [nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, half, 1, bias=False), nn.AvgPool2d(2)]
            channels = half
        for _ in range(count):
            layers.append(DenseLayer(channels, growth))
            channels += growth
    return nn.Sequential(*layers, nn.BatchNorm2d(channels), nn.ReLU()), channels


_BODIES: dict[str, Callable[[int], tuple[nn.Module, int]]] = {
    "vgg16": lambda channels: _vgg(channels, (2, 2, 3, 3, 3)),
    "vgg19": lambda channels: _vgg(channels, (2, 2, 4, 4, 4)),
    "resnet18": _resnet18,
    "resnet18_narrow": lambda channels: _resnet18(channels, 8),  # the 170K of arXiv 2006.08656, Table 1
    "preact_resnet18": _preact_resnet18,
    "resnext29": _resnext29,
    "mobilenet_v1": _mobilenet_v1,
    "mobilenet_v2": _mobilenet_v2,
    "senet18": _senet18,
    "shufflenet_v2": _shufflenet_v2,
    "efficientnet_b0": _efficientnet_b0,
    "googlenet": _googlenet,
    "densenet121": _densenet121,
}


@models.register("cifar_zoo")
class CifarZoo(nn.Module):
    """One of the networks of this file, behind the task's normalisation."""

    def __init__(self, spec: ClassificationSpec, *, arch: Arch = "vgg16"):
        super().__init__()
        self.normalize = normalization(spec)
        self.body, width = _BODIES[arch](image_shape(spec)[0])
        self.linear = nn.Linear(width, spec.classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.linear(self.body(self.normalize(images)).mean((2, 3)))
