"""A training step of monotone equilibrium networks against the plain implementation (`equilibrium_plain`).

Batch 128, tolerance 1e-2, Peaceman-Rachford with the same step length and the same weights, in turns in one process;
the plain one stops as soon as its residuals, forward and backward, are those that this package's solver ends with. Also
a step of a network with one explicit convolution in the equilibrium's place, and memory as iterations grow.

    OMP_NUM_THREADS=2 python scripts/bench/equilibrium.py
    OMP_NUM_THREADS=2 python scripts/bench/equilibrium.py --models conv81 multi60 --pairs 5

Seconds are of the processor on one thread, of the wall on more. Ratios are the median over pairs.
"""

import argparse
import resource
import statistics

import torch
import torch.nn.functional as F
from _measure import claim, clock, clock_name, ratios
from equilibrium_plain import PlainConv, PlainMultiTier, distance
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from robustrun.methods.equilibrium import Splitting
from robustrun.models.equilibrium import MonotoneConv, MonotoneMultiTier
from robustrun.roles import ClassificationSpec

MNIST = ClassificationSpec(input_shape=(1, 28, 28), classes=10)
CIFAR = ClassificationSpec((3, 32, 32), 10, (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616))
MODELS = {
    "conv56": (MNIST, lambda: MonotoneConv(MNIST, channels=56)),
    "conv81": (CIFAR, lambda: MonotoneConv(CIFAR, channels=81)),
    "multi32": (MNIST, lambda: MonotoneMultiTier(MNIST, channels=(16, 32, 32))),
    "multi60": (CIFAR, lambda: MonotoneMultiTier(CIFAR, channels=(16, 32, 60))),
}


class Explicit(nn.Module):
    """The same network with one explicit convolution, as large as A, in the place of the equilibrium."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network
        first = network.layer.injection
        self.injection = nn.Conv2d(first.in_channels, first.out_channels, 3, padding=2)
        self.convolution = nn.Conv2d(first.out_channels, first.out_channels, 3, padding=1)
        side = len(network.layer.mask_0)
        features = first.out_channels * (side // 4) ** 2
        self.readout = nn.Linear(features, network.readout.out_features)

    def forward(self, inputs: Tensor) -> Tensor:
        z = F.relu(self.convolution(F.relu(self.injection(self.network.embed(inputs)))))
        return self.readout(F.avg_pool2d(z, 4).flatten(1))


def stepper(model: nn.Module, inputs: Tensor, labels: Tensor):
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)

    def step() -> float:
        """Seconds. The weights are put back: every step does the same."""
        before = [p.detach().clone() for p in model.parameters()]
        start = clock()
        loss = F.cross_entropy(model(inputs), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seconds = clock() - start
        with torch.no_grad():
            for parameter, value in zip(model.parameters(), before, strict=True):
                parameter.copy_(value)
        return seconds

    return step


def residuals(network: nn.Module, inputs: Tensor, labels: Tensor) -> tuple[float, float]:
    """|z - f(z)| / |z| and |y - J (W^T y + g)| / |y| where this package's solvers end."""
    layer, seen = network.layer, {}
    bias = layer.bias(network.embed(inputs))
    z = layer.equilibrium(network.embed(inputs))
    for tier in z:
        tier.retain_grad()
    F.cross_entropy(network.readout(network.pool(z[-1])), labels).backward()
    with torch.no_grad():
        w, tiers = layer.operator.fixed(), layer.activation
        z, gradient = tuple(t.detach() for t in z), tuple(torch.zeros_like(t) if t.grad is None else t.grad for t in z)
        f = tuple(tier(a + b) for tier, a, b in zip(tiers, w(z), bias, strict=True))
        y = layer.statistics.backward.z
        back = tuple(
            tier.slope(t) * (a + g) for tier, t, a, g in zip(tiers, z, w(y, transpose=True), gradient, strict=True)
        )
        seen = distance(z, f), distance(y, back)
    network.zero_grad()
    return seen


def growth(network: nn.Module, inputs: Tensor, labels: Tensor) -> list[float]:
    """Peak memory of the process in MB after steps of 4 and of 16 iterations forward and backward."""
    peaks, before = [], network.layer.settings
    for iterations in (4, 16):
        network.layer.settings = Splitting(rtol=0.0, max_iterations=iterations)
        step = stepper(network, inputs, labels)
        step(), step()  # the first one's peak depends on what was freed before it
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    network.layer.settings = before
    return peaks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--scale", type=float, default=1.0, help="of g and h: 1 as at initialisation, 3 as trained")
    options = parser.parse_args()
    table = Table(title=f"A training step, batch {options.batch}, {torch.get_num_threads()} threads, {clock_name()} s")
    for heading in (
        "model",
        "ours s",
        "plain s",
        "ratio",
        "its",
        "its plain",
        "residuals",
        "explicit s",
        "MB 4/16 its",
    ):
        table.add_column(heading, justify="right")
    claims = []
    for name in options.models:
        torch.manual_seed(0)
        spec, build = MODELS[name]
        network = build()
        with torch.no_grad():
            for scale in (network.layer.operator.g, network.layer.operator.h):
                scale.fill_(options.scale)
        inputs = torch.rand(options.batch, *spec.input_shape)
        labels = torch.randint(10, (options.batch,))
        plain = (PlainConv if name.startswith("conv") else PlainMultiTier)(network)
        targets = residuals(network, inputs, labels)
        plain.targets = tuple(t * 1.01 for t in targets)
        peaks = growth(network, inputs, labels)
        if name == options.models[0]:  # the process's peak: behind larger ones, a later model's would not show
            claims.append((f"{name}, peak memory at 16 iterations", [peaks[1] / peaks[0]], None, 1.05))
        steps = [stepper(model, inputs, labels) for model in (network, plain, Explicit(network))]
        for step in steps:
            step()
        times = [[step() for step in steps] for _ in range(options.pairs)]
        columns = list(zip(*times, strict=True))
        ours, theirs, explicit = map(statistics.median, columns)
        found = ratios(columns[1], columns[0])
        claims.append((f"{name}, a training step of {options.batch}", found, 5 if name.startswith("conv") else 2, None))
        used = network.layer.statistics
        its = "/".join(str(int(s.iterations[0])) for s in (used.forward, used.backward))
        table.add_row(
            name,
            f"{ours:.2f}",
            f"{theirs:.2f}",
            f"{statistics.median(found):.1f}",
            its,
            "/".join(map(str, plain.iterations)),
            "{:.1e}/{:.1e}".format(*targets),
            f"{explicit:.2f} ({ours / explicit:.1f} x)",
            "/".join(f"{peak:.0f}" for peak in peaks),
        )
    Console(width=130).print(table)
    for what, values, at_least, at_most in claims:
        memory = at_most is not None
        against = "4 iterations" if memory else "the plain implementation"
        kind = {"clock": ""} if memory else {}
        claim(what, values, at_least=at_least, at_most=at_most, against=against, **kind)


if __name__ == "__main__":
    main()
