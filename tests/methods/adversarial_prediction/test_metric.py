"""The metric algebra against direct formulas on all confusion matrices, and what it must refuse."""

import math

import numpy as np
import pytest
from sklearn import metrics as sk

from robustrun.methods.adversarial_prediction import (
    ALL,
    AN,
    AP,
    FN,
    FP,
    NAMED,
    PN,
    PP,
    TN,
    TP,
    Metric,
    UnsupportedMetric,
    f1,
    f_beta,
    precision,
    recall,
    specificity,
    sqrt,
)
from robustrun.methods.adversarial_prediction.metric import inferred_special_cases


def _matthews(tp, fp, fn, tn):
    return (tp * tn - fp * fn) / math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))


def _kappa(tp, fp, fn, tn):
    n = tp + fp + fn + tn
    chance = ((tp + fp) * (tp + fn) + (tn + fp) * (tn + fn)) / n**2
    return ((tp + tn) / n - chance) / (1 - chance)


# (formula on the cells, positive special case, negative special case), written independently of the package
DIRECT = {
    "accuracy": (lambda tp, fp, fn, tn: (tp + tn) / (tp + fp + fn + tn), False, False),
    "precision": (lambda tp, fp, fn, tn: tp / (tp + fp), True, False),
    "recall": (lambda tp, fp, fn, tn: tp / (tp + fn), True, False),
    "specificity": (lambda tp, fp, fn, tn: tn / (tn + fp), False, True),
    "f1": (lambda tp, fp, fn, tn: 2 * tp / (2 * tp + fp + fn), True, False),
    "f2": (lambda tp, fp, fn, tn: 5 * tp / (5 * tp + 4 * fn + fp), True, False),
    "gpr": (lambda tp, fp, fn, tn: math.sqrt(tp / (tp + fp) * tp / (tp + fn)), True, False),
    "balanced_accuracy": (lambda tp, fp, fn, tn: (tp / (tp + fn) + tn / (tn + fp)) / 2, True, True),
    "informedness": (lambda tp, fp, fn, tn: tp / (tp + fn) + tn / (tn + fp) - 1, True, True),
    "markedness": (lambda tp, fp, fn, tn: tp / (tp + fp) + tn / (tn + fn) - 1, True, True),
    "kappa": (_kappa, True, True),
    "mcc": (_matthews, True, True),
}


def _confusions(n):
    for k in range(n + 1):
        for l in range(n + 1):
            for tp in range(max(0, k + l - n), min(k, l) + 1):
                yield k, l, tp


def _expected(name, k, l, tp, n):
    formula, positive, negative = DIRECT[name]
    if positive and (k == 0 or l == 0):
        return float(k == l == 0)
    if negative and (k == n or l == n):
        return float(k == l == n)
    return formula(tp, k - tp, l - tp, n - k - l + tp)


@pytest.mark.parametrize("name", DIRECT)
def test_every_confusion_matrix_up_to_seven(name):
    metric = NAMED[name]()
    for n in range(1, 8):
        a, b = metric.coefficients(n)
        for k, l, tp in _confusions(n):
            expected = _expected(name, k, l, tp, n)
            assert a[k, l] * tp + b[k, l] == pytest.approx(expected, abs=1e-12)
            assert metric.value(tp, k, l, n) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", DIRECT)
def test_special_cases_are_inferred_where_the_formula_is_undefined(name):
    _, positive, negative = DIRECT[name]
    assert inferred_special_cases(NAMED[name]().expression) == (positive, negative)


