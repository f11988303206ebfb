"""The hat matrix of ridge regression: every prediction as a fixed linear combination of the training labels."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from robustrun.methods.threads import map_blocks

_BLOCK = 1 << 23  # alphas a thread holds at once (64 MiB), in enough rows for a matrix product to run at full speed

Result = TypeVar("Result")


@dataclass(frozen=True)
class RidgeHat:
    r"""Ridge regression on n fixed feature vectors, before any label is known.

    The prediction at a query x is `alpha(x) . y`, with

    $$\alpha(x) = X_c (X_c^T X_c + \lambda I)^{-1} (h(x) - \mu) + 1/n$$

    and, without an intercept, $\mu = 0$ and no $1/n$. With the (unpenalised) intercept the alphas sum to one.
    One eigendecomposition of the smaller Gram matrix serves every regularisation $\lambda$; directions without
    data are dropped, so $\lambda = 0$ is the minimum-norm solution.

    Attributes: `basis` (k, r) eigenvectors and `eigenvalues` (r,) ascending; `coordinates` (n, d) training features,
    along the eigenvectors if `back` is None, else themselves (centred, without those that never change), and `back`
    (r, d) the eigenvectors' transpose; `mean` (k,), `offset` 1/n or 0.

    Source: Rosenfeld et al., "Certified robustness to label-flipping attacks via randomized smoothing"
    (ICML 2020), section 4, with an intercept.
    """

    coordinates: Tensor
    basis: Tensor
    eigenvalues: Tensor
    mean: Tensor
    offset: float
    back: Tensor | None = None

    @classmethod
    def fit(cls, features: Tensor, *, intercept: bool = True) -> "RidgeHat":
        """The hat matrix of `features` (n, k), in their floating dtype (float64 for certificates).

        Raises ValueError if the features are not a finite, non-empty matrix.
        """
        if features.ndim != 2 or not features.numel():
            raise ValueError(f"features must be a finite (n, k) matrix, got shape {tuple(features.shape)}")
        low, high = features.amin(0), features.amax(0)
        if not (low.isfinite() & high.isfinite()).all():
            raise ValueError("features must be finite")
        n, k = features.shape
        varying = (low < high if intercept else (low != 0) | (high != 0)).nonzero().squeeze(1)
        mean = features.mean(0) if intercept else features.new_zeros(k)
        centred = features.index_select(1, varying).sub_(mean[varying])
        dual = len(varying) > n
        eigenvalues, vectors = torch.linalg.eigh(centred @ centred.T if dual else centred.T @ centred)
        keep = eigenvalues > max(n, k) * torch.finfo(features.dtype).eps * eigenvalues[-1:]
        eigenvalues, vectors = eigenvalues[keep], vectors[:, keep]
        if dual:
            vectors = centred.T @ (vectors / eigenvalues.sqrt())
        basis = features.new_zeros(k, len(eigenvalues)).index_copy(0, varying, vectors)
        offset = 1 / n if intercept else 0.0
        # rotated features cost another product with X, which pays where it makes every later one much smaller
        if 2 * len(eigenvalues) < len(varying):
            return cls(centred @ vectors, basis, eigenvalues, mean, offset)
        return cls(centred, basis, eigenvalues, mean, offset, vectors.T.contiguous())

    def __len__(self) -> int:
        return len(self.coordinates)

    @property
    def largest_eigenvalue(self) -> float:
        """Largest eigenvalue of the Gram matrix; 0 if all training features are equal."""
        return float(self.eigenvalues[-1]) if len(self.eigenvalues) else 0.0

    def spectral_regularisation(self, gamma: float) -> float:
        """`gamma` times the largest eigenvalue: a choice that no label enters, so it cannot be poisoned."""
        return gamma * self.largest_eigenvalue

    def weights(self, queries: Tensor, regularisation: float) -> Tensor:
        """(m, d) matrix W with `alpha = W @ coordinates.T + offset` for `queries` (m, k)."""
        along = (queries - self.mean) @ (self.basis / (self.eigenvalues + regularisation))
        return along if self.back is None else along @ self.back

    def alpha(self, weights: Tensor) -> Tensor:
        """(m, n) label weights of the queries behind `weights` (m, d)."""
        alpha = weights @ self.coordinates.T
        return alpha.add_(self.offset) if self.offset else alpha

    def map_alphas(self, function: Callable[[Tensor], Result], weights: Tensor) -> list[Result]:
        """`function` of the (m, n) alphas, some rows at a time so that they fit in memory, in order.

        On the CPU all cores work at once, a block each (`map_blocks`).
        """
        count = max(1, math.ceil(len(weights) * len(self) / _BLOCK))
        if weights.device.type != "cpu":
            return [function(self.alpha(block)) for block in weights.tensor_split(count)]
        threads = torch.get_num_threads()
        blocks = weights.tensor_split(math.ceil(count / threads) * threads)  # as many for each thread
        return map_blocks(lambda block: function(self.alpha(block)), [block for block in blocks if len(block)])

    def scores(self, weights: Tensor, targets: Tensor) -> Tensor:
        """`alpha @ targets` (m, c) for targets (n, c), without forming the alphas: O((n + m) d c)."""
        return weights @ (self.coordinates.T @ targets) + self.offset * targets.sum(0)

    def coefficients(self, targets: Tensor, regularisation: float) -> tuple[Tensor, Tensor]:
        """Weight (k, c) and bias (c,) of the fit to `targets` (n, c): scores are `queries @ weight + bias`."""
        along = self.coordinates.T @ targets
        along = along if self.back is None else self.back @ along
        weight = (self.basis / (self.eigenvalues + regularisation)) @ along
        return weight, self.offset * targets.sum(0) - self.mean @ weight
