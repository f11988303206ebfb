"""Stable dynamics: the training step against nested autograd, data generation against a per-state integrator."""

import argparse
import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from _measure import claim, ratios, turns
from torch import Tensor, nn

from robustrun.methods.dynamics import NLinkPendulum, integrator, rollout
from robustrun.methods.lyapunov import ConvexNetwork, SmoothRelu, StableDynamics, WrappedLyapunov


def nested_autograd(model: StableDynamics, x: Tensor) -> Tensor:
    """The same model as it is usually written: V by layers, its gradient by autograd within the forward pass."""
    lyapunov = model.lyapunov
    network, outer = lyapunov.network, lyapunov.outer.width
    sizes = (*network.hidden, 1)
    weights, biases = network.passthrough.weight.split(sizes), network.passthrough.bias.split(sizes)

    def smooth_relu(r: Tensor, width: float) -> Tensor:
        return torch.where(r <= 0, torch.zeros_like(r), torch.where(r < width, r * r / (2 * width), r - width / 2))

    def g(x: Tensor) -> Tensor:
        z = smooth_relu(F.linear(x, weights[0], biases[0]), network.activation.width)
        for i, scale in enumerate(network.scales, 1):
            a = F.linear(x, weights[i], biases[i]) + F.linear(z, scale * F.softplus(network.couplings[i - 1]))
            z = smooth_relu(a, network.activation.width) if i < len(network.scales) else a
        return z

    x = x.detach().clone().requires_grad_(True)
    value = smooth_relu(g(x) - g(torch.zeros_like(x[:1])), outer)
    value = value + lyapunov.epsilon * (x * x).sum(1, keepdim=True)
    (gradient,) = torch.autograd.grad(value.sum(), x, create_graph=True)
    free = model.nominal(x)
    excess = F.relu((gradient * free).sum(1, keepdim=True) + model.alpha * value)
    return free - gradient * (excess / (gradient * gradient).sum(1, keepdim=True))


STEPS = 20  # in one measurement


def training_step(links: int, repeats: int) -> None:
    n, batch = 2 * links, 200 * links
    nominal = nn.Sequential(nn.Linear(n, 100), nn.ReLU(), nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, n))
    lyapunov = WrappedLyapunov(ConvexNetwork(n, (60, 60), SmoothRelu(5e-3)), n, epsilon=1e-3)
    model = StableDynamics(nominal, lyapunov, alpha=1e-3)
    x = (2 * torch.rand(batch, n) - 1) * math.pi
    target = NLinkPendulum(links).field(x)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.0)  # every call does the same work

    def steps(predict: Callable[[Tensor], Tensor]) -> None:
        for _ in range(STEPS):
            optimizer.zero_grad()
            F.mse_loss(predict(x), target).backward()
            optimizer.step()

    torch.testing.assert_close(model(x), nested_autograd(model, x), rtol=1e-3, atol=1e-3)
    ways = {"plain": lambda: steps(lambda x: nested_autograd(model, x)), "ours": lambda: steps(model)}
    times = turns(ways, repeats)
    plain, ours = (min(seconds) / STEPS * 1e3 for seconds in times.values())
    row(f"training step, N = {links}, batch {batch}", plain, ours, "ms")
    if links == 8:
        what = "training step of the 8-link pendulum model"
        claim(what, ratios(times["plain"], times["ours"]), at_least=2, against="nested autograd")


def per_state_field(links: int) -> Callable[[np.ndarray], np.ndarray]:
    """The equations of motion of one state, in NumPy with a dense mass matrix."""
    length = 1.0 / links
    index = np.arange(links)
    carried = links - np.maximum(index[:, None], index)
    inertia, weight = carried * length**2, 9.81 * length * (links - index)

    def field(x: np.ndarray) -> np.ndarray:
        q, u = x[:links], x[links:]
        gap = q[:, None] - q
        torque = -(inertia * np.sin(gap)) @ (u * u) - weight * np.sin(q) - 0.3 * u
        return np.concatenate([u, np.linalg.solve(inertia * np.cos(gap), torque)])

    return field


def data_generation(links: int, starts: int, steps: int, repeats: int) -> None:
    pendulum, h = NLinkPendulum(links), 0.01
    start = (2 * torch.rand(starts, 2 * links, dtype=torch.float64) - 1) * math.pi / 8
    field, few = per_state_field(links), max(1, starts // 100)  # a hundredth of the starts is enough to time it
    ends: dict[str, np.ndarray] = {}

    def batched() -> None:
        ends["ours"] = rollout(integrator(pendulum.field, h), start, steps)[-1, :few].numpy()

    def one_by_one() -> None:
        ends["plain"] = start[:few].numpy().copy()
        for b, x in enumerate(ends["plain"]):
            for _ in range(steps):
                k1 = field(x)
                k2 = field(x + h / 2 * k1)
                k3 = field(x + h / 2 * k2)
                k4 = field(x + h * k3)
                x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
            ends["plain"][b] = x

    times = turns({"plain": one_by_one, "ours": batched}, repeats)
    np.testing.assert_allclose(ends["ours"], ends["plain"], atol=1e-6)
    plain, ours = [seconds * starts / few for seconds in times["plain"]], times["ours"]
    row(f"data, N = {links}, {starts} starts x {steps} RK4 steps", min(plain), min(ours), "s")
    if links == 8:
        what = f"data of the 8-link pendulum, {starts} starts"
        claim(what, ratios(plain, ours), at_least=10, against="an integrator a state")


def row(name: str, plain: float, ours: float, unit: str) -> None:
    print(f"{name:48} {plain:9.2f} {unit:2} {ours:9.2f} {unit:2} {plain / ours:7.1f} x", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--links", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--starts", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(arguments.threads)
    print(f"{'':48} {'plain':>12} {'ours':>12} {'speed-up':>9}")
    for links in arguments.links:
        training_step(links, arguments.repeats)
    for links in arguments.links:
        data_generation(links, arguments.starts, arguments.steps, max(1, arguments.repeats // 4))


if __name__ == "__main__":
    main()
