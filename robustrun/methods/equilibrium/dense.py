r"""The monotone parameterisation of a dense matrix.

$W = (1 - m) I - A^T A + B - B^T$ is exactly the set of matrices with $I - W \succeq m I$ (symmetric part), m > 0.
Source: Winston and Kolter (arXiv 2006.08591), proposition 1.
"""

import math

import torch
from torch import Tensor, nn

from robustrun.methods.equilibrium.splitting import State


class DenseMap:
    """A matrix (n, n) that acts on vectors (B, n)."""

    def __init__(self, matrix: Tensor):
        self.matrix = matrix

    def __call__(self, u: State, transpose: bool = False, out: State | None = None) -> State:
        return (u[0] @ (self.matrix if transpose else self.matrix.T),)


class DenseResolvent:
    """(I + alpha (I - W))^{-1} of a dense W, as its Cayley matrix C = 2V - I (n, n)."""

    def __init__(self, matrix: Tensor, alpha: float):
        self.alpha = alpha
        identity = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
        self.cayley = DenseMap(2 * torch.linalg.inv((1 + alpha) * identity - alpha * matrix) - identity)

    def contraction(self) -> Tensor:
        """|C|_2 < 1: by this factor Peaceman-Rachford gets closer in every iteration."""
        return torch.linalg.matrix_norm(self.cayley.matrix, 2)


class DenseMonotone(nn.Module):
    """W on vectors (B, n), monotone by construction.

    Args:
        features: n.
        margin: m > 0, how strongly monotone I - W is.

    Raises:
        ValueError: the margin is not positive.
    """

    def __init__(self, features: int, margin: float = 1.0):
        super().__init__()
        if not margin > 0:
            raise ValueError(f"the margin must be positive, not {margin}")
        self.m = margin
        bound = 1 / math.sqrt(features)
        self.A = nn.Parameter(torch.empty(features, features).uniform_(-bound, bound))
        self.B = nn.Parameter(torch.empty(features, features).uniform_(-bound, bound))

    def matrix(self) -> Tensor:
        """W (n, n), differentiable in A and B."""
        identity = torch.eye(len(self.A), dtype=self.A.dtype, device=self.A.device)
        return (1 - self.m) * identity - self.A.T @ self.A + self.B - self.B.T

    def apply(self, z: State, transpose: bool = False) -> State:
        return DenseMap(self.matrix())(z, transpose)

    @torch.no_grad()
    def fixed(self) -> DenseMap:
        return DenseMap(self.matrix())

    @torch.no_grad()
    def factorize(self, alpha: float) -> DenseResolvent:
        return DenseResolvent(self.matrix(), alpha)

    def inner(self, y: State, z: State) -> Tensor:
        """<y, W z>, differentiable in the parameters: where their gradients come from."""
        return (self.matrix() * (y[0].T @ z[0])).sum()

    @torch.no_grad()
    def monotonicity(self) -> Tensor:
        """The smallest eigenvalue of the symmetric part of I - W, computed from the weights: at least m."""
        matrix = self.matrix().double()
        identity = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
        return torch.linalg.eigvalsh(identity - (matrix + matrix.T) / 2)[0]

    @torch.no_grad()
    def lipschitz(self) -> Tensor:
        """L = |I - W|_2: forward-backward converges for alpha < 2 m / L^2."""
        matrix = self.matrix().double()
        return torch.linalg.matrix_norm(torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device) - matrix, 2)


class FreeMatrix(DenseMonotone):
    """An unconstrained W, for comparison: nothing guarantees that its equilibrium exists."""

    def __init__(self, features: int):
        super().__init__(features)
        del self.A, self.B
        bound = 1 / math.sqrt(features)
        self.W = nn.Parameter(torch.empty(features, features).uniform_(-bound, bound))

    def matrix(self) -> Tensor:
        return self.W


def parameters_of(matrix: Tensor, margin: float) -> tuple[Tensor, Tensor]:
    """(A, B) of a W with I - W >= margin: the converse of the parameterisation.

    Raises:
        ValueError: W is not that strongly monotone.
    """
    identity = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    symmetric = (1 - margin) * identity - (matrix + matrix.T) / 2
    values, vectors = torch.linalg.eigh(symmetric)
    if values[0] < -1e-9 * values.abs().max().clamp_min(1):
        raise ValueError(f"I - W is monotone with {float(values[0]) + margin:.3g} only, not with {margin}")
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.T, (matrix - matrix.T) / 4
