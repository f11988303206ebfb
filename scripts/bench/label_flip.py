"""Time of label-flip certificates beside the dense linear algebra they cannot avoid, and a plain implementation.

    python scripts/bench/label_flip.py                       # MNIST 1 against 7, complete
    python scripts/bench/label_flip.py --classes 10          # full MNIST; --queries 1000 for a part of it

Processor time is printed beside wall time, because other programs on the machine lengthen only the latter.
"""

import argparse
import math
import time
from collections.abc import Callable

import torch
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, choices=(2, 10), default=2)
    parser.add_argument("--queries", type=int, help="test points; all if not given")
    parser.add_argument("--q", type=float, nargs="+", default=[0.1])
    parser.add_argument("--gamma", type=float, default=0.086)
    parser.add_argument("--plain", type=int, default=128, help="test points of the plain implementation (2 classes)")
    arguments = parser.parse_args()

    x, y, t = mnist(arguments.classes, arguments.queries)
    hat, fit_wall, fit_cpu = timed(lambda: RidgeHat.fit(x))
    strength = hat.spectral_regularisation(arguments.gamma)
    rank = len(hat.eigenvalues)
    if arguments.classes == 2:
        _, wall, cpu = timed(lambda: certify_binary(hat, y, t, arguments.q, strength))
    else:
        _, wall, cpu = timed(lambda: certify_multiclass(hat, y, 10, t, arguments.q, strength))
    _, dense_wall, dense_cpu = timed(lambda: products(x, t, rank))
    (n, k), m = x.shape, len(t)
    flops = 2 * n * k * k + 2 * m * n * rank
    print(f"{n:,} training points, {k} features (rank {rank}), {m:,} test points, q = {arguments.q}")
    print(f"{torch.get_num_threads()} threads; dense algebra {flops / 1e9:.0f} GFLOP")
    print(f"{'':32}{'wall s':>9}{'cpu s':>9}{'ratio':>8}")
    for name, a, b in (
        ("fit", fit_wall, fit_cpu),
        ("certify", wall, cpu),
        ("fit + certify", fit_wall + wall, fit_cpu + cpu),
        ("unavoidable dense algebra", dense_wall, dense_cpu),
    ):
        print(f"{name:32}{a:9.2f}{b:9.2f}{b / dense_cpu:8.2f}")
    if arguments.classes == 2:
        alpha = hat.alpha(hat.weights(t[: arguments.plain], strength))
        _, a, b = timed(lambda: plain(alpha, y.double(), arguments.q[0]))
        scale = m / len(alpha)
        print(f"{'plain: 50 bisections (scaled)':32}{a * scale:9.2f}{b * scale:9.2f}{b * scale / dense_cpu:8.2f}")


if __name__ == "__main__":
    main()
