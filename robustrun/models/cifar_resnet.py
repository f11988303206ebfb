"""The residual network for images of 32 x 32 of He et al. (2016): three stages of 16, 32 and 64 channels."""

import torch.nn.functional as F
from torch import Tensor, nn

from robustrun.errors import ConfigError
from robustrun.models.normalize import image_shape, normalization
from robustrun.numbers import PositiveInt
from robustrun.registry import models
from robustrun.roles import ClassificationSpec


class BasicBlock(nn.Module):
    """Two 3x3 convolutions; a 1x1 projection with normalisation where the shape changes."""

    def __init__(self, channels: int, out_channels: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.downsample = None
        if stride != 1 or channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels, out_channels, 1, stride=stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


@models.register("cifar_resnet")
class CifarResNet(nn.Module):
    """ResNet-`depth`, post-activation: 1,730,714 parameters at depth 110, 272,474 at depth 20 on CIFAR-10.

    Raises:
        ConfigError: the depth is not 6 n + 2.
    """

    def __init__(self, spec: ClassificationSpec, *, depth: PositiveInt = 110, width: PositiveInt = 16):
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ConfigError(f"model.depth={depth}: the depth of this network is 6 n + 2 (8, 20, 56, 110, ...)")
        blocks = (depth - 2) // 6
        self.normalize = normalization(spec)
        self.conv1 = nn.Conv2d(image_shape(spec)[0], width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = _stage(width, width, 1, blocks)
        self.layer2 = _stage(width, 2 * width, 2, blocks)
        self.layer3 = _stage(2 * width, 4 * width, 2, blocks)
        self.fc = nn.Linear(4 * width, spec.classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(self.normalize(images))))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(x.mean((2, 3)))


def _stage(channels: int, out_channels: int, stride: int, blocks: int) -> nn.Sequential:
    rest = (BasicBlock(out_channels, out_channels, 1) for _ in range(blocks - 1))
    return nn.Sequential(BasicBlock(channels, out_channels, stride), *rest)
