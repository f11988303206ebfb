"""Time of label-flip certificates beside the dense linear algebra they cannot avoid, and a plain implementation.

    python scripts/bench/label_flip.py                       # MNIST 1 against 7, complete
    python scripts/bench/label_flip.py --classes 10          # full MNIST; --queries 1000 for a part of it

Processor time is printed beside wall time, because other programs on the machine lengthen only the latter. With
several `--rounds` all parts take turns, and the fastest of each is printed.
"""

import argparse
import math
import resource
import time
from collections.abc import Callable

import torch
from _measure import claim, clock_name, ratios
from torch import Tensor

from robustrun.data import obtain
from robustrun.methods.smoothing import RidgeHat, certify_binary, certify_multiclass


def timed(function: Callable[[], object]) -> tuple[object, float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    result = function()
    return result, time.perf_counter() - wall, time.process_time() - cpu


def mnist(classes: int, queries: int | None) -> tuple[Tensor, Tensor, Tensor]:
    arrays = obtain("mnist")

    def part(split) -> tuple[Tensor, Tensor]:
        x, y = split.images.flatten(1).double() / 255, split.labels
        if classes == 2:
            keep = (y == 1) | (y == 7)
            x, y = x[keep], (y[keep] == 7).long()
        return x, y

    (x, y), (t, _) = part(arrays.train), part(arrays.test)
    return x, y, t[:queries]


def products(x: Tensor, t: Tensor, rank: int) -> None:
    """The Gram matrix, its eigendecomposition, and the alphas: 2 n k^2 + 2 m n r floating-point operations."""
    gram = x.T @ x
    torch.linalg.eigh(gram)
    coordinates = x[:, :rank]
    for start in range(0, len(t), 256):
        t[start : start + 256, :rank] @ coordinates.T


def plain(alpha: Tensor, labels: Tensor, q: float, iterations: int = 50) -> Tensor:
    """A bound for two classes by a fixed number of bisections on K', all labels in each."""
    theta = (2 * labels - 1) * math.log((1 - q) / q)
    side = torch.where(alpha @ torch.sigmoid(theta) >= 0.5, 1.0, -1.0)
    low, high = torch.zeros(len(alpha), dtype=alpha.dtype), 40 / alpha.abs().amax(1)
    for _ in range(iterations):
        middle = (low + high) / 2
        slope = 0.5 - (alpha * torch.sigmoid(theta - (side * middle)[:, None] * alpha)).sum(1)
        go_on = slope * side < 0
        low, high = torch.where(go_on, middle, low), torch.where(go_on, high, middle)
    u = theta - (side * low)[:, None] * alpha
    softplus = torch.nn.functional.softplus
    return side * low / 2 + (softplus(u, threshold=40) - softplus(theta, threshold=40)).sum(1)


DENSE = "unavoidable dense algebra"


def measure(x: Tensor, y: Tensor, t: Tensor, arguments: argparse.Namespace) -> dict:
    """(wall, processor) seconds of each part, and the rank of x."""
    hat, *fit = timed(lambda: RidgeHat.fit(x))
    strength = hat.spectral_regularisation(arguments.gamma)
    rank = len(hat.eigenvalues)
    if arguments.classes == 2:
        _, *certify = timed(lambda: certify_binary(hat, y, t, arguments.q, strength))
    else:
        _, *certify = timed(lambda: certify_multiclass(hat, y, 10, t, arguments.q, strength))
    _, *dense = timed(lambda: products(x, t, rank))
    both = [a + b for a, b in zip(fit, certify, strict=True)]
    times = {"rank": rank, "fit": fit, "certify": certify, "fit + certify": both, DENSE: dense}
    if arguments.classes == 2:
        alpha = hat.alpha(hat.weights(t[: arguments.plain], strength))
        _, *taken = timed(lambda: plain(alpha, y.double(), arguments.q[0]))
        times["plain: 50 bisections (scaled)"] = [seconds * len(t) / len(alpha) for seconds in taken]
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, choices=(2, 10), default=2)
    parser.add_argument("--queries", type=int, help="test points; all if not given")
    parser.add_argument("--q", type=float, nargs="+", default=[0.1])
    parser.add_argument("--gamma", type=float, default=0.086)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--plain", type=int, default=128, help="test points of the plain implementation (2 classes)")
    arguments = parser.parse_args()

    x, y, t = mnist(arguments.classes, arguments.queries)
    rounds = [measure(x, y, t, arguments) for _ in range(arguments.rounds)]
    (n, k), m, rank = x.shape, len(t), rounds[0].pop("rank")
    flops = 2 * n * k * k + 2 * m * n * rank
    print(f"{n:,} training points, {k} features (rank {rank}), {m:,} test points, q = {arguments.q}")
    print(f"{torch.get_num_threads()} threads; dense algebra {flops / 1e9:.0f} GFLOP")
    print(f"{'':32}{'wall s':>9}{'cpu s':>9}{'ratio':>8}")
    fastest = {name: [min(r[name][i] for r in rounds) for i in (0, 1)] for name in rounds[0]}
    for name, (wall, cpu) in fastest.items():
        print(f"{name:32}{wall:9.2f}{cpu:9.2f}{cpu / fastest[DENSE][1]:8.2f}")
    what = f"label flips, {'MNIST 1/7' if arguments.classes == 2 else 'MNIST'}, {m:,} points: fit and certify"
    which = int(clock_name() == "processor")
    ours, dense = ([r[name][which] for r in rounds] for name in ("fit + certify", DENSE))
    claim(what, ratios(ours, dense), at_most=2, against=DENSE)
    if arguments.classes == 2:
        claim(what, ours, at_most=3, unit="s")
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        claim(f"{what}, peak memory", [peak], at_most=8, unit="GB", clock="")


if __name__ == "__main__":
    main()
