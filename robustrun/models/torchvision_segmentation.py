"""torchvision's segmentation networks, untrained or with weights from a file.

Source: DeepLabv3 (arXiv 1706.05587), FCN (arXiv 1411.4038), LR-ASPP (arXiv 1905.02244).
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from robustrun.data import import_torchvision
from robustrun.errors import ConfigError, DataError
from robustrun.models.normalize import normalization
from robustrun.registry import models
from robustrun.roles import SegmentationSpec


@models.register("torchvision_segmentation")
class TorchvisionSegmentation(nn.Module):
    """A network of `torchvision.models.segmentation`, logits of the images' size.

    Args:
        network: deeplabv3_resnet50, deeplabv3_resnet101, deeplabv3_mobilenet_v3_large, fcn_resnet50, fcn_resnet101 or
            lraspp_mobilenet_v3_large.
        weights: a file with the network's state, as `torch.save(network.state_dict())` writes it; null: untrained.

    Raises:
        ConfigError: torchvision has no such network.
        DataError: the file cannot be read, or belongs to another network.
    """

    def __init__(
        self, spec: SegmentationSpec, *, network: str = "lraspp_mobilenet_v3_large", weights: str | None = None
    ):
        super().__init__()
        library = import_torchvision().models
        known = library.list_models(module=library.segmentation)
        if network not in known:
            raise ConfigError(f"model.network={network}: torchvision has {', '.join(known)}")
        self.normalize = normalization(spec)
        own = {"aux_loss": False} if network != "lraspp_mobilenet_v3_large" else {}
        self.network = library.get_model(network, weights=None, weights_backbone=None, num_classes=spec.classes, **own)
        if weights is not None:
            self._read(Path(weights).expanduser())

    def _read(self, path: Path) -> None:
        try:
            self.network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        except OSError as error:
            raise DataError(f"model.weights={path} cannot be read: {error.strerror}") from None
        except Exception as error:  # not a file of torch's, or another network's
            raise DataError(f"model.weights={path} does not fit: {str(error).splitlines()[0]}") from None

    def forward(self, inputs: Tensor) -> Tensor:
        return self.network(self.normalize(inputs))["out"]
