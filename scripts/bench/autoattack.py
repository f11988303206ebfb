"""AutoAttack against torchattacks' (extra `attacks`): robust accuracy and time on one trained network.

The network is the MNIST CNN of arXiv 2001.03994, trained here by FGSM from a random start. Run with
`python scripts/bench/autoattack.py [--norm linf l2] [--examples 200]`.
"""

import argparse

import torch
import torch.nn.functional as F
from _measure import claim, clock, clock_name
from torch import Tensor

from robustrun.data import obtain
from robustrun.methods.attacks import autoattack, perturb
from robustrun.models.mnist_cnn import MnistCNN
from robustrun.roles import ClassificationSpec


def train(images: Tensor, labels: Tensor, epochs: int, epsilon: float) -> MnistCNN:
    torch.manual_seed(0)
    model = MnistCNN(ClassificationSpec(input_shape=(1, 28, 28), classes=10)).to(images.device)
    steps = epochs * (len(images) // 100)
    optimiser = torch.optim.Adam(model.parameters(), lr=5e-3)
    peak = 0.4 * steps
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min((step + 1) / peak, (steps - step) / (steps - peak))
    )
    for _ in range(epochs):
        for batch in torch.randperm(len(images), device=images.device)[: len(images) // 100 * 100].split(100):
            x, y = images[batch], labels[batch]
            delta = perturb(model, x, y, epsilon=epsilon, alpha=1.25 * epsilon, init_box="none")
            optimiser.zero_grad()
            F.cross_entropy(model(x + delta), y).backward()
            optimiser.step()
            schedule.step()
    return model.eval()


def reference(model: MnistCNN, x: Tensor, y: Tensor, norm: str, epsilon: float, steps: int, queries: int) -> float:
    """The same ensemble of torchattacks (whose own "standard" ensemble takes 10 steps, not the paper's 100)."""
    import torchattacks

    threat = {"norm": {"linf": "Linf", "l2": "L2"}[norm], "eps": epsilon, "seed": 0}
    ensemble = torchattacks.MultiAttack(
        [
            torchattacks.APGD(model, steps=steps, loss="ce", **threat),
            torchattacks.APGDT(model, steps=steps, n_classes=10, **threat),
            torchattacks.FAB(model, steps=steps, multi_targeted=True, n_classes=10, **threat),
            torchattacks.Square(model, n_queries=queries, **threat),
        ]
    )
    points = ensemble(x, y)
    delta = points - x
    size = delta.abs().amax() if norm == "linf" else delta.flatten(1).norm(dim=1).max()
    assert size <= epsilon * 1.001, f"the reference left the ball: {size}"
    with torch.no_grad():
        return (model(points).argmax(1) == y).double().mean().item()


def compare(model: MnistCNN, x: Tensor, y: Tensor, norm: str, epsilon: float, arguments: argparse.Namespace) -> None:
    budget = {"steps": arguments.steps, "queries": arguments.queries}
    begin = clock()
    generator = torch.Generator(arguments.device).manual_seed(0)
    ours = autoattack(model, x, y, norm=norm, epsilon=epsilon, generator=generator, **budget)
    ours_seconds = clock() - begin
    print(f"{len(x)} images, {norm} {epsilon:g}, {arguments.device}, {clock_name()} time")
    print("after each attack: " + ", ".join(f"{k} {v:.3f}" for k, v in ours.robust_accuracy.items()))
    accuracy = 1 - ours.success.double().mean().item()
    print(f"robustrun     robust accuracy {accuracy:.4f}  {ours_seconds:8.1f} s")
    if arguments.skip_reference:
        return
    import torchattacks  # noqa: F401  # so that its import is not timed

    begin = clock()
    theirs = reference(model, x, y, norm, epsilon, **budget)
    seconds = clock() - begin
    times = seconds / ours_seconds
    print(f"torchattacks  robust accuracy {theirs:.4f}  {seconds:8.1f} s  ({times:.1f} times ours)")
    right = ours.robust_accuracy["clean"]
    what, against = f"AutoAttack in {norm}, {len(x)} MNIST images, {right:.0%} of them right at first", "torchattacks"
    claim(f"{what}: time", [times], at_least=1, against=against)
    more = round((accuracy - theirs) * len(x))
    claim(f"{what}: images left robust beyond theirs", [more], at_most=0, against=against, unit="", clock="")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--norm", choices=["linf", "l2"], nargs="+", default=["linf"])
    parser.add_argument("--epsilon", type=float, help="0.3 in linf, 2 in l2")
    parser.add_argument("--examples", type=int, default=200)
    parser.add_argument("--steps", type=int, default=100, help="of APGD and FAB")
    parser.add_argument("--queries", type=int, default=5000, help="of Square")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--train", type=int, default=20_000, help="training images")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--skip-reference", action="store_true")
    arguments = parser.parse_args()

    data = obtain("mnist").to(torch.device(arguments.device))
    images, labels = data.train.images[: arguments.train].float() / 255, data.train.labels[: arguments.train]
    x, y = data.test.images[: arguments.examples].float() / 255, data.test.labels[: arguments.examples]
    model = train(images, labels, arguments.epochs, 0.3)
    for norm in arguments.norm:
        epsilon = arguments.epsilon or {"linf": 0.3, "l2": 2.0}[norm]
        compare(model, x, y, norm, epsilon, arguments)


if __name__ == "__main__":
    main()
