"""The hat matrix of ridge regression: every prediction as a fixed linear combination of the training labels."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

_BLOCK = 1 << 24  # alphas held at once (128 MiB), in enough rows for a matrix product to run at full speed


@dataclass(frozen=True)
class RidgeHat:
    r"""Ridge regression on n fixed feature vectors, before any label is known.

    The prediction at a query x is `alpha(x) . y`, with

    $$\alpha(x) = X_c (X_c^T X_c + \lambda I)^{-1} (h(x) - \mu) + 1/n$$

    and, without an intercept, $\mu = 0$ and no $1/n$. With the (unpenalised) intercept the alphas sum to one.
    One eigendecomposition of the smaller Gram matrix serves every regularisation $\lambda$; directions without
    data are dropped, so $\lambda = 0$ is the minimum-norm solution.

    Attributes: `coordinates` (n, r) training features along the r eigenvectors, `basis` (k, r) these
    eigenvectors, `eigenvalues` (r,) ascending, `mean` (k,), `offset` 1/n or 0.

    Source: Rosenfeld et al., "Certified robustness to label-flipping attacks via randomized smoothing"
    (ICML 2020), section 4, with an intercept.
    """

    coordinates: Tensor
    basis: Tensor
    eigenvalues: Tensor
    mean: Tensor
    offset: float

    @classmethod
    def fit(cls, features: Tensor, *, intercept: bool = True) -> "RidgeHat":
        """The hat matrix of `features` (n, k), in their floating dtype (float64 for certificates).

        Raises ValueError if the features are not a finite, non-empty matrix.
        """
        if features.ndim != 2 or not features.numel() or not features.isfinite().all():
            raise ValueError(f"features must be a finite (n, k) matrix, got shape {tuple(features.shape)}")
        n, k = features.shape
        mean = features.mean(0) if intercept else features.new_zeros(k)
        centred = features - mean
        gram = centred.T @ centred if k <= n else centred @ centred.T
        eigenvalues, vectors = torch.linalg.eigh(gram)
        floor = max(n, k) * torch.finfo(features.dtype).eps * eigenvalues[-1]
        keep = eigenvalues > floor
        eigenvalues, vectors = eigenvalues[keep], vectors[:, keep]
        basis = vectors if k <= n else centred.T @ (vectors / eigenvalues.sqrt())
        return cls(centred @ basis, basis, eigenvalues, mean, 1 / n if intercept else 0.0)

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
        """(m, r) matrix W with `alpha = W @ coordinates.T + offset` for `queries` (m, k)."""
        return (queries - self.mean) @ (self.basis / (self.eigenvalues + regularisation))

    def alpha(self, weights: Tensor) -> Tensor:
        """(m, n) label weights of the queries behind `weights` (m, r)."""
        alpha = weights @ self.coordinates.T
        return alpha.add_(self.offset) if self.offset else alpha

    def blocks(self, weights: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """The (m, n) alphas, some rows at a time so that they fit in memory: (row slice, alphas of these rows)."""
        rows = max(1, _BLOCK // len(self))
        for start in range(0, len(weights), rows):
            yield slice(start, min(start + rows, len(weights))), self.alpha(weights[start : start + rows])

    def scores(self, weights: Tensor, targets: Tensor) -> Tensor:
        """`alpha @ targets` (m, c) for targets (n, c), without forming the alphas: O((n + m) r c)."""
        return weights @ (self.coordinates.T @ targets) + self.offset * targets.sum(0)

    def coefficients(self, targets: Tensor, regularisation: float) -> tuple[Tensor, Tensor]:
        """Weight (k, c) and bias (c,) of the fit to `targets` (n, c): scores are `queries @ weight + bias`."""
        weight = (self.basis / (self.eigenvalues + regularisation)) @ (self.coordinates.T @ targets)
        return weight, self.offset * targets.sum(0) - self.mean @ weight
