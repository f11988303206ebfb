"""Wide residual network (arXiv 1605.07146), as in arXiv 2002.11569."""

import torch.nn.functional as F
from torch import Tensor, nn

from robustrun.errors import ConfigError
from robustrun.models.normalize import image_shape, normalization
from robustrun.numbers import PositiveInt
from robustrun.registry import models
from robustrun.roles import ClassificationSpec


class WideBlock(nn.Module):
    """A pre-activation block; where the number of channels changes, the shortcut projects relu(bn(x)).

    Modules here and below are named as in public checkpoints of this network.
    """

    def __init__(self, channels: int, out_channels: int, stride: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.convShortcut = None
        if channels != out_channels:
            self.convShortcut = nn.Conv2d(channels, out_channels, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.bn1(x))
        shortcut = x if self.convShortcut is None else self.convShortcut(a)
        return self.conv2(F.relu(self.bn2(self.conv1(a)))) + shortcut


class WideGroup(nn.Module):
    """`blocks` blocks; the first changes the number of channels and the resolution."""

    def __init__(self, blocks: int, channels: int, out_channels: int, stride: int):
        super().__init__()
        rest = (WideBlock(out_channels, out_channels, 1) for _ in range(blocks - 1))
        self.layer = nn.Sequential(WideBlock(channels, out_channels, stride), *rest)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


@models.register("wide_resnet")
class WideResNet(nn.Module):
    """WRN-`depth`-`widen_factor`: three groups with 16, 32 and 64 times `widen_factor` channels, no dropout.

    WRN-34-10 has 46,160,474 parameters on CIFAR-10.

    Raises:
        ConfigError: the depth is not 6 n + 4.
    """

    def __init__(self, spec: ClassificationSpec, *, depth: PositiveInt = 34, widen_factor: PositiveInt = 10):
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise ConfigError(f"model.depth={depth}: the depth of a wide ResNet is 6 n + 4 (10, 16, 22, 28, 34, ...)")
        blocks, k = (depth - 4) // 6, widen_factor
        self.normalize = normalization(spec)
        self.conv1 = nn.Conv2d(image_shape(spec)[0], 16, 3, padding=1, bias=False)
        self.block1 = WideGroup(blocks, 16, 16 * k, 1)
        self.block2 = WideGroup(blocks, 16 * k, 32 * k, 2)
        self.block3 = WideGroup(blocks, 32 * k, 64 * k, 2)
        self.bn1 = nn.BatchNorm2d(64 * k)
        self.fc = nn.Linear(64 * k, spec.classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.fc.bias)

    def forward(self, inputs: Tensor) -> Tensor:
        x = self.conv1(self.normalize(inputs))
        x = self.block3(self.block2(self.block1(x)))
        return self.fc(F.relu(self.bn1(x)).mean((2, 3)))
