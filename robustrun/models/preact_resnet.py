"""Pre-activation ResNet-18 for small images (arXiv 1603.05027), as in arXiv 2001.03994 and 2002.11569."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from robustrun.models.normalize import image_shape, normalization
from robustrun.numbers import PositiveInt
from robustrun.registry import models
from robustrun.roles import ClassificationSpec

ShortcutOn = Literal["input", "preact"]


class PreActBlock(nn.Module):
    """conv(relu(bn(conv(relu(bn(x)))))) plus the input, or a 1x1 projection where the shape changes."""

    def __init__(self, channels: int, out_channels: int, stride: int, shortcut_on: ShortcutOn):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.shortcut = None
        if stride != 1 or channels != out_channels:
            # A sequence of one, so that parameters are named as in public checkpoints of this network.
            self.shortcut = nn.Sequential(nn.Conv2d(channels, out_channels, 1, stride=stride, bias=False))
        self.project_input = shortcut_on == "input"

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.bn1(x))
        shortcut = x if self.shortcut is None else self.shortcut(x if self.project_input else a)
        return self.conv2(F.relu(self.bn2(self.conv1(a)))) + shortcut


@models.register("preact_resnet18")
class PreActResNet18(nn.Module):
    """Four stages of two blocks with 64, 128, 256 and 512 channels; 11,172,170 parameters on CIFAR-10.

    Args:
        spec: images of any size and number of channels, any number of classes.
        width: channels of the first stage.
        shortcut_on: what a projection shortcut sees, the block's `input` (arXiv 2001.03994) or its first
            activation, `preact` (arXiv 2002.11569, and usual). The parameters have the same names and
            shapes, so weights load either way, but mean a different function.
    """

    def __init__(self, spec: ClassificationSpec, *, width: PositiveInt = 64, shortcut_on: ShortcutOn = "input"):
        super().__init__()
        self.normalize = normalization(spec)
        self.conv1 = nn.Conv2d(image_shape(spec)[0], width, 3, padding=1, bias=False)
        self.layer1 = _stage(width, width, 1, shortcut_on)
        self.layer2 = _stage(width, 2 * width, 2, shortcut_on)
        self.layer3 = _stage(2 * width, 4 * width, 2, shortcut_on)
        self.layer4 = _stage(4 * width, 8 * width, 2, shortcut_on)
        self.bn = nn.BatchNorm2d(8 * width)
        self.linear = nn.Linear(8 * width, spec.classes)

    def forward(self, inputs: Tensor) -> Tensor:
        x = self.conv1(self.normalize(inputs))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.linear(F.relu(self.bn(x)).mean((2, 3)))


def _stage(channels: int, out_channels: int, stride: int, shortcut_on: ShortcutOn) -> nn.Sequential:
    return nn.Sequential(
        PreActBlock(channels, out_channels, stride, shortcut_on),
        PreActBlock(out_channels, out_channels, 1, shortcut_on),
    )
