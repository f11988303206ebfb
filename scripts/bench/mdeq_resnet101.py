"""A training step of the large MDEQ on CIFAR-10 beside ResNet-101's, time and memory (arXiv 2006.08656, figure 4).

Forward and backward pass of cross-entropy on random images, in turns in one process. The MDEQ takes all its steps, 18
of Broyden's method forwards and 20 backwards, as where no tolerance is reached. ResNet-101 is torchvision's, with a 3x3
convolution without stride in place of its first layers, as is usual on images of 32 x 32. Memory is what autograd keeps
for the backward pass and, of the MDEQ, the solver's own buffers; parameters are aside.
"""

import argparse
import statistics
from collections.abc import Callable

import torch
import torch.nn.functional as F
from _measure import claim, clock_name, ratios, turns
from torch import nn

from robustrun.certifiers.solver_study import saved_bytes
from robustrun.data import import_torchvision
from robustrun.models.mdeq import MDEQ
from robustrun.models.mdeq_settings import Solver
from robustrun.roles import ClassificationSpec

LARGE = {"channels": (32, 64, 128, 256), "widths": (14, 28, 56, 112), "features": 1680, "dropout": 0.3}
CIFAR = ClassificationSpec(input_shape=(3, 32, 32), classes=10)


def cifar_resnet101() -> nn.Module:
    model = import_torchvision().models.resnet101(num_classes=CIFAR.classes)
    model.conv1, model.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, nargs=2, default=(18, 20), help="of the solvers, forwards and backwards")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    forwards, backwards = arguments.steps
    mdeq = MDEQ(CIFAR, solver=Solver(rtol=0.0), forward_steps=forwards, backward_steps=backwards, **LARGE)
    models = {"MDEQ": mdeq, "ResNet-101": cifar_resnet101()}
    images = torch.rand(arguments.batch, *CIFAR.input_shape)
    labels = torch.randint(CIFAR.classes, (arguments.batch,))

    def step(model: nn.Module) -> Callable[[], None]:
        def run() -> None:
            model.zero_grad(set_to_none=True)
            F.cross_entropy(model(images), labels).backward()

        return run

    seconds = turns({name: step(model) for name, model in models.items()}, arguments.rounds)
    kept = {name: saved_bytes(model, lambda model=model: model(images)) for name, model in models.items()}
    kept["MDEQ"] += mdeq.layer.workspace.bytes
    for name, model in models.items():
        size = sum(parameter.numel() for parameter in model.parameters()) / 1e6
        print(
            f"{name:11} {size:5.1f} M parameters, {statistics.median(seconds[name]):6.2f} s a step, "
            f"{kept[name] / arguments.batch / 1e6:6.1f} MB an example for the backward pass"
        )
    print(f"batch {arguments.batch}, {arguments.threads} threads, {clock_name()} time, torch {torch.__version__}")
    claim("time of a training step of MDEQ, 11.1M", ratios(seconds["MDEQ"], seconds["ResNet-101"]), at_most=2.7,
          against="ResNet-101")  # fmt: skip
    claim("memory of a training step of MDEQ, 11.1M", [kept["MDEQ"] / kept["ResNet-101"]], at_most=0.4,
          against="ResNet-101", clock="")  # fmt: skip


if __name__ == "__main__":
    main()
