import pytest
import torch

from robustrun.models.cifar_zoo import CifarZoo
from robustrun.roles import ClassificationSpec

CIFAR = ClassificationSpec((3, 32, 32), 10, (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
PARAMETERS = {
    "vgg16": 14_728_266,
    "vgg19": 20_040_522,
    "resnet18": 11_173_962,
    "mobilenet_v1": 3_217_226,
    "mobilenet_v2": 2_296_922,
    "senet18": 11_260_354,
    "densenet121": 6_956_298,
}


@pytest.mark.parametrize("arch", PARAMETERS)
def test_parameters_and_shapes_are_as_published(arch):
    with torch.device("meta"):
        model = CifarZoo(CIFAR, arch=arch).eval()
        assert model(torch.empty(2, 3, 32, 32)).shape == (2, 10)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[arch]


def test_every_image_is_judged_on_its_own():
    torch.manual_seed(0)
    model = CifarZoo(CIFAR, arch="mobilenet_v2").eval()
    images = torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(model(images)[1:2], model(images[1:2]), atol=1e-5)
