"""Certifying with DnCNN and ResNet-110 on CIFAR-sized images: samples a second against the plain loop, and draws saved.

The plain loop draws with torch.randn_like, evaluates eagerly in NCHW float32 with batch normalisation as it is, and
counts classes one by one; on a CPU also in passes of 32, where its activations fit the cache. Ours folds batch
normalisation, runs channels_last in passes that fit, and with --half in bfloat16 too (for machines that have it).
"""

import argparse

import numpy as np
import torch
import torch._inductor.config
from _measure import claim, clock_name, ratios, turns
from scipy.special import ndtr

from robustrun.methods.folding import InferenceCopy
from robustrun.methods.smoothing import Gaussian, NoisyVotes, certified_accuracy, certify, certify_adaptive
from robustrun.models.cifar_resnet import CifarResNet
from robustrun.models.denoisers import DnCNN
from robustrun.roles import ClassificationSpec


def pipeline(depth: int) -> torch.nn.Module:
    """Denoiser and classifier with statistics and weights that are not their initial ones."""
    torch.manual_seed(0)
    spec = ClassificationSpec((3, 32, 32), 10, (0.5,) * 3, (0.25,) * 3)
    model = torch.nn.Sequential(DnCNN(3), CifarResNet(spec, depth=depth))
    with torch.no_grad():
        model[0].layers[-1].weight.normal_(std=0.02)
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(std=0.1)
                module.running_var.uniform_(0.8, 1.2)
    return model.eval()


@torch.no_grad()
def plain(model: torch.nn.Module, image: torch.Tensor, sigma: float, draws: int, batch: int) -> list[int]:
    counts = [0] * 10
    for begin in range(0, draws, batch):
        repeated = image.repeat(min(batch, draws - begin), 1, 1, 1)
        for answer in model(repeated + sigma * torch.randn_like(repeated)).argmax(1).tolist():
            counts[answer] += 1
    return counts


def ours(network: torch.nn.Module, image: torch.Tensor, sigma: float, draws: int, batch: int) -> torch.Tensor:
    votes = NoisyVotes(
        lambda noisy, *_: network(noisy),
        image,
        torch.zeros(1, dtype=torch.int64, device=image.device),
        noise=Gaussian(sigma),
        seed=0,
        classes=10,
        batch_size=batch,
    )
    return votes(torch.zeros(1, dtype=torch.int64), 0, draws)


class Ballot:
    """Votes of halfspaces at given distances: a stand-in for a network whose vote probabilities are known."""

    def __init__(self, margins: np.ndarray, sigma: float):
        self.p, self.generator, self.drawn = ndtr(margins / sigma), np.random.default_rng(0), 0

    def __call__(self, rows: torch.Tensor, first: int, count: int) -> torch.Tensor:
        self.drawn += len(rows) * count
        hits = self.generator.binomial(count, self.p[rows.numpy()])
        return torch.from_numpy(np.stack([hits, count - hits], 1))


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--draws", type=int, default=256)
    arguments.add_argument("--batch", type=int, default=256, help="the paper's is 1000")
    arguments.add_argument("--repeats", type=int, default=3)
    arguments.add_argument("--depth", type=int, default=110, help="of the ResNet")
    arguments.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments.add_argument("--half", action="store_true", help="in bfloat16 too")
    arguments.add_argument("--compile", action="store_true", help="by torch.compile with frozen weights too")
    chosen = arguments.parse_args()
    device = torch.device(chosen.device)
    model = pipeline(chosen.depth).to(device)
    folded = InferenceCopy(model)
    image = torch.rand(1, 3, 32, 32, device=device)
    common = (image, 0.25, chosen.draws, chosen.batch)
    rows = {
        "plain loop": lambda: plain(model, *common),
        "plain loop, batch of 32": lambda: plain(model, *common[:-1], 32),
        "folded, channels_last": lambda: ours(folded, *common),
    }
    if chosen.half:
        half = InferenceCopy(model, torch.bfloat16)
        rows["the same in bfloat16"] = lambda: ours(half, *common)
    if chosen.compile:
        torch._inductor.config.freezing = True
        compiled = InferenceCopy(model)
        compiled.network = torch.compile(compiled.network)
        rows["the same, compiled"] = lambda: ours(compiled, *common)
    times = turns(rows, chosen.repeats)
    fastest = {name: min(taken) for name, taken in times.items()}
    setting = f"{chosen.draws} draws, batch {chosen.batch}, {device}, {torch.get_num_threads()} threads"
    print(f"DnCNN + ResNet-{chosen.depth}, {setting}: samples a second, {clock_name()} time")
    for name, taken in fastest.items():
        print(f"  {name:24} {chosen.draws / taken:8.1f}  {fastest['plain loop'] / taken:5.2f} x")
    kinds = {"folded, channels_last": "float32", "the same in bfloat16": "bfloat16"}
    for name, precision in kinds.items():
        if name in times:
            what = f"certifying with DnCNN + ResNet-{chosen.depth}, {precision}: samples a second"
            claim(what, ratios(times["plain loop"], times[name]), at_least=3, against="the plain loop")

    sigma, grid = 0.5, np.array([0.25, 0.5, 0.75, 1.0, 1.25, 1.5])
    margins = np.random.default_rng(1).exponential(0.5, 500) - 0.15
    fixed, early = Ballot(margins, sigma), Ballot(margins, sigma)
    a = certify(fixed, 500, Gaussian(sigma))
    b = certify_adaptive(early, 500, Gaussian(sigma), radii=grid)
    at = np.append(0.0, grid)
    gap = certified_accuracy(a.prediction == 0, a.radius, at) - certified_accuracy(b.prediction == 0, b.radius, at)
    print(f"adaptive: {fixed.drawn / early.drawn:.2f} x fewer draws for 500 examples at n = 10000,")
    print("  certified accuracy lost at r = " + ", ".join(f"{r:g}: {g:+.3f}" for r, g in zip(at, gap, strict=True)))
    what = f"adaptive certification, certified accuracy within {abs(gap).max():.3f}: draws saved"
    claim(what, [fixed.drawn / early.drawn], at_least=3, against="10,000 draws an example", clock="")


if __name__ == "__main__":
    main()
