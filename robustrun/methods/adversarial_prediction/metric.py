"""Metrics: an expression with its special cases and constraints, and the named ones.

Formulas and special cases: Fathony and Kolter (AISTATS 2020, arXiv 1912.00965), table of metrics.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from robustrun.methods.adversarial_prediction.expression import (
    ALL,
    AN,
    AP,
    PN,
    PP,
    TN,
    TP,
    Expression,
    Terms,
    UnsupportedMetric,
    sqrt,
)

# Expressions are validated on batches of this size: large enough that every kind of (k, l) occurs.
_PROBE = 7


@dataclass(frozen=True)
class Metric:
    """A performance metric of binary predictions, with constraints that the predictor has to meet.

    Args:
        expression: the formula over TP, FP, FN, TN, AP, AN, PP, PN, ALL.
        special_case_positive: where nothing is predicted positive or nothing is positive, the value is 1 if
            both hold and 0 otherwise, whatever the formula says (it is 0/0 there).
        special_case_negative: likewise where everything is predicted positive or everything is positive.
        constraints: lower bounds on other metrics.
        name: how it is called in tables; the formula if empty.

    Raises:
        UnsupportedMetric: the formula is outside the supported form, is undefined somewhere without the special
            case that would cover it, or does not depend on the predictions' correctness at all; or a constraint
            cannot be met even by predicting the labels themselves.
    """

    expression: Expression
    special_case_positive: bool = False
    special_case_negative: bool = False
    constraints: tuple[Constraint, ...] = ()
    name: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.expression, Expression):
            raise UnsupportedMetric(f"a metric is an expression over the confusion matrix, not {self.expression!r}")
        for constraint in self.constraints:
            if not isinstance(constraint, Constraint):
                raise UnsupportedMetric(f"a constraint is 'metric >= number', not {constraint!r}")
        a, _ = self.coefficients(_PROBE)
        if not a.any():
            raise UnsupportedMetric(
                f"'{self.expression}' does not depend on which samples are predicted: no TP, FP, FN or TN is left in it"
            )

    def coefficients(self, n: int) -> Terms:
        """(a, b), each (n + 1, n + 1) over k predicted and l actual positives: the metric is a[k, l] TP + b[k, l].

        Raises:
            UnsupportedMetric: the formula is not finite at some (k, l).
        """
        k, l = np.meshgrid(np.arange(n + 1), np.arange(n + 1), indexing="ij")
        a, b = self.expression.terms(k, l, n)
        override, value = self._special_cases(k, l, n)
        a, b = np.where(override, 0.0, a), np.where(override, value, b)
        wrong = ~(np.isfinite(a) & np.isfinite(b))
        if wrong.any():
            at_k, at_l = np.argwhere(wrong)[0]
            raise UnsupportedMetric(
                f"'{self.expression}' is undefined at PP = {at_k}, AP = {at_l}, ALL = {n}{_missing_flag(wrong)}"
            )
        return a, b

    def value(self, tp: ArrayLike, pp: ArrayLike, ap: ArrayLike, n: ArrayLike) -> NDArray[np.float64]:
        """The metric on counts (arrays that broadcast) of any size, with its special cases.

        Raises:
            UnsupportedMetric: it is undefined on these predictions.
        """
        override, value = self._special_cases(np.asarray(pp), np.asarray(ap), np.asarray(n))
        result = np.where(override, value, self.expression.evaluate(tp, pp, ap, n))
        if not np.isfinite(result).all():
            raise UnsupportedMetric(f"'{self.expression}' is undefined on these predictions")
        return result

    def __call__(self, predictions: ArrayLike, labels: ArrayLike) -> float:
        """The metric of hard 0/1 predictions against 0/1 labels of one length.

        Raises:
            ValueError: not 0/1 vectors of one length.
        """
        return float(self.value(*confusion_counts(predictions, labels)))

    def constraint_values(self, predictions: ArrayLike, labels: ArrayLike) -> list[float]:
        """The value that each constraint's metric reaches on hard 0/1 predictions."""
        return [constraint.metric(predictions, labels) for constraint in self.constraints]

    def subject_to(self, *constraints: Constraint) -> Metric:
        """The same objective with further constraints: `precision().subject_to(recall() >= 0.8)`."""
        name = f"{self}{', ' if self.constraints else ' st '}{', '.join(map(str, constraints))}"
        flags = self.special_case_positive, self.special_case_negative
        return Metric(self.expression, *flags, (*self.constraints, *constraints), name)

    def unconstrained(self) -> Metric:
        """The objective alone."""
        return Metric(self.expression, self.special_case_positive, self.special_case_negative)

    def _special_cases(self, k: NDArray, l: NDArray, n: int | NDArray) -> tuple[NDArray, NDArray]:
        """Where a special case replaces the formula, and by what. The positive rule comes first."""
        override = np.zeros(np.broadcast(k, l, n).shape, dtype=bool)
        value = np.zeros(override.shape)
        if self.special_case_negative:
            override |= (k == n) | (l == n)
            value = np.where((k == n) & (l == n), 1.0, value)
        if self.special_case_positive:
            border = (k == 0) | (l == 0)
            override |= border
            value = np.where(border, np.where((k == 0) & (l == 0), 1.0, 0.0), value)
        return override, value

    def __ge__(self, threshold: float) -> Constraint:
        if self.constraints:
            raise UnsupportedMetric("a constraint cannot itself be subject to constraints")
        return Constraint(self, threshold)

    def __str__(self) -> str:
        text = self.name or str(self.expression)
        if self.constraints and not self.name:
            text += " st " + ", ".join(str(constraint) for constraint in self.constraints)
        return text


