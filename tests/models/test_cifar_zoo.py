import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from robustrun.models.cifar_zoo import CifarZoo, ShuffleBlock
from robustrun.roles import ClassificationSpec

CIFAR = ClassificationSpec((3, 32, 32), 10, (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
PUBLISHED = {  # parameters, and 10^9 multiplications for an image
    "vgg16": (14_728_266, 0.313),
    "vgg19": (20_040_522, 0.398),
    "resnet18": (11_173_962, 0.555),
    "resnet18_narrow": (176_402, 0.0088),
    "preact_resnet18": (11_171_146, 0.555),
    "resnext29": (9_128_778, 1.41),
    "mobilenet_v1": (3_217_226, 0.046),
    "mobilenet_v2": (2_296_922, 0.091),
    "senet18": (11_260_354, 0.556),
    "shufflenet_v2": (1_263_854, 0.045),
    "efficientnet_b0": (2_912_089, 0.027),
    "googlenet": (6_166_250, 1.52),
    "densenet121": (6_956_298, 0.888),
}


@pytest.mark.parametrize("arch", PUBLISHED)
def test_parameters_and_cost_are_as_published(arch):
    with torch.device("meta"):
        model = CifarZoo(CIFAR, arch=arch).eval()
        with FlopCounterMode(display=False) as counter:
            assert model(torch.empty(2, 3, 32, 32)).shape == (2, 10)
    parameters, cost = PUBLISHED[arch]
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert counter.get_total_flops() / 4 / 1e9 == pytest.approx(cost, rel=0.02)


@pytest.mark.parametrize("arch", ["mobilenet_v2", "shufflenet_v2", "efficientnet_b0"])
def test_every_image_is_judged_on_its_own(arch):
    torch.manual_seed(0)
    model = CifarZoo(CIFAR, arch=arch).eval()
    images = torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(model(images)[1:2], model(images[1:2]), atol=1e-5)


def test_channels_of_a_shuffled_block_alternate():
    """The untouched half comes out at the even places."""
    block = ShuffleBlock(8, 8, 1).eval()
    images = torch.rand(2, 8, 4, 4)
    with torch.no_grad():
        found = block(images)
    assert torch.equal(found[:, ::2], images[:, :4])
    assert not torch.equal(found[:, 1::2], images[:, 4:])
    assert ShuffleBlock(8, 16, 2).eval()(images).shape == (2, 16, 2, 2)


def test_senet_keeps_the_names_of_its_weights():
    state = CifarZoo(CIFAR, arch="senet18").state_dict()
    assert "body.3.scale.1.weight" in state
    assert "body.3.activate.0.weight" in state
