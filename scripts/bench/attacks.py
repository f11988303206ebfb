"""PGD evaluation and the training attack against their plain implementations; Philox against torch.rand.

The plain evaluation steps every example at every iteration of every restart, and both plain attacks accumulate
parameter gradients. Ratios are of times in one process, in turns.
"""

import argparse
import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from _measure import claim, ratios, turns
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


def row(name: str, ours: list[float], plain: list[float]) -> None:
    a, b = 1e3 * min(ours), 1e3 * min(plain)
    print(f"{name:48} {a:10.1f} ms {b:10.1f} ms {b / a:6.2f} x", flush=True)


def compare(name: str, ours: Callable[[], object], plain: Callable[[], object], rounds: int) -> None:
    row(name, *turns({"ours": ours, "plain": plain}, rounds).values())


def training_attack(name: str, model: nn.Module, x: Tensor, y: Tensor) -> None:
    for steps, rounds in ((1, 7), (10, 2)):
        compare(
            f"training attack, {steps} steps, {name}",
            lambda: perturb(model, x, y, epsilon=0.03, alpha=0.01, steps=steps),  # noqa: B023
            lambda: plain_perturb(model, x, y, 0.03, 0.01, steps),  # noqa: B023
            rounds,
        )


def evaluation(model: nn.Module, x: Tensor, epsilon: float, steps: int, restarts: int, rounds: int) -> None:
    """Labels are the network's own answers, and an untrained network's answers are robust in part."""
    y = model(x).argmax(1)
    options = {"epsilon": epsilon, "alpha": epsilon / 4, "steps": steps, "restarts": restarts}
    ways: dict[str, Callable[[], object]] = {
        select: functools.partial(pgd, model, x, y, select=select, **options) for select in ("max_loss", "any_break")
    }
    found = {select: attack() for select, attack in ways.items()}
    times = turns(ways | {"plain": lambda: plain_pgd(model, x, y, **options)}, rounds)
    for select, result in found.items():
        share = result.forwards / (len(x) * (steps + 1) * restarts)
        robust = 1 - result.success.double().mean().item()
        row(f"PGD, {select}: {robust:.0%} robust, {share:.0%} of passes", times[select], times["plain"])
    what = f"PGD-{steps}-{restarts} with early-out, {robust:.0%} robust (so the target)"
    claim(what, ratios(times["plain"], times["any_break"]), at_least=1 / max(robust, 0.01), against="a plain PGD loop")


def random_numbers(count: int, device: str) -> None:
    indices = torch.arange(count, device=device)
    for name, counter_based, stateful in (("uniform", uniform, torch.rand), ("normal", normal, torch.randn)):
        compare(
            f"Philox {name}, {count} x 3072",
            lambda: counter_based(0, indices, (3, 32, 32)),  # noqa: B023
            lambda: stateful(count, 3, 32, 32, device=device),  # noqa: B023
            5,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--examples", type=int, default=256)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--restarts", type=int, default=3)
    parser.add_argument("--epsilon", type=float, nargs="+", default=[0.06], help="of the evaluation")
    parser.add_argument("--rounds", type=int, default=2, help="of the evaluation")
    parser.add_argument("--only", choices=("training", "evaluation", "random"))
    arguments = parser.parse_args()
    device, count = arguments.device, arguments.examples
    torch.manual_seed(0)
    print(f"{device}, {torch.get_num_threads()} threads{'':30} {'ours':>10} {'plain':>13} {'ratio':>9}")
    small = MnistCNN(ClassificationSpec(input_shape=(1, 28, 28), classes=10)).to(device)
    if arguments.only in (None, "training"):
        large = PreActResNet18(ClassificationSpec(input_shape=(3, 32, 32), classes=10)).to(device)
        cases = (
            ("MNIST CNN", small, (1, 28, 28), count),
            ("PreActResNet18", large, (3, 32, 32), 16 if device == "cpu" else count),
        )
        for name, model, shape, batch in cases:
            x, y = torch.rand(batch, *shape, device=device), torch.randint(10, (batch,), device=device)
            training_attack(name, model, x, y)
    if arguments.only in (None, "evaluation"):
        x = torch.rand(count, 1, 28, 28, device=device)
        for epsilon in arguments.epsilon:
            evaluation(small.eval(), x, epsilon, arguments.steps, arguments.restarts, arguments.rounds)
    if arguments.only in (None, "random"):
        random_numbers(count, device)


if __name__ == "__main__":
    main()
