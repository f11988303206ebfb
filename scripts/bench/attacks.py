"""PGD evaluation and the training attack against their plain implementations; Philox against torch.rand.

The plain evaluation steps every example at every iteration of every restart, and both plain attacks accumulate
parameter gradients. Ratios are of times in one process, each the best of a few runs.
"""

import argparse
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustrun.methods.attacks import Ball, perturb, pgd
from robustrun.methods.random import normal, uniform
from robustrun.models.mnist_cnn import MnistCNN
from robustrun.models.preact_resnet import PreActResNet18
from robustrun.roles import ClassificationSpec


def plain_pgd(model: nn.Module, x: Tensor, y: Tensor, epsilon: float, alpha: float, steps: int, restarts: int):
    ball = Ball(x, "linf", epsilon)
    best_loss, best_delta = torch.zeros(len(x), device=x.device), torch.zeros_like(x)
    for _ in range(restarts):
        delta = ball.project(ball.start()).requires_grad_()
        for _ in range(steps):
            logits = model(x + delta)
            moves = (logits.argmax(1) == y).view(-1, 1, 1, 1)
            F.cross_entropy(logits, y).backward()
            stepped = (delta + alpha * delta.grad.sign()).clamp(-epsilon, epsilon)
            stepped = (x + stepped).clamp(0, 1) - x
            delta = torch.where(moves, stepped, delta).detach().requires_grad_()
        loss = F.cross_entropy(model(x + delta), y, reduction="none").detach()
        better = loss >= best_loss
        best_delta[better], best_loss[better] = delta.detach()[better], loss[better]
    return model(x + best_delta).argmax(1) != y


def plain_perturb(model: nn.Module, x: Tensor, y: Tensor, epsilon: float, alpha: float, steps: int) -> Tensor:
    delta = torch.empty_like(x).uniform_(-epsilon, epsilon)
    delta = ((x + delta).clamp(0, 1) - x).requires_grad_()
    for _ in range(steps):
        F.cross_entropy(model(x + delta), y).backward()
        stepped = (delta + alpha * delta.grad.sign()).clamp(-epsilon, epsilon)
        delta = ((x + stepped).clamp(0, 1) - x).detach().requires_grad_()
    return delta.detach()


def seconds(call: Callable[[], object], device: str, runs: int = 2) -> float:
    best = float("inf")
    for _ in range(runs):
        begin = time.perf_counter()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - begin)
    return best


def row(name: str, ours: float, plain: float) -> None:
    print(f"{name:48} {ours * 1e3:10.1f} ms {plain * 1e3:10.1f} ms {plain / ours:6.2f} x")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--examples", type=int, default=256)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--restarts", type=int, default=3)
    arguments = parser.parse_args()
    device, count = arguments.device, arguments.examples
    torch.manual_seed(0)
    print(f"{device}, {torch.get_num_threads()} threads{'':30} {'ours':>10} {'plain':>13} {'ratio':>9}")

    networks = {
        "MNIST CNN": (MnistCNN(ClassificationSpec(input_shape=(1, 28, 28), classes=10)), (1, 28, 28), count),
        "PreActResNet18": (
            PreActResNet18(ClassificationSpec(input_shape=(3, 32, 32), classes=10)),
            (3, 32, 32),
            16 if device == "cpu" else count,
        ),
    }
    for name, (model, shape, batch) in networks.items():
        model = model.to(device)
        x = torch.rand(batch, *shape, device=device)
        y = torch.randint(10, (batch,), device=device)
        for steps, runs in ((1, 7), (10, 2)):
            ours = seconds(lambda: perturb(model, x, y, epsilon=0.03, alpha=0.01, steps=steps), device, runs)  # noqa: B023
            plain = seconds(lambda: plain_perturb(model, x, y, 0.03, 0.01, steps), device, runs)  # noqa: B023
            row(f"training attack, {steps} steps, {name}", ours, plain)

    model, shape, _ = networks["MNIST CNN"]
    model = model.eval()
    x = torch.rand(count, *shape, device=device)
    y = model(x).argmax(1)
    options = {"epsilon": 0.06, "alpha": 0.015, "steps": arguments.steps, "restarts": arguments.restarts}
    plain = seconds(lambda: plain_pgd(model, x, y, **options), device)
    for select in ("max_loss", "any_break"):
        result = pgd(model, x, y, select=select, **options)
        ours = seconds(lambda: pgd(model, x, y, select=select, **options), device)  # noqa: B023
        share = result.forwards / (count * (arguments.steps + 1) * arguments.restarts)
        robust = 1 - result.success.double().mean().item()
        row(f"PGD, {select}: {robust:.0%} robust, {share:.0%} of passes", ours, plain)

    indices = torch.arange(count, device=device)
    for name, counter_based, stateful in (("uniform", uniform, torch.rand), ("normal", normal, torch.randn)):
        ours = seconds(lambda: counter_based(0, indices, (3, 32, 32)), device, 5)  # noqa: B023
        plain = seconds(lambda: stateful(count, 3, 32, 32, device=device), device, 5)  # noqa: B023
        row(f"Philox {name}, {count} x 3072", ours, plain)


if __name__ == "__main__":
    main()
