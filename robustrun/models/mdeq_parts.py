"""What lies before and behind the equilibrium of a multiscale model: stem, classification head, segmentation head."""

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Stem(nn.Sequential):
    """Two 3x3 convolutions, the first `halvings` of them with stride 2, and where `inject` a 1x1 stage: u of x."""

    def __init__(self, given: int, channels: int, halvings: int, inject: bool):
        layers: list[nn.Module] = []
        for i, size in enumerate((given, channels)):
            stride = 2 if halvings > i else 1
            layers += _conv_norm(size, channels, 3, stride=stride, padding=1)
        if inject:
            layers += _conv_norm(channels, channels, 1)
        super().__init__(*layers)


class ClassificationHead(nn.Module):
    """Bottlenecks on all branches, added up from the highest resolution down, pooled and classified."""

    def __init__(self, channels: Sequence[int], widths: Sequence[int], features: int, classes: int):
        super().__init__()
        self.bottlenecks = nn.ModuleList(_Bottleneck(c, h) for c, h in zip(channels, widths, strict=True))
        outs = [4 * h for h in widths]
        self.down = nn.ModuleList(
            nn.Sequential(*_conv_norm(a, b, 3, stride=2, padding=1, bias=True)) for a, b in itertools.pairwise(outs)
        )
        self.last = nn.Sequential(*_conv_norm(outs[-1], features, 1, bias=True))
        self.linear = nn.Linear(features, classes)

    def forward(self, branches: Sequence[Tensor]) -> Tensor:
        total = self.bottlenecks[0](branches[0])
        for bottleneck, down, z in zip(self.bottlenecks[1:], self.down, branches[1:], strict=True):
            total = bottleneck(z) + down(total)
        return self.linear(self.last(total).mean((2, 3)))


class SegmentationHead(nn.Module):
    """All branches at the first one's resolution, two 1x1 convolutions, and logits at the size that is asked for."""

    def __init__(self, channels: Sequence[int], classes: int):
        super().__init__()
        size = sum(channels)
        self.layers = nn.Sequential(*_conv_norm(size, size, 1, bias=True), nn.Conv2d(size, classes, 1))

    def forward(self, branches: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        first, *others = branches
        raised = [_resize(z, tuple(first.shape[2:])) for z in others]
        return _resize(self.layers(torch.cat([first, *raised], dim=1)), size)


class _Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 to four times the width, each with a normalisation that has no scale; and a shortcut."""

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.layers = nn.Sequential(
            *_conv_norm(channels, width, 1, affine=False),
            *_conv_norm(width, width, 3, padding=1, affine=False),
            *_conv_norm(width, 4 * width, 1, affine=False)[:-1],
        )
        same = channels == 4 * width
        self.shortcut = nn.Identity() if same else nn.Sequential(*_conv_norm(channels, 4 * width, 1)[:-1])

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.layers(x) + self.shortcut(x))


def _conv_norm(
    channels: int, out: int, size: int, *, affine: bool = True, bias: bool = False, **options: int
) -> list[nn.Module]:
    return [
        nn.Conv2d(channels, out, size, bias=bias, **options),
        nn.BatchNorm2d(out, affine=affine),
        nn.ReLU(inplace=True),
    ]


def _resize(z: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(z, size=size, mode="bilinear", align_corners=True)


@torch.no_grad()
def initialize(module: nn.Module, std: float) -> None:
    """Convolutions from N(0, std^2), biases too; the weight-normalised ones keep torch's, as in the paper's code."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            for parameter in part.parameters():
                parameter.normal_(0.0, std)