@dataclass(frozen=True)
class Constraint:
    """`metric >= threshold`, required of the predictor in expectation, against the observed labels of a batch.

    Raises:
        UnsupportedMetric: the threshold is no finite number, or more than perfect predictions reach.
    """

    metric: Metric
    threshold: float

    def __post_init__(self) -> None:
        if isinstance(self.threshold, (bool, np.bool_)) or not isinstance(self.threshold, numbers.Real | np.number):
            raise UnsupportedMetric(f"a constraint compares with a number, not {self.threshold!r}")
        if not math.isfinite(self.threshold):
            raise UnsupportedMetric(f"a constraint compares with a finite number, not {self.threshold}")
        object.__setattr__(self, "threshold", float(self.threshold))
        l = np.arange(_PROBE + 1)
        best = self.metric.value(l, l, l, _PROBE).min()
        if self.threshold > best + 1e-12:
            raise UnsupportedMetric(
                f"'{self}' cannot be met: predicting the labels themselves reaches only {best:g} on some batches"
            )

    def __ge__(self, other: object) -> Constraint:
        raise UnsupportedMetric("a constraint has one bound: write 'a >= x' and 'b >= y' as two constraints")

    def __str__(self) -> str:
        return f"{self.metric} >= {self.threshold:g}"


def confusion_counts(predictions: ArrayLike, labels: ArrayLike) -> tuple[int, int, int, int]:
    """(TP, PP, AP, n) of hard 0/1 predictions and labels.

    Raises:
        ValueError: not 0/1 vectors of one length.
    """
    predictions, labels = np.asarray(predictions), np.asarray(labels)
    if predictions.shape != labels.shape or labels.ndim != 1:
        raise ValueError(f"predictions {predictions.shape} and labels {labels.shape} must be vectors of one length")
    for what, values in (("predictions", predictions), ("labels", labels)):
        if not np.isin(values, (0, 1)).all():
            raise ValueError(f"{what} must be 0 or 1; map -1/+1 labels to 0/1 first")
    positive = predictions == 1
    return int(positive[labels == 1].sum()), int(positive.sum()), int((labels == 1).sum()), labels.size


def inferred_special_cases(expression: Expression) -> tuple[bool, bool]:
    """The special cases (positive, negative) that a formula needs: those that cover its undefined points.

    Reproduces the flags of every named metric, which are set exactly where its formula is 0/0.
    """
    k, l = np.meshgrid(np.arange(_PROBE + 1), np.arange(_PROBE + 1), indexing="ij")
    a, b = expression.terms(k, l, _PROBE)
    wrong = ~(np.isfinite(a) & np.isfinite(b))
    positive, negative = (k == 0) | (l == 0), (k == _PROBE) | (l == _PROBE)
    needs_positive = bool((wrong & positive & ~negative).any())
    needs_negative = bool((wrong & negative & ~positive).any())
    corners = bool((wrong & positive & negative).any())
    return needs_positive or (corners and not needs_negative), needs_negative


