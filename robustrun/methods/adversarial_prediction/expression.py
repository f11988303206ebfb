"""The metric algebra: formulas over the confusion matrix, kept as a(PP, AP) TP + b(PP, AP).

A formula is usable as a training objective when, for fixed numbers of predicted and actual positives, it is
affine in the true positives: the marginal game of Fathony and Kolter (AISTATS 2020, arXiv 1912.00965) needs
exactly that. Every formula is therefore carried as a pair of coefficients (a, b), and the rules below say which
operations keep that form. TP terms may cancel: `2*TP + FP + FN` is a valid denominator.
"""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from robustrun.errors import ConfigError

if TYPE_CHECKING:
    from robustrun.methods.adversarial_prediction.metric import Constraint

Terms = tuple[NDArray[np.float64], NDArray[np.float64]]


class UnsupportedMetric(ConfigError):
    """The expression is outside the form that the marginal game can express; the message says why."""


class Expression:
    """A formula over the confusion matrix. Combine with + - * / ** and numbers; compare with `>=`."""

    # NumPy scalars on the left must hand the operation to __radd__ and friends.
    __array_ufunc__ = None

    def terms(self, k: ArrayLike, l: ArrayLike, n: int) -> Terms:
        """Coefficients (a, b) with value = a TP + b, at k predicted and l actual positives among n samples.

        Undefined points (0/0) come out as nan or inf.

        Raises:
            UnsupportedMetric: an operation leaves the form a TP + b.
        """
        raise NotImplementedError

    def evaluate(self, tp: ArrayLike, k: ArrayLike, l: ArrayLike, n: ArrayLike) -> NDArray[np.float64]:
        """The formula itself on counts (arrays that broadcast); undefined points come out as nan or inf."""
        raise NotImplementedError

    def __add__(self, other: Expression | float) -> Expression:
        return Operation("+", self, as_expression(other))

    def __radd__(self, other: float) -> Expression:
        return Operation("+", as_expression(other), self)

    def __sub__(self, other: Expression | float) -> Expression:
        return Operation("-", self, as_expression(other))

    def __rsub__(self, other: float) -> Expression:
        return Operation("-", as_expression(other), self)

    def __mul__(self, other: Expression | float) -> Expression:
        return Operation("*", self, as_expression(other))

    def __rmul__(self, other: float) -> Expression:
        return Operation("*", as_expression(other), self)

    def __truediv__(self, other: Expression | float) -> Expression:
        return Operation("/", self, as_expression(other))

    def __rtruediv__(self, other: float) -> Expression:
        return Operation("/", as_expression(other), self)

    def __pow__(self, other: Expression | float) -> Expression:
        return Operation("**", self, as_expression(other))

    def __rpow__(self, other: float) -> Expression:
        return Operation("**", as_expression(other), self)

    def __neg__(self) -> Expression:
        return Operation("-", Number(0.0), self)

    def __pos__(self) -> Expression:
        return self

    def __ge__(self, threshold: float) -> Constraint:
        from robustrun.methods.adversarial_prediction.metric import Metric

        return Metric(self) >= threshold


def as_expression(value: Expression | float) -> Expression:
    """Numbers (Python or NumPy scalars) become constants; expressions stay what they are.

    Raises:
        UnsupportedMetric: it is neither an expression nor a finite number.
    """
    if isinstance(value, Expression):
        return value
    if isinstance(value, (numbers.Real, np.number)) and not isinstance(value, (bool, np.bool_)):
        return Number(float(value))
    raise UnsupportedMetric(
        f"{value!r} cannot be part of a metric expression; use numbers, TP, FP, FN, TN, AP, AN, PP, PN and ALL"
    )


@dataclass(frozen=True)
class Number(Expression):
    """A finite constant.

    Raises:
        UnsupportedMetric: the number is not finite.
    """

    value: float

    def __post_init__(self) -> None:
        if not math.isfinite(self.value):
            raise UnsupportedMetric(f"{self.value} is not a finite number")

    def terms(self, k: ArrayLike, l: ArrayLike, n: int) -> Terms:
        shape = np.broadcast(k, l).shape
        return np.zeros(shape), np.full(shape, self.value)

    def evaluate(self, tp: ArrayLike, k: ArrayLike, l: ArrayLike, n: ArrayLike) -> NDArray[np.float64]:
        return np.full(np.broadcast(tp, k, l, n).shape, self.value)

    def __str__(self) -> str:
        return f"{self.value:g}" if float(f"{self.value:g}") == self.value else repr(self.value)


# (a, b) of every entry as multiples of TP, k, l and n.
_ENTRIES = {
    "tp": (1, 0, 0, 0),
    "fp": (-1, 1, 0, 0),
    "fn": (-1, 0, 1, 0),
    "tn": (1, -1, -1, 1),
    "pp": (0, 1, 0, 0),
    "pn": (0, -1, 0, 1),
    "ap": (0, 0, 1, 0),
    "an": (0, 0, -1, 1),
    "all": (0, 0, 0, 1),
}


