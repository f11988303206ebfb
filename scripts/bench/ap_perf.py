"""Training on a metric: an epoch of the game's solver against the plain implementation, and growth with n.

The plain implementation solves every batch from nothing: 100 ADMM iterations (rho = 1, no over-relaxation), the
linear step through matrix square roots and eigendecompositions, and a projection that loops over levels in Python
and searches the last multiplier with a scalar root finder. Ours is warm from batch to batch and stops at the plain
one's mean duality gap. Both train the same network on the same batches.
"""

import argparse
import statistics

import numpy as np
import torch
from _measure import claim, clock, timed
from scipy.linalg import sqrtm
from scipy.optimize import brentq
from torch import nn

from robustrun.methods.adversarial_prediction import (
    ADMM,
    AdversarialPredictionLoss,
    Metric,
    game_of,
    parse_metric,
    solve_game,
)

CPU = torch.device("cpu")


def plain_row(a, k):
    """The projection of one level on the cone of its marginals, and its r_k: raise N, then m, until consistent."""
    n, s = len(a), np.sort(a)[::-1]
    sums = np.concatenate([[0.0], np.cumsum(s)])
    if s[0] <= 0:
        return np.zeros(n), 0.0
    m, count = 0, int((a > 0).sum())
    while True:
        free, inner = k - m, count - m
        det = free**2 + m * inner
        r = (inner * sums[m] + free * (sums[count] - sums[m])) / det
        t = (free * sums[m] - m * (sums[count] - sums[m])) / det
        if count < n and s[count] + t > 1e-12:
            count += 1
        elif m < k - 1 and s[m] + t > r + 1e-12:
            m += 1
        else:
            return np.clip(a + t, 0, r), r


def plain_project(points):
    """The projection onto Delta, level by level."""
    n = len(points)

    def at(shift):
        rows = [plain_row(points[k - 1] - shift / k, k) for k in range(1, n + 1)]
        return np.stack([row for row, _ in rows]), sum(r for _, r in rows) - 1

    projection, surplus = at(0.0)
    if surplus <= 0:
        return projection
    top = (points.max(1) * np.arange(1, n + 1)).max()
    return at(brentq(lambda s: at(s)[1], 0.0, top, xtol=1e-6, maxiter=20, disp=False))[0]


def plain_solve(game, scores, iterations=100):
    """(Q, P) after a fixed number of iterations, everything set up anew for the batch."""
    n, c, b = game.n, game.joint.numpy(), game.totals.numpy()
    root = np.real(sqrtm(c @ c.T + np.eye(n)))
    back = np.linalg.inv(root)
    cross = back @ (n * b @ b.T + c @ b.T + b @ c.T) @ back
    sigma, u = np.linalg.eigh((cross + cross.T) / 2)
    lam, v = np.linalg.eigh(np.ones((n, n)))
    d = game.predictor_bonus.numpy()[:, None]
    tilt = game.adversary_bonus.numpy()[:, None] - scores
    ones = np.ones((n, n))

    def payoffs(x):
        return c.T @ x + b.T @ x @ ones + d

    x = w = dual = np.zeros((n, n))
    for _ in range(iterations):
        q = plain_project(x + w - tilt)
        z_of_x = payoffs(x)
        p = plain_project(z_of_x + dual)
        z = z_of_x + dual - p
        g = d - z + dual
        f = back @ (c @ g + b @ g @ ones + w - q)
        x = -back @ (u @ ((u.T @ f @ v) / (1 + np.outer(sigma, lam))) @ v.T)
        dual, w = dual + payoffs(x) - z, w + x - q
    return torch.from_numpy(q), torch.from_numpy(p)


def gap_of(game, scores, q, p):
    """The duality gap that two plays prove."""
    return (game.upper(q, scores) - game.lower(p, scores)).item()


class PlainLoss:
    """The plain solver as a training loss: its gradient is the adversary's marginals minus the labels."""

    def __init__(self, metric: Metric):
        self.metric = metric

    def __call__(self, scores, labels):
        game = game_of(self.metric, len(scores), CPU)
        psi = scores.detach().double()
        q, p = plain_solve(game, psi.numpy())
        self.gap = gap_of(game, psi, q, p)
        return (scores * (q.sum(0).clamp(max=1).float() - labels)).sum()


