"""Metrics of a finished classifier: bootstrap intervals, paired differences, thresholds, precision at a recall.

A metric of hard predictions depends on the confusion matrix alone, so resampling n examples with replacement is a
multinomial draw of its cells: exact, and as cheap for a million examples as for ten.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from robustrun.methods.adversarial_prediction.metric import Metric


class Interval(NamedTuple):
    """An estimate with its percentile bootstrap interval."""

    value: float
    low: float
    high: float


def bootstrap_interval(
    metric: Metric,
    predictions: ArrayLike,
    labels: ArrayLike,
    generator: np.random.Generator,
    *,
    resamples: int = 2000,
    confidence: float = 0.95,
) -> Interval:
    """A metric of hard 0/1 predictions with its interval (Efron's percentile method)."""
    value = metric(predictions, labels)
    drawn = _resampled((np.asarray(labels) == 1, np.asarray(predictions) == 1), generator, resamples)
    return Interval(value, *_percentiles(_on_cells(metric, drawn), confidence))


def paired_interval(
    metric: Metric,
    predictions: ArrayLike,
    others: ArrayLike,
    labels: ArrayLike,
    generator: np.random.Generator,
    *,
    resamples: int = 2000,
    confidence: float = 0.95,
) -> Interval:
    """metric(predictions) - metric(others) on the same examples, both judged on every resample."""
    value = metric(predictions, labels) - metric(others, labels)
    columns = (np.asarray(labels) == 1, np.asarray(predictions) == 1, np.asarray(others) == 1)
    drawn = _resampled(columns, generator, resamples)
    difference = _on_cells(metric, drawn.sum(3)) - _on_cells(metric, drawn.sum(2))
    return Interval(value, *_percentiles(difference, confidence))


def _resampled(
    columns: tuple[NDArray[np.bool_], ...], generator: np.random.Generator, resamples: int
) -> NDArray[np.int64]:
    """Counts (resamples, 2, 2, ...) of every combination of the columns' values, resampled."""
    code = sum(column.astype(np.int64) << (len(columns) - 1 - i) for i, column in enumerate(columns))
    counts = np.bincount(code, minlength=2 ** len(columns))
    drawn = generator.multinomial(counts.sum(), counts / counts.sum(), size=resamples)
    return drawn.reshape(resamples, *[2] * len(columns))


def _on_cells(metric: Metric, cells: NDArray[np.int64]) -> NDArray[np.float64]:
    """The metric on counts (..., label, prediction)."""
    tp = cells[..., 1, 1]
    return metric.value(tp, cells[..., 1].sum(-1), cells[..., 1, :].sum(-1), cells.sum((-1, -2)))


def _percentiles(values: NDArray[np.float64], confidence: float) -> tuple[float, float]:
    tail = (1 - confidence) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)


def threshold_curve(metric: Metric, scores: ArrayLike, labels: ArrayLike, thresholds: ArrayLike) -> NDArray[np.float64]:
    """The metric of predicting score >= threshold, for every threshold at once: (T,) of scores (n,), labels (n,)."""
    tp, pp = _above(scores, labels, thresholds)
    labels = np.asarray(labels)
    return metric.value(tp, pp, (labels == 1).sum(), labels.size)


def tuned_threshold(metric: Metric, scores: ArrayLike, labels: ArrayLike, *, candidates: int = 200) -> float:
    """The quantile of the scores that is the best threshold on these examples; 0 is a candidate too.

    With constraints, the best among those that meet them; if none does, the one that misses them least.
    """
    quantiles = np.quantile(np.asarray(scores, dtype=np.float64), np.linspace(0, 1, candidates))
    thresholds = np.append(0.0, quantiles)
    value = threshold_curve(metric, scores, labels, thresholds)
    if metric.constraints:
        missing = sum(
            np.maximum(c.threshold - threshold_curve(c.metric, scores, labels, thresholds), 0)
            for c in metric.constraints
        )
        value = np.where(missing <= missing.min() + 1e-12, value, -np.inf)
    return float(thresholds[value.argmax()])


def _above(scores: ArrayLike, labels: ArrayLike, thresholds: ArrayLike) -> tuple[NDArray, NDArray]:
    """True and all positives at every threshold."""
    scores, labels = np.asarray(scores, dtype=np.float64), np.asarray(labels)
    order = np.argsort(scores)
    first = np.searchsorted(scores[order], thresholds, side="left")
    hits = np.append(np.cumsum((labels[order] == 1)[::-1])[::-1], 0)
    return hits[first], scores.size - first


def precision_at_recall(
    scores: ArrayLike,
    labels: ArrayLike,
    recall: float,
    generator: np.random.Generator,
    *,
    resamples: int = 400,
    confidence: float = 0.95,
) -> Interval:
    """Precision at the first distinct threshold, from the top, whose recall is at least `recall`."""
    scores, labels = np.asarray(scores, dtype=np.float64), np.asarray(labels) == 1
    order = np.argsort(-scores, kind="stable")
    ranked, hits = scores[order], labels[order]
    ends = np.append(ranked[1:] != ranked[:-1], True)  # the last of each tied group
    value = _first_reaching(np.ones((1, hits.size)), hits, ends, recall)[0]
    n, drawn = hits.size, []
    for _ in range(0, resamples, 50):  # in pieces: the weights are a matrix of resamples x examples
        weights = generator.multinomial(n, np.full(n, 1 / n), size=50)
        drawn.append(_first_reaching(weights, hits, ends, recall))
    return Interval(float(value), *_percentiles(np.concatenate(drawn), confidence))


def _first_reaching(weights: NDArray, hits: NDArray, ends: NDArray, recall: float) -> NDArray[np.float64]:
    predicted = weights.cumsum(1)[:, ends]
    true = (weights * hits).cumsum(1)[:, ends]
    reached = true >= recall * true[:, -1:] - 1e-9
    at = reached.argmax(1)[:, None]
    with np.errstate(invalid="ignore"):
        precision = np.take_along_axis(true, at, 1)[:, 0] / np.take_along_axis(predicted, at, 1)[:, 0]
    return np.where(true[:, -1] > 0, precision, 0.0)


def precision_recall_curve(scores: ArrayLike, labels: ArrayLike) -> tuple[NDArray, NDArray]:
    """(recall, precision) at every distinct threshold, recall rising."""
    thresholds = np.unique(np.asarray(scores, dtype=np.float64))[::-1]
    tp, pp = _above(scores, labels, thresholds)
    return tp / max(int((np.asarray(labels) == 1).sum()), 1), tp / pp