@dataclass(frozen=True)
class Entry(Expression):
    """A cell of the confusion matrix or one of its totals (PP predicted, AP actual positives, ALL samples)."""

    name: str

    def terms(self, k: ArrayLike, l: ArrayLike, n: int) -> Terms:
        a, of_k, of_l, of_n = _ENTRIES[self.name]
        b = np.asarray(of_k * np.asarray(k) + of_l * np.asarray(l) + of_n * n, dtype=np.float64)
        return np.full(b.shape, float(a)), b

    def evaluate(self, tp: ArrayLike, k: ArrayLike, l: ArrayLike, n: ArrayLike) -> NDArray[np.float64]:
        factors = zip(_ENTRIES[self.name], (tp, k, l, n), strict=True)
        return np.asarray(sum(factor * np.asarray(count) for factor, count in factors), dtype=np.float64)

    def __str__(self) -> str:
        return self.name


TP, FP, FN, TN, PP, PN, AP, AN, ALL = (Entry(name) for name in _ENTRIES)

_PRECEDENCE = {"+": 1, "-": 1, "*": 2, "/": 2, "**": 3}


@dataclass(frozen=True)
class Operation(Expression):
    """Two expressions joined by + - * / or **."""

    operator: str
    left: Expression
    right: Expression

    def terms(self, k: ArrayLike, l: ArrayLike, n: int) -> Terms:
        a1, b1 = _cancelled(self.left.terms(k, l, n))
        a2, b2 = _cancelled(self.right.terms(k, l, n))
        free1, free2 = not a1.any(), not a2.any()  # free of TP
        with np.errstate(all="ignore"):
            if self.operator in "+-":
                sign = 1.0 if self.operator == "+" else -1.0
                return a1 + sign * a2, b1 + sign * b2
            if self.operator == "*":
                if free1:
                    return (a2 if free2 else b1 * a2), b1 * b2
                if free2:
                    return a1 * b2, b1 * b2
                raise UnsupportedMetric(
                    f"'{self}' multiplies two cells of the confusion matrix; in a product only one factor may "
                    "contain TP, FP, FN or TN, the others may contain PP, PN, AP, AN, ALL and numbers"
                )
            if self.operator == "/":
                if not free2:
                    raise UnsupportedMetric(
                        f"'{self}' divides by a cell of the confusion matrix; a denominator may contain PP, PN, AP, "
                        "AN, ALL and numbers (cells may cancel, as in 2*TP + FP + FN). The harmonic mean of "
                        "precision and recall is 2*TP/(AP + PP)"
                    )
                return (a1 if free1 else a1 / b2), b1 / b2
            if not (free1 and free2):
                raise UnsupportedMetric(
                    f"'{self}' raises a cell of the confusion matrix to a power; powers and roots may be taken "
                    "of PP, PN, AP, AN, ALL and numbers only"
                )
            return a1, np.power(b1, b2)

    def evaluate(self, tp: ArrayLike, k: ArrayLike, l: ArrayLike, n: ArrayLike) -> NDArray[np.float64]:
        function = {"+": np.add, "-": np.subtract, "*": np.multiply, "/": np.divide, "**": np.power}
        with np.errstate(all="ignore"):
            return function[self.operator](self.left.evaluate(tp, k, l, n), self.right.evaluate(tp, k, l, n))

    def __str__(self) -> str:
        own = _PRECEDENCE[self.operator]
        left, right = str(self.left), str(self.right)
        if isinstance(self.left, Operation) and (_PRECEDENCE[self.left.operator] < own or own == 3):
            left = f"({left})"
        if isinstance(self.right, Operation) and _PRECEDENCE[self.right.operator] <= own:
            right = f"({right})"
        if isinstance(self.left, Number) and self.left.value < 0:
            left = f"({left})"
        if isinstance(self.right, Number) and self.right.value < 0:
            right = f"({right})"
        return f"{left} {self.operator} {right}" if own == 1 else f"{left}{self.operator}{right}"


def _cancelled(terms: Terms) -> Terms:
    """Coefficients of TP that are rounding noise beside b, as in (1 + c) TP + c FN + FP, become exactly 0."""
    a, b = terms
    defined_a, defined_b = np.abs(a[np.isfinite(a)]), np.abs(b[np.isfinite(b)])
    if defined_a.max(initial=0.0) <= 1e-12 * defined_b.max(initial=0.0) and defined_a.size:
        return np.zeros_like(a), b
    return a, b


def sqrt(value: Expression | float) -> Expression:
    """The square root of an expression without cells of the confusion matrix."""
    return as_expression(value) ** 0.5