def epochs(loss_of, gap, n, batches, rounds):
    """Seconds of each batch in the last epoch and its mean gap, on a synthetic imbalanced problem."""
    generator = torch.Generator().manual_seed(0)
    y = (torch.rand(n * batches, generator=generator) < 0.2).float()
    X = torch.randn(n * batches, 10, generator=generator) + 0.4 * y[:, None]
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(10, 100), nn.ReLU(), nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, 1))
    optimiser = torch.optim.SGD(net.parameters(), lr=3e-3)
    for _ in range(rounds):
        gaps, seconds = [], []
        for rows in torch.arange(n * batches).split(n):
            begin = clock()
            optimiser.zero_grad()
            loss_of(net(X[rows]).flatten(), y[rows]).backward()
            optimiser.step()
            seconds.append(clock() - begin)
            gaps.append(gap())
    return seconds, float(np.mean(gaps))


def compare(metric, n, batches):
    plain = PlainLoss(metric)
    plain_seconds, wanted = epochs(plain, lambda: plain.gap, n, min(batches, 4), 1)
    # the mean gap lies below the tolerance where games end, so aim at the plain one's mean itself
    ours = AdversarialPredictionLoss(metric, tolerance=wanted, max_iterations=300, check_every=5)
    seconds, reached = epochs(ours, lambda: ours.last.gap.item(), n, batches, 3)
    slow, fast = statistics.mean(plain_seconds), statistics.mean(seconds)
    print(f"{metric!s:>8} {n:>5} {1e3 * slow:>12.1f} {wanted:>9.4f}", end=" ")
    print(f"{1e3 * fast:>11.2f} {reached:>9.4f} {slow / fast:>7.0f}x")
    what, against = f"AP-Perf for {metric!s}, a step of {n} examples", "a plain ADMM of 100 iterations"
    claim(what, [batch / fast for batch in plain_seconds], at_least=10, against=against)
    claim(f"{what}: duality gap", [reached / wanted], at_most=1, against=against, clock="")


def growth(metric, sizes):
    print("\nmilliseconds an iteration, and its growth beside n^3 and the factorisation of an n x n matrix")
    print(f"{'n':>5} {'iteration':>10} {'growth':>7} {'n^3':>7} {'rank':>5} {'eigh':>9} {'growth':>7}")
    first = None
    for n in sizes:
        generator = torch.Generator().manual_seed(n)
        scores = 0.3 * torch.randn(1, n, generator=generator)
        labels = (torch.rand(1, n, generator=generator) < 0.2).long()
        count = 40 if n <= 100 else 15
        state = solve_game(scores, labels, metric, admm=ADMM(0, 60, 30)).state
        warm = {"admm": ADMM(0, count, count), "start": state}
        ours = timed(lambda: solve_game(scores, labels, metric, **warm)) / count  # noqa: B023
        matrix = np.random.default_rng(0).normal(size=(n, n))
        matrix = matrix + matrix.T
        factor = min(timed(lambda: np.linalg.eigh(matrix)) for _ in range(3))  # noqa: B023
        first = first or (ours, factor, n)
        rank = game_of(metric, n, CPU).scale.numel()
        print(
            f"{n:>5} {1e3 * ours:>10.2f} {ours / first[0]:>6.1f}x {(n / first[2]) ** 3:>6.0f}x {rank:>5}"
            f" {1e3 * factor:>9.2f} {factor / first[1]:>6.1f}x"
        )
    what = f"AP-Perf: growth of an iteration from {sizes[0]} to {sizes[-1]} examples"
    claim(what, [ours / first[0]], at_most=(sizes[-1] / sizes[0]) ** 3, against=f"{sizes[0]} examples (target: n^3)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--metrics", nargs="+", default=["f2", "kappa"])
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[25, 100])
    parser.add_argument("--batches", type=int, default=40, help="batches an epoch")
    parser.add_argument("--growth", nargs="+", type=int, default=[25, 50, 100, 200, 400])
    args = parser.parse_args()
    torch.set_num_threads(1)
    print("milliseconds a training step (network included) and mean duality gap; three epochs, the last one timed")
    print(f"{'metric':>8} {'n':>5} {'plain, cold':>12} {'gap':>9} {'ours, warm':>11} {'gap':>9} {'ratio':>8}")
    for metric in args.metrics:
        for n in args.batch_sizes:
            compare(parse_metric(metric), n, args.batches)
    growth(parse_metric(args.metrics[0]), args.growth)


if __name__ == "__main__":
    main()
