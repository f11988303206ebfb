"""torchvision's segmentation networks as models."""

import pytest
import torch

from robustrun.errors import ConfigError, DataError
from robustrun.models.torchvision_segmentation import TorchvisionSegmentation
from robustrun.roles import SegmentationSpec

SPEC = SegmentationSpec((3, 64, 128), 5, (0.5,) * 3, (0.25,) * 3)


def test_logits_of_the_images_size_and_weights_from_a_file(tmp_path):
    torch.manual_seed(0)
    model = TorchvisionSegmentation(SPEC).eval()
    images = torch.rand(1, 3, 64, 128)
    logits = model(images)
    assert logits.shape == (1, 5, 64, 128)
    assert torch.equal(logits, model.network((images - 0.5) / 0.25)["out"])
    torch.save(model.network.state_dict(), tmp_path / "weights.pt")
    again = TorchvisionSegmentation(SPEC, weights=str(tmp_path / "weights.pt")).eval()
    assert torch.equal(again(images), logits)


def test_what_is_wrong_is_said(tmp_path):
    with pytest.raises(ConfigError, match=r"torchvision has .*deeplabv3_resnet50"):
        TorchvisionSegmentation(SPEC, network="deeplab")
    with pytest.raises(DataError, match="cannot be read"):
        TorchvisionSegmentation(SPEC, weights=str(tmp_path / "nothing.pt"))
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(DataError, match="does not fit"):
        TorchvisionSegmentation(SPEC, weights=str(tmp_path / "other.pt"))
