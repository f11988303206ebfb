"""Robust overfitting: what the last epochs of adversarial training cost, and what stopping early saves."""

import numpy as np
from torch import nn

from robustrun.certifiers.pgd import PGD
from robustrun.registry import certifiers
from robustrun.roles import ClassificationTask, Figure, Fitted, Report
from robustrun.runtime import Run

LAST_EPOCHS = 5
KINDS = ("robust", "clean")


@certifiers.register("best_last")
class BestLast(PGD):
    """PGD on the best and the last state, and the learning curve's best, final and difference (arXiv 2002.11569).

    Of the curve (the measurements after each epoch, on test examples): `error_best` is its minimum, which only an
    oracle can choose, `error_best_epoch` where it lies; `error_final` and `error_final_std` are mean and population
    standard deviation over the last five; `error_selected` is what it shows at the epoch that the validation split
    selects. Errors are robust errors, or clean ones where training measured no others. `robust_gap` is what the last
    state has lost against the best under this certifier's own attack.

    Args:
        common: see `PGD`; of `states`, those that were kept are attacked.
    """

    def certify(self, task: ClassificationTask, fitted: Fitted[nn.Module], run: Run) -> Report:
        kept = tuple(state for state in self.states if state == "last" or state in fitted.states)
        if missing := set(self.states) - set(kept):
            run.logger.warning("no state %s was kept: trainer.monitor.splits chooses them", ", ".join(sorted(missing)))
        self.states = kept or ("last",)
        report = super().certify(task, fitted, run)
        if {"best", "last"} <= set(self.states):
            accuracy = {state: report.metrics[f"{state}_robust_accuracy"] for state in self.states}
            report.metrics["robust_gap"] = accuracy["best"] - accuracy["last"]
        report.metrics |= curve_metrics(fitted.history)
        report.figures |= learning_curves(fitted.history)
        return report


def curve_metrics(history: list[dict[str, float]]) -> dict[str, float]:
    """Best, final, difference and selected error of a training's history; nothing if no test split was measured."""
    kind = next((kind for kind in KINDS if any(f"test_{kind}_accuracy" in row for row in history)), None)
    if kind is None:
        return {}
    rows = [(epoch, row) for epoch, row in enumerate(history) if f"test_{kind}_accuracy" in row]
    epochs = [epoch for epoch, _ in rows]
    column = {name: np.array([row.get(name, np.nan) for _, row in rows]) for name in rows[-1][1]}
    error = 1 - column[f"test_{kind}_accuracy"]
    best, final = int(error.argmin()), error[-LAST_EPOCHS:]
    metrics = {
        "error_best": error[best],
        "error_best_epoch": epochs[best],
        "error_final": final.mean(),
        "error_final_std": final.std(),
        "error_difference": final.mean() - error[best],
        "clean_error_best": 1 - column["test_clean_accuracy"][best],
        "clean_error_final": (1 - column["test_clean_accuracy"][-LAST_EPOCHS:]).mean(),
        "loss_best": column[f"test_{kind}_loss"][best],
        "loss_final": column[f"test_{kind}_loss"][-LAST_EPOCHS:].mean(),
    }
    if "train_accuracy" in column:
        metrics["train_error_final"] = (1 - column["train_accuracy"][-LAST_EPOCHS:]).mean()
    if f"valid_{kind}_accuracy" in column:
        selected = int(column[f"valid_{kind}_accuracy"].argmax())  # the first of equals
        metrics |= {"error_selected": error[selected], "error_selected_epoch": epochs[selected]}
    return {name: float(value) for name, value in metrics.items()}


_ERRORS = {
    "train_accuracy": "train, as attacked in training",
    "train_clean_accuracy": "train, clean",
    "valid_robust_accuracy": "validation, robust",
    "test_robust_accuracy": "test, robust",
    "test_clean_accuracy": "test, clean",
}
_LOSSES = {"loss": "train", "valid_robust_loss": "validation, robust", "test_robust_loss": "test, robust"}


def learning_curves(history: list[dict[str, float]]) -> dict[str, Figure]:
    """Errors and losses by epoch, as far as they were measured."""

    def figure(title: str, ylabel: str, names: dict[str, str], value) -> Figure:
        series = {}
        for name, label in names.items():
            points = [(epoch + 1, value(row[name])) for epoch, row in enumerate(history) if name in row]
            if points:
                series[label] = tuple(np.array(axis) for axis in zip(*points, strict=True))
        return Figure(title, "epochs", ylabel, series)

    figures = {
        "learning_curve": figure("Error during training", "error (%)", _ERRORS, lambda accuracy: 100 * (1 - accuracy)),
        "learning_curve_loss": figure("Loss during training", "cross-entropy", _LOSSES, lambda loss: loss),
    }
    return {name: drawn for name, drawn in figures.items() if drawn.series}
