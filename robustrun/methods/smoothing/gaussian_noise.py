"""Laws of additive noise, and the radii within which a vote under them cannot change.

A vote of probability p >= 1/2 keeps its majority within `radius(p)`; `probability(radius)` is the inverse. All take
and give float64 arrays. `sigma` is the standard deviation of one coordinate, so that laws compare.
"""

from dataclasses import dataclass
from math import sqrt
from typing import ClassVar, Literal, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr, ndtri
from torch import Tensor

from robustrun.methods.random import normal, uniform

Law = Literal["gaussian", "laplace", "uniform"]
Norm = Literal["l1", "l2", "linf"]

_ROUNDING = 1e-12  # relative; above the error of the formulas, so that a radius is never too large


class Noise(Protocol):
    """Isotropic noise with a certificate for some norms."""

    sigma: float
    norms: ClassVar[tuple[Norm, ...]]

    def draw(self, seed: int, indices: Tensor, shape: tuple[int, ...], draws: Tensor) -> Tensor:
        """(R, *shape) float32: row r is draw number `draws[r]` for the example `indices[r]`, whatever the batch."""
        ...

    def radius(self, p: ArrayLike, norm: Norm = "l2", dimension: int = 1) -> NDArray[np.float64]:
        """Radius in `norm` certified by a vote of probability >= `p`; 0 below 1/2. `dimension`: of an input."""
        ...

    def probability(self, radius: ArrayLike, norm: Norm = "l2", dimension: int = 1) -> NDArray[np.float64]:
        """The least vote that certifies `radius`."""
        ...


@dataclass(frozen=True)
class Gaussian:
    """N(0, sigma^2 I): l2 radius sigma Phi^-1(p), which is tight (Cohen, Rosenfeld, Kolter, ICML 2019, theorem 1).

    The l2 ball holds the l1 ball of the same radius and the linf ball of radius / sqrt(dimension), tight up to a
    constant (Yang et al., ICML 2020).
    """

    sigma: float
    norms: ClassVar = ("l2", "l1", "linf")

    def __post_init__(self) -> None:
        _check_sigma(self.sigma)

    def draw(self, seed: int, indices: Tensor, shape: tuple[int, ...], draws: Tensor) -> Tensor:
        return normal(seed, indices, shape, draws).mul_(self.sigma)

    def radius(self, p: ArrayLike, norm: Norm = "l2", dimension: int = 1) -> NDArray[np.float64]:
        return _rounded_down(self.sigma * ndtri(_majority(p)) / self._shrink(norm, dimension))

    def probability(self, radius: ArrayLike, norm: Norm = "l2", dimension: int = 1) -> NDArray[np.float64]:
        return ndtr(np.asarray(radius, float) * self._shrink(norm, dimension) / self.sigma)

    def _shrink(self, norm: Norm, dimension: int) -> float:
        _check_norm(self, norm)
        return sqrt(dimension) if norm == "linf" else 1.0


@dataclass(frozen=True)
class Laplace:
    """Independent Laplace noise of scale b = sigma / sqrt(2): l1 radius -b log(2 (1 - p)).

    Source: Teng, Lee and Yuan, "l1 adversarial robustness certificates" (2020), theorem 3 with p_B = 1 - p_A.
    """

    sigma: float
    norms: ClassVar = ("l1",)

    def __post_init__(self) -> None:
        _check_sigma(self.sigma)

    def draw(self, seed: int, indices: Tensor, shape: tuple[int, ...], draws: Tensor) -> Tensor:
        centred = uniform(seed, indices, shape, draws).sub_(0.5 - 2**-25)  # symmetric and never at an end
        return centred.sign() * centred.abs().mul_(-2).log1p_() * (-self.sigma / sqrt(2))

    def radius(self, p: ArrayLike, norm: Norm = "l1", dimension: int = 1) -> NDArray[np.float64]:
        _check_norm(self, norm)
        with np.errstate(divide="ignore"):
            return _rounded_down(-self.sigma / sqrt(2) * np.log(2 * (1 - _majority(p))))

    def probability(self, radius: ArrayLike, norm: Norm = "l1", dimension: int = 1) -> NDArray[np.float64]:
        _check_norm(self, norm)
        return 1 - np.exp(-np.asarray(radius, float) * sqrt(2) / self.sigma) / 2


@dataclass(frozen=True)
class Uniform:
    """Uniform on the cube [-h, h]^d, h = sqrt(3) sigma: l1 radius 2 h (p - 1/2).

    Two such cubes a shift apart differ by at most |shift|_1 / (2 h) of their volume. Source: Lee et al., "Tight
    certificates of adversarial robustness for randomly smoothed classifiers" (NeurIPS 2019); Yang et al. (ICML 2020).
    """

    sigma: float
    norms: ClassVar = ("l1",)

    def __post_init__(self) -> None:
        _check_sigma(self.sigma)

    def draw(self, seed: int, indices: Tensor, shape: tuple[int, ...], draws: Tensor) -> Tensor:
        return uniform(seed, indices, shape, draws).sub_(0.5 - 2**-25).mul_(2 * sqrt(3) * self.sigma)

    def radius(self, p: ArrayLike, norm: Norm = "l1", dimension: int = 1) -> NDArray[np.float64]:
        _check_norm(self, norm)
        return _rounded_down(2 * sqrt(3) * self.sigma * (_majority(p) - 0.5))

    def probability(self, radius: ArrayLike, norm: Norm = "l1", dimension: int = 1) -> NDArray[np.float64]:
        _check_norm(self, norm)
        return 0.5 + np.asarray(radius, float) / (2 * sqrt(3) * self.sigma)


_LAWS = {"gaussian": Gaussian, "laplace": Laplace, "uniform": Uniform}


def noise_law(law: Law, sigma: float) -> Noise:
    """The noise called `law` with standard deviation `sigma` > 0 a coordinate."""
    return _LAWS[law](sigma)


def _check_sigma(sigma: float) -> None:
    if not sigma > 0:
        raise ValueError(f"smoothing needs noise: sigma must be positive, not {sigma}")


def _check_norm(noise: Noise, norm: Norm) -> None:
    if norm not in noise.norms:
        name = type(noise).__name__
        raise ValueError(f"{name} noise has no certificate in {norm}, only in {' and '.join(noise.norms)}")


def _majority(p: ArrayLike) -> NDArray[np.float64]:
    return np.maximum(np.asarray(p, dtype=float), 0.5)


def _rounded_down(radius: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.maximum(radius, 0.0) * (1 - _ROUNDING)
