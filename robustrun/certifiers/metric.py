"""The metric itself, with bootstrap intervals, all others beside it, and a paired comparison with another model.

Source: Fathony and Kolter (arXiv 1912.00965); intervals: Efron, Annals of Statistics 7 (1979).
"""

from typing import Literal

import numpy as np
import torch
from torch import nn

from robustrun.certifiers.examplewise import judge_examples
from robustrun.errors import ConfigError
from robustrun.methods.adversarial_prediction import (
    NAMED,
    Interval,
    Metric,
    bootstrap_interval,
    paired_interval,
    precision_at_recall,
    precision_recall_curve,
    threshold_curve,
    tuned_threshold,
)
from robustrun.metric_node import MetricNode
from robustrun.numbers import PositiveInt, Probability
from robustrun.registry import certifiers, nearest
from robustrun.roles import Batch, BinaryTask, Certifier, Figure, Fitted, Report
from robustrun.runtime import Run
from robustrun.saved import load_fitted


@certifiers.register("metric")
class MetricReport(Certifier):
    """Metrics of hard predictions on a whole split, at score 0 and at the threshold tuned on validation data.

    `metric` is the metric in question, `tuned` the same at the tuned threshold; every number has a percentile
    bootstrap interval over the examples of the split.

    Args:
        metric: the metric in question.
        beside: further named metrics at score 0.
        at_recalls: precision at these recalls along the ranking, whatever the threshold.
        state: of the fitted model; null: "best" where there is one.
        split: which examples.
        resamples, confidence: of the bootstrap.
        against: run directory of another model; both are judged on the same examples, and `gain` is this one's
            metric minus that one's, `gain_on_tuned` minus that one's at its tuned threshold.
        batch_size: examples at a time.
    """

    def __init__(
        self,
        *,
        metric: MetricNode,
        beside: list[str] = ["accuracy", "precision", "recall", "f1", "f2", "gpr", "mcc", "kappa"],  # noqa: B006
        at_recalls: list[Probability] = [0.8, 0.6],  # noqa: B006
        state: str | None = None,
        split: Literal["train", "valid", "test"] = "test",
        resamples: PositiveInt = 2000,
        confidence: Probability = 0.95,
        against: str | None = None,
        batch_size: PositiveInt = 2000,
    ):
        for name in beside:
            if name not in NAMED:
                raise ConfigError(f"certifier.beside: no metric is called '{name}'{nearest(name, NAMED)}")
        self.metric = metric.build()
        self.beside = {name: NAMED[name]() for name in beside}
        self.at_recalls, self.state, self.split = at_recalls, state, split
        self.options = {"resamples": resamples, "confidence": confidence}
        self.against, self.batch_size = against, batch_size

    def certify(self, task: BinaryTask, fitted: Fitted[nn.Module], run: Run) -> Report:
        model = self._model(fitted)
        scores, labels = self._scores(model, task, self.split, "examples", run)
        threshold = self._threshold(model, task, "validation", run)
        generator = np.random.default_rng(run.seed_for("bootstrap"))
        predictions = (scores >= 0).astype(int)
        tuned = predictions if threshold is None else (scores >= threshold).astype(int)

        found: dict[str, Interval] = {
            "metric": bootstrap_interval(self.metric, predictions, labels, generator, **self.options)
        }
        if threshold is not None:
            found["tuned"] = bootstrap_interval(self.metric, tuned, labels, generator, **self.options)
        if self.against is not None:
            found |= self._comparison(task, predictions, labels, generator, run)
        for name, metric in self.beside.items():
            found[name] = bootstrap_interval(metric, predictions, labels, generator, **self.options)
        for recall in self.at_recalls:
            name = f"precision_at_recall_{recall:g}"
            found[name] = precision_at_recall(scores, labels, recall, generator, confidence=self.options["confidence"])
        for i, constraint in enumerate(self.metric.constraints, 1):
            found[f"constraint_{i}"] = bootstrap_interval(
                constraint.metric, predictions, labels, generator, **self.options
            )

        metrics = {key: value for name, interval in found.items() for key, value in _entries(name, interval).items()}
        if threshold is not None:
            metrics["threshold"] = threshold
        metrics |= {key: float(fitted.extra[key]) for key in ("penalty", "best_epoch") if key in fitted.extra}
        if fitted.history and "gap" in fitted.history[-1]:
            metrics["gap"] = fitted.history[-1]["gap"]  # of the mini-batches' games in the last epoch
        columns = {
            "index": np.arange(len(labels)),
            "label": labels,
            "score": scores,
            "predicted": predictions,
            "predicted_tuned": tuned,
        }
        return Report(
            metrics,
            columns,
            _figures(self.metric, scores, labels, threshold),
            {"examples": len(labels), "positives": int(labels.sum())},
        )

    def _model(self, fitted: Fitted[nn.Module]) -> nn.Module:
        return fitted.at(self.state or ("best" if "best" in fitted.states else "last"))

    def _threshold(self, model: nn.Module, task: BinaryTask, name: str, run: Run) -> float | None:
        if not task.size("valid"):
            return None
        return tuned_threshold(self.metric, *self._scores(model, task, "valid", name, run))

    def _comparison(
        self, task: BinaryTask, predictions: np.ndarray, labels: np.ndarray, generator: np.random.Generator, run: Run
    ) -> dict[str, Interval]:
        other = self._model(load_fitted(self.against, run.device)[0])
        scores, _ = self._scores(other, task, self.split, "other_examples", run)
        threshold = self._threshold(other, task, "other_validation", run)
        rivals = {"gain": 0.0} | ({} if threshold is None else {"gain_on_tuned": threshold})
        return {
            name: paired_interval(
                self.metric, predictions, (scores >= at).astype(int), labels, generator, **self.options
            )
            for name, at in rivals.items()
        }

    def _scores(
        self, model: nn.Module, task: BinaryTask, split: str, name: str, run: Run
    ) -> tuple[np.ndarray, np.ndarray]:
        """How far the positive class is ahead, and the labels, of a split's examples in order."""

        @torch.no_grad()
        def judge(batch: Batch) -> dict[str, torch.Tensor]:
            logits = model(batch.inputs).double()
            return {"label": batch.targets, "score": logits[:, 1] - logits[:, 0]}

        columns = judge_examples(
            judge, task, run, split=split, batch_size=self.batch_size, name=name, description=f"scoring {split}"
        )
        return columns["score"], columns["label"]


def _entries(name: str, interval: Interval) -> dict[str, float]:
    return {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}


def _figures(metric: Metric, scores: np.ndarray, labels: np.ndarray, threshold: float | None) -> dict[str, Figure]:
    recall, precision = precision_recall_curve(scores, labels)
    at = {"score 0": 0.0} | ({} if threshold is None else {"tuned on validation": threshold})
    points = {}
    for name, where in at.items():
        positive = scores >= where
        hits = (positive & (labels == 1)).sum()
        points[name] = (np.array([hits / max(labels.sum(), 1)]), np.array([hits / max(positive.sum(), 1)]))
    thresholds = np.unique(np.append(np.quantile(scores, np.linspace(0, 1, 300)), list(at.values())))
    values = threshold_curve(metric, scores, labels, thresholds)
    marks = {name: (np.array([w]), threshold_curve(metric, scores, labels, np.array([w]))) for name, w in at.items()}
    return {
        "precision_recall": Figure(
            "Precision and recall", "recall", "precision", {"all thresholds": (recall, precision), **points}
        ),
        "threshold": Figure(
            f"{metric} by threshold", "threshold on the score", str(metric), {"test": (thresholds, values), **marks}
        ),
    }
