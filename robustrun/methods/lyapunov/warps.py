"""Differentiable maps of the state space with a hand-written vector-Jacobian product."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Warp(nn.Module):
    """F: R^n -> R^n, applied to batches (B, n)."""

    invertible = True

    def forward_with_tape(self, x: Tensor) -> tuple[Tensor, Any]:
        """F(x) and what `pull_back` needs."""
        raise NotImplementedError

    def pull_back(self, tape: Any, gradient: Tensor) -> Tensor:
        """J_F(x)^T gradient, (B, n), differentiable by parameters and x."""
        raise NotImplementedError

    def inverse(self, y: Tensor) -> Tensor:
        """The x with F(x) = y, (B, n)."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_with_tape(x)[0]


def _halves(dimension: int, number: int) -> tuple[list[int], list[int]]:
    """The coordinates that coupling `number` keeps and changes: halves and their swap, then even and odd ones."""
    coordinates = list(range(dimension))
    first = coordinates[: dimension // 2] if number % 4 < 2 else coordinates[::2]
    rest = [i for i in coordinates if i not in first]
    return (first, rest) if number % 2 == 0 else (rest, first)


class Coupling(nn.Module):
    """(u, v) -> (u, v * exp(bound * tanh(a(u))) + t(u)), a and t from one hidden layer of tanh units."""

    def __init__(self, kept: list[int], changed: list[int], units: int, bound: float) -> None:
        super().__init__()
        self.bound = bound
        self.hidden = nn.Linear(len(kept), units)
        self.output = nn.Linear(units, 2 * len(changed))
        nn.init.zeros_(self.output.weight)  # the warp starts as the identity
        nn.init.zeros_(self.output.bias)
        self.register_buffer("kept", torch.tensor(kept), persistent=False)
        self.register_buffer("changed", torch.tensor(changed), persistent=False)
        self.register_buffer("order", torch.tensor(kept + changed).argsort(), persistent=False)

    def _scale_and_shift(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        hidden = torch.tanh(self.hidden(u))
        a, shift = self.output(hidden).chunk(2, dim=1)
        squashed = torch.tanh(a)
        return torch.exp(self.bound * squashed), shift, squashed, hidden

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        u, v = x[:, self.kept], x[:, self.changed]
        scale, shift, squashed, hidden = self._scale_and_shift(u)
        return torch.cat([u, v * scale + shift], 1)[:, self.order], (v, scale, squashed, hidden)

    def inverse(self, y: Tensor) -> Tensor:
        u, v = y[:, self.kept], y[:, self.changed]
        scale, shift, *_ = self._scale_and_shift(u)
        return torch.cat([u, (v - shift) / scale], 1)[:, self.order]

    def pull_back(self, tape: tuple[Tensor, ...], gradient: Tensor) -> Tensor:
        v, scale, squashed, hidden = tape
        d_u, d_v = gradient[:, self.kept], gradient[:, self.changed]
        d_a = d_v * v * scale * self.bound * (1 - squashed**2)
        d_hidden = torch.cat([d_a, d_v], 1) @ self.output.weight * (1 - hidden**2)
        return torch.cat([d_u + d_hidden @ self.hidden.weight, d_v * scale], 1)[:, self.order]


class CouplingWarp(Warp):
    """A chain of affine couplings over alternating halves of the coordinates (two or more dimensions).

    Source: Dinh, Sohl-Dickstein and Bengio (2017).

    Raises:
        ValueError: there is one dimension only.
    """

    def __init__(self, dimension: int, *, couplings: int = 4, units: int = 64, bound: float = 1.0) -> None:
        super().__init__()
        if dimension < 2:
            raise ValueError("couplings need at least two dimensions; use a ScalarWarp for one")
        self.couplings = nn.ModuleList(
            Coupling(*_halves(dimension, k), units=units, bound=bound) for k in range(couplings)
        )

    def forward_with_tape(self, x: Tensor) -> tuple[Tensor, list[tuple[Tensor, ...]]]:
        tape = []
        for coupling in self.couplings:
            x, record = coupling(x)
            tape.append(record)
        return x, tape

    def pull_back(self, tape: list[tuple[Tensor, ...]], gradient: Tensor) -> Tensor:
        for coupling, record in zip(reversed(self.couplings), reversed(tape), strict=True):
            gradient = coupling.pull_back(record, gradient)
        return gradient

    def inverse(self, y: Tensor) -> Tensor:
        for coupling in reversed(self.couplings):
            y = coupling.inverse(y)
        return y


class ScalarWarp(Warp):
    """x + sum_i w_i tanh(s_i x + b_i) with w_i, s_i >= 0, coordinate by coordinate: strictly increasing."""

    def __init__(self, dimension: int = 1, *, units: int = 16) -> None:
        super().__init__()
        self.heights = nn.Parameter(torch.full((dimension, units), -4.0))  # softplus(-4) = 0.018: nearly the identity
        self.slopes = nn.Parameter(torch.randn(dimension, units))
        self.offsets = nn.Parameter(torch.randn(dimension, units))

    def forward_with_tape(self, x: Tensor) -> tuple[Tensor, Tensor]:
        bumps = torch.tanh(F.softplus(self.slopes) * x.unsqueeze(2) + self.offsets)
        return x + (F.softplus(self.heights) * bumps).sum(2), bumps

    def pull_back(self, tape: Tensor, gradient: Tensor) -> Tensor:
        return gradient * (1 + (F.softplus(self.heights) * F.softplus(self.slopes) * (1 - tape**2)).sum(2))

    def inverse(self, y: Tensor) -> Tensor:
        reach = F.softplus(self.heights).sum(1)
        low, high = y - reach, y + reach
        for _ in range(100):  # halves the bracket until it cannot shrink further
            middle = 0.5 * (low + high)
            above = self(middle) > y
            low, high = torch.where(above, low, middle), torch.where(above, middle, high)
        return 0.5 * (low + high)


class LeakyMaps(Warp):
    """Two bias-free linear maps n -> units -> n with leaky ReLUs: not invertible, kept for comparison."""

    invertible = False

    def __init__(self, dimension: int, *, units: int = 64, leak: float = 0.01) -> None:
        super().__init__()
        self.leak = leak
        self.lift = nn.Linear(dimension, units, bias=False)
        self.drop = nn.Linear(units, dimension, bias=False)

    def forward_with_tape(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        first = self.lift(x)
        second = self.drop(F.leaky_relu(first, self.leak))
        return F.leaky_relu(second, self.leak), (first, second)

    def pull_back(self, tape: tuple[Tensor, Tensor], gradient: Tensor) -> Tensor:
        first, second = tape
        gradient = torch.where(second > 0, gradient, self.leak * gradient) @ self.drop.weight
        return torch.where(first > 0, gradient, self.leak * gradient) @ self.lift.weight
