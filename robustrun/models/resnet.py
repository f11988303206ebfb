"""torchvision's residual networks, for images of ImageNet's size.

Source: He et al. (arXiv 1512.03385); wide ones: Zagoruyko and Komodakis (arXiv 1605.07146).
"""

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from robustrun.data.vision import import_torchvision
from robustrun.errors import DataError
from robustrun.models.normalize import image_shape, normalization
from robustrun.registry import models
from robustrun.roles import ClassificationSpec


@models.register("resnet")
class ResNet(nn.Module):
    """A torchvision ResNet behind the task's normalisation; ResNet-50 has 25,557,032 parameters on ImageNet.

    Args:
        spec: images of any size, any number of classes.
        arch: torchvision's name.
        weights: a file with a state dict of that network, or None for torchvision's initialisation. Keys may
            have the prefix "module." of data-parallel training and lie under "state_dict" or "model".
    """

    def __init__(
        self,
        spec: ClassificationSpec,
        *,
        arch: Literal["resnet18", "resnet34", "resnet50", "resnet101", "wide_resnet50_2"] = "resnet50",
        weights: str | None = None,
    ):
        super().__init__()
        self.normalize = normalization(spec)
        self.network = getattr(import_torchvision().models, arch)(weights=None, num_classes=spec.classes)
        if (channels := image_shape(spec)[0]) != 3:
            self.network.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
            nn.init.kaiming_normal_(self.network.conv1.weight, mode="fan_out", nonlinearity="relu")
        if weights is not None:
            load_weights(self.network, weights)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.network(self.normalize(inputs))


def load_weights(module: nn.Module, file: str) -> None:
    """Load a state dict from a file (tensors only) into a module.

    Raises:
        DataError: the file is missing, is no such file, or does not fit the module.
    """
    path = Path(file).expanduser()
    if not path.is_file():
        raise DataError(f"no weights at {path}: put a state dict of the network there")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        for key in ("state_dict", "model"):
            state = state.get(key, state)
        module.load_state_dict({name.removeprefix("module."): value for name, value in state.items()})
    except Exception as error:  # torch raises many kinds for a broken file
        reason = str(error).strip().splitlines()
        raise DataError(f"{path} does not hold weights of this network: {reason[0] if reason else error!r}") from error
