"""Adversarial prediction: train a classifier for the metric that it is judged by (arXiv 1912.00965)."""

from robustrun.methods.adversarial_prediction.admm import ADMM, State
from robustrun.methods.adversarial_prediction.evaluation import (
    Interval,
    bootstrap_interval,
    paired_interval,
    precision_at_recall,
    precision_recall_curve,
    threshold_curve,
    tuned_threshold,
)
from robustrun.methods.adversarial_prediction.exact import solve_cvxpy, solve_lp
from robustrun.methods.adversarial_prediction.expression import (
    ALL,
    AN,
    AP,
    FN,
    FP,
    PN,
    PP,
    TN,
    TP,
    Expression,
    UnsupportedMetric,
    sqrt,
)
from robustrun.methods.adversarial_prediction.game import Constraints, Game, game_of, label_marginals
from robustrun.methods.adversarial_prediction.loss import AdversarialPredictionLoss
from robustrun.methods.adversarial_prediction.metric import (
    NAMED,
    Constraint,
    Metric,
    accuracy,
    balanced_accuracy,
    confusion_counts,
    f1,
    f2,
    f_beta,
    gpr,
    informedness,
    kappa,
    markedness,
    mcc,
    precision,
    precision_given_recall,
    precision_given_recall_specificity,
    recall,
    recall_given_precision,
    specificity,
)
from robustrun.methods.adversarial_prediction.parser import parse_metric
from robustrun.methods.adversarial_prediction.polytope import Multipliers, project
from robustrun.methods.adversarial_prediction.solver import Solution, solve_game

__all__ = [
    "ADMM",
    "ALL",
    "AN",
    "AP",
    "FN",
    "FP",
    "NAMED",
    "PN",
    "PP",
    "TN",
    "TP",
    "AdversarialPredictionClassifier",
    "AdversarialPredictionLoss",
    "Constraint",
    "Constraints",
    "Expression",
    "Game",
    "Interval",
    "Metric",
    "Multipliers",
    "Solution",
    "State",
    "UnsupportedMetric",
    "accuracy",
    "balanced_accuracy",
    "bootstrap_interval",
    "confusion_counts",
    "f1",
    "f2",
    "f_beta",
    "game_of",
    "gpr",
    "informedness",
    "kappa",
    "label_marginals",
    "markedness",
    "mcc",
    "paired_interval",
    "parse_metric",
    "precision",
    "precision_at_recall",
    "precision_given_recall",
    "precision_given_recall_specificity",
    "precision_recall_curve",
    "project",
    "recall",
    "recall_given_precision",
    "solve_cvxpy",
    "solve_game",
    "solve_lp",
    "specificity",
    "sqrt",
    "threshold_curve",
    "tuned_threshold",
]


def __getattr__(name: str):
    if name == "AdversarialPredictionClassifier":  # scikit-learn is imported only by those who ask for it
        from robustrun.methods.adversarial_prediction.estimator import AdversarialPredictionClassifier

        return AdversarialPredictionClassifier
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