def _missing_flag(wrong: NDArray[np.bool_]) -> str:
    positive, negative = np.zeros_like(wrong), np.zeros_like(wrong)
    positive[0] = positive[:, 0] = True
    negative[-1] = negative[:, -1] = True
    if not (wrong & ~positive).any():
        return "; set special_case_positive=True to define it where PP or AP is 0"
    if not (wrong & ~negative).any():
        return "; set special_case_negative=True to define it where PN or AN is 0"
    if not (wrong & ~positive & ~negative).any():
        return "; set special_case_positive=True and special_case_negative=True to define it there"
    return ", which no special case covers"


def accuracy() -> Metric:
    """(TP + TN) / ALL."""
    return Metric((TP + TN) / ALL, name="accuracy")


def precision() -> Metric:
    """TP / PP."""
    return Metric(TP / PP, special_case_positive=True, name="precision")


def recall() -> Metric:
    """TP / AP."""
    return Metric(TP / AP, special_case_positive=True, name="recall")


def specificity() -> Metric:
    """TN / AN."""
    return Metric(TN / AN, special_case_negative=True, name="specificity")


def f_beta(beta: float = 1.0) -> Metric:
    """(1 + beta^2) TP / (beta^2 AP + PP): beta > 1 weighs recall, beta < 1 precision.

    Raises:
        UnsupportedMetric: beta is not a number from 0 to 1e6.
    """
    if not (isinstance(beta, numbers.Real | np.number) and math.isfinite(beta) and 0 <= beta <= 1e6):
        raise UnsupportedMetric(f"beta of the F score must be a number from 0 to 1e6, not {beta!r}")
    square = float(beta) ** 2
    return Metric((1 + square) * TP / (square * AP + PP), special_case_positive=True, name=f"f_beta({beta:g})")


def f1() -> Metric:
    """2 TP / (AP + PP)."""
    return f_beta(1.0)


def f2() -> Metric:
    """5 TP / (4 AP + PP)."""
    return f_beta(2.0)


def gpr() -> Metric:
    """Geometric mean of precision and recall, TP / sqrt(AP PP)."""
    return Metric(TP / sqrt(AP * PP), special_case_positive=True, name="gpr")


def balanced_accuracy() -> Metric:
    """(TP / AP + TN / AN) / 2."""
    return Metric((TP / AP + TN / AN) / 2, True, True, name="balanced_accuracy")


def informedness() -> Metric:
    """TP / AP + TN / AN - 1 (Youden's J)."""
    return Metric(TP / AP + TN / AN - 1, True, True, name="informedness")


def markedness() -> Metric:
    """TP / PP + TN / PN - 1."""
    return Metric(TP / PP + TN / PN - 1, True, True, name="markedness")


def kappa() -> Metric:
    """Cohen's kappa: agreement beyond chance."""
    chance = (AP * PP + AN * PN) / ALL**2
    return Metric(((TP + TN) / ALL - chance) / (1 - chance), True, True, name="kappa")


def mcc() -> Metric:
    """Matthews correlation coefficient, written over the totals."""
    return Metric((TP / ALL - AP * PP / ALL**2) / (sqrt(AP * PP * AN * PN) / ALL**2), True, True, name="mcc")


def precision_given_recall(threshold: float = 0.8) -> Metric:
    """Precision subject to recall >= threshold."""
    return precision().subject_to(recall() >= threshold)


def recall_given_precision(threshold: float = 0.8) -> Metric:
    """Recall subject to precision >= threshold."""
    return recall().subject_to(precision() >= threshold)


def precision_given_recall_specificity(recall_threshold: float = 0.6, specificity_threshold: float = 0.6) -> Metric:
    """Precision subject to recall and specificity bounds."""
    return precision().subject_to(recall() >= recall_threshold, specificity() >= specificity_threshold)


NAMED: dict[str, Callable[..., Metric]] = {
    factory.__name__: factory
    for factory in (
        accuracy,
        precision,
        recall,
        specificity,
        f_beta,
        f1,
        f2,
        gpr,
        balanced_accuracy,
        informedness,
        markedness,
        kappa,
        mcc,
        precision_given_recall,
        recall_given_precision,
        precision_given_recall_specificity,
    )
}