def test_entries_agree_with_the_totals():
    k, l = np.meshgrid(np.arange(8), np.arange(8))
    for cells, total in ((TP + FP, PP), (TP + FN, AP), (TN + FN, PN), (TN + FP, AN), (PP + PN, ALL), (AP + AN, ALL)):
        for left, right in zip(cells.terms(k, l, 7), total.terms(k, l, 7), strict=True):
            np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: TP * TN / sqrt(AP * PP), "multiplies two cells"),
        (lambda: AP / ALL, "does not depend"),
        (lambda: PP / ALL, "does not depend"),
        (lambda: TP - TP + AP, "does not depend"),
        (lambda: (TP / ALL) * (1 - FP) / PP, "multiplies two cells"),
        (lambda: TP / (AP + PP + FP), "divides by a cell"),
        (lambda: sqrt(TP), "power"),
        (lambda: TP / sqrt(PP * TN), "power"),
        (lambda: 2 / (1 / (TP / PP) + 1 / (TP / AP)), r"2\*TP/\(AP \+ PP\)"),
        (lambda: TP / (PP - 3), "no special case covers"),
    ],
)
def test_refuses_what_the_game_cannot_express(build, says):
    with pytest.raises(UnsupportedMetric, match=says):
        Metric(build(), special_case_positive=True, special_case_negative=True)


def test_a_missing_special_case_is_named():
    for expression in (2 * TP / (2 * TP + FP + FN), TP / PP):
        with pytest.raises(UnsupportedMetric, match="special_case_positive"):
            Metric(expression)
    with pytest.raises(UnsupportedMetric, match="special_case_negative"):
        Metric(TN / AN)
    with pytest.raises(UnsupportedMetric, match="special_case_positive"):
        _ = recall().expression >= 0.5
    assert Metric((TP + TN) / ALL).value(0, 0, 0, 5) == 1.0


def test_numpy_scalars_on_either_side():
    for two in (np.float32(2), np.int64(2), np.float64(2)):
        metric = Metric(two * TP / (AP + PP) * (two / two), special_case_positive=True)
        np.testing.assert_allclose(metric.coefficients(5)[0], f1().coefficients(5)[0])
    assert f_beta(np.float32(2.0)).value(1, 2, 1, 4) == pytest.approx(5 / 6)


@pytest.mark.parametrize("wrong", ["x", None, True, [1, 2], float("nan"), float("inf"), 1j])
def test_refuses_foreign_operands(wrong):
    with pytest.raises(UnsupportedMetric):
        TP + wrong
    with pytest.raises(UnsupportedMetric):
        _ = precision() >= wrong


def test_constraints():
    metric = precision().subject_to(recall() >= 0.8, specificity() >= 0.5)
    assert str(metric) == "precision st recall >= 0.8, specificity >= 0.5"
    values = metric.constraint_values([1, 1, 0, 0], [1, 0, 1, 0])
    assert values == [0.5, 0.5]
    with pytest.raises(UnsupportedMetric, match="cannot be met"):
        _ = recall() >= 1.2
    with pytest.raises(UnsupportedMetric, match="itself"):
        _ = metric >= 0.3
    with pytest.raises(UnsupportedMetric, match="one bound"):
        _ = (recall() >= 0.5) >= 0.3
    with pytest.raises(UnsupportedMetric, match="constraint is"):
        precision().subject_to(recall())


def test_hard_predictions_agree_with_scikit_learn():
    rng = np.random.default_rng(0)
    y, guess = rng.integers(0, 2, 10_001), rng.integers(0, 2, 10_001)
    for name, judge in {
        "accuracy": sk.accuracy_score,
        "precision": sk.precision_score,
        "recall": sk.recall_score,
        "f1": sk.f1_score,
        "balanced_accuracy": sk.balanced_accuracy_score,
        "kappa": sk.cohen_kappa_score,
        "mcc": sk.matthews_corrcoef,
    }.items():
        assert NAMED[name]()(guess, y) == pytest.approx(judge(y, guess), abs=1e-12)


@pytest.mark.parametrize(("guess", "y"), [([1, 0], [1]), ([1, -1], [1, 0]), ([1, 0], [1, 2]), ([[1]], [[1]])])
def test_hard_predictions_are_checked(guess, y):
    with pytest.raises(ValueError, match="must be"):
        f1()(guess, y)
