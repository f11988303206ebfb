"""Small networks, regions and brute force that the tests of bounds share."""

import itertools

import numpy as np
import torch
from scipy import optimize
from torch import Tensor, nn
from torch.nn import functional as F

from robustrun.methods.bounds import Ball, Box


def mlp(*widths: int, seed: int = 0, dtype=torch.float64) -> nn.Sequential:
    """A ReLU network of the given widths, biases included, from one seed."""
    generator = torch.Generator().manual_seed(seed)
    layers: list[nn.Module] = []
    for n, m in itertools.pairwise(widths):
        layer = nn.Linear(n, m, dtype=dtype)
        with torch.no_grad():
            layer.weight.copy_(torch.randn(m, n, generator=generator, dtype=torch.float64) / n**0.5)
            layer.bias.copy_(0.3 * torch.randn(m, generator=generator, dtype=torch.float64))
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class Residual(nn.Module):
    """Convolutions, batch normalisation, a residual sum with a constant factor, pooling, a functional flatten."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.third = nn.Conv2d(4, 3, 3, stride=2)
        self.last = nn.Linear(3, 2)
        self.norm.running_mean.uniform_(-0.5, 0.5)
        self.norm.running_var.uniform_(0.5, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.norm(self.first(x)))
        h = h - 0.5 * self.second(F.relu(self.second(h)))
        h = F.avg_pool2d(F.leaky_relu(self.third(h), 0.2), 3)
        return self.last(torch.flatten(h, 1))


class SmoothNet(nn.Module):
    """Smooth activations, non-negative weights made by softplus, a quadratic term."""

    def __init__(self, activation):
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 8)
        self.c = nn.Linear(8, 1)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        h = self.activation(2 * self.a(x) - 0.1)
        h = self.activation(F.linear(h, F.softplus(self.b.weight), self.b.bias))
        return self.c(h) + 0.1 * (x**2).sum(1, keepdim=True)


def regions(x: Tensor, epsilon: float) -> list[Box | Ball]:
    """Boxes of one tolerance, of one a feature, and cut; a ball and an ellipsoid."""
    each = epsilon * torch.linspace(0.0, 1.0, x[0].numel(), dtype=x.dtype).view(x[0].shape)
    return [
        Box.around(x, epsilon),
        Box.around(x, each),
        Box.around(x, epsilon, x.min() - epsilon / 2, x.max() + epsilon / 2),
        Ball.around(x, epsilon),
        Ball.around(x, each),
    ]


def brute_force(net: nn.Sequential, box: Box) -> tuple[float, float]:
    """Exact range of a network of one hidden layer and one output on one box: an LP for every activation pattern."""
    w1, b1, w2, b2 = (p.detach().double().numpy() for l in (net[0], net[2]) for p in (l.weight, l.bias))
    limits = list(zip(box.lower[0].tolist(), box.upper[0].tolist(), strict=True))
    values = []
    for pattern in itertools.product((0.0, 1.0), repeat=len(b1)):
        on = np.array(pattern)
        sign = 1 - 2 * on  # on: -(w x + b) <= 0; off: w x + b <= 0
        for direction in (1, -1):
            c = direction * ((w2[0] * on) @ w1)
            r = optimize.linprog(c, A_ub=sign[:, None] * w1, b_ub=-sign * b1, bounds=limits)
            if r.status == 0:
                values.append(direction * r.fun + (w2[0] * on) @ b1 + b2[0])
    return min(values), max(values)
