"""What may be claimed of a linear classifier whose training labels an adversary may change.

Source: Rosenfeld, Winston, Ravikumar and Kolter (arXiv 2002.03018).
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from robustrun.certifiers.examplewise import judge_examples
from robustrun.certifiers.label_flip_figures import curve, flips_figure, margin_figure
from robustrun.errors import ConfigError
from robustrun.methods.smoothing import (
    ExactFlips,
    RidgeHat,
    certify_binary,
    certify_multiclass,
    distance_order,
    exact_flips,
    exact_flips_multiclass,
    fit_logistic,
    flips_to_break,
    influence_order,
    partition_votes,
    sampled_votes,
)
from robustrun.numbers import NonNegativeInt, Positive, PositiveInt, Probability
from robustrun.registry import certifiers
from robustrun.roles import Batch, Certifier, ClassificationTask, Fitted, LinearClassifier, Report
from robustrun.runtime import Run


def _training(task: ClassificationTask, fitted: Fitted[LinearClassifier], run: Run) -> tuple[RidgeHat, Tensor, Tensor]:
    """The hat matrix, labels and features behind a least-squares fit."""
    if "regularisation" not in fitted.extra:
        raise ConfigError(
            "label-flip certificates speak of least squares in closed form: this classifier was fitted otherwise "
            "(trainer=least_squares fits one)"
        )
    features, labels = fitted.model.training_set(task, run)
    return RidgeHat.fit(features, intercept=bool(fitted.extra["intercept"])), labels, features


def _check_noise(q: float, classes: int) -> None:
    if not 0 < q < 1 - 1 / classes:
        raise ConfigError(f"certifier.q={q}: with {classes} classes it must lie between 0 and {1 - 1 / classes:.6g}")


def certified(correct: np.ndarray, radius: np.ndarray, name: str, radii: Sequence[int]) -> dict[str, float]:
    """Certified accuracy at each of `radii` and the median radius, in which a wrong prediction counts as -1."""
    held = np.where(correct, radius, -1)
    return {f"{name}_{r}": float((held >= r).mean()) for r in radii} | {f"median_{name}": float(np.median(held))}


@certifiers.register("label_flip")
class LabelFlip(Certifier):
    """Certified accuracy of label-smoothed least squares (arXiv 2002.03018): deterministic, no sampling.

    For each example: how many training labels may be changed, whichever they are, without changing its
    prediction. Beside the paper's bound (kl) stands the tight one for the same vote (np), the exact number for the
    unsmoothed classifier, and the number for an ensemble on disjoint parts of the training set.

    Args:
        q: probability that the smoothing noise changes a label.
        sweep: further values of q, for the figure.
        exact: the exact worst case of the unsmoothed classifier too.
        partitions: members of the ensemble; 0: none.
        tilts: rivals whose bounds are optimised one by one, for more than two classes.
        radii: certified accuracy is reported at these numbers of flips.
        examples: the first so many.
        stride: every so many-th example.
        batch_size: examples at a time.
        shard: "i/n": only this part of the examples.
    """

    closed_form = True

    def __init__(
        self,
        *,
        q: Positive = 0.1,
        sweep: list[Positive] = [],  # noqa: B006
        exact: bool = True,
        partitions: NonNegativeInt = 0,
        tilts: PositiveInt = 1,
        radii: list[NonNegativeInt] = [1, 10, 25, 50, 100, 200, 300],  # noqa: B006
        examples: PositiveInt | None = None,
        stride: PositiveInt = 1,
        batch_size: PositiveInt = 1000,
        shard: str | None = None,
    ):
        self.noise = [q, *(other for other in sweep if other != q)]
        self.exact, self.partitions, self.tilts, self.radii = exact, partitions, tilts, radii
        self.selection = {"examples": examples, "stride": stride, "batch_size": batch_size, "shard": shard}

    def check(self, task: ClassificationTask) -> None:
        for q in self.noise:
            _check_noise(q, task.spec.classes)
        if self.partitions > (size := task.size("train")):
            raise ConfigError(f"certifier.partitions={self.partitions}, but there are {size} training examples")

    def certify(self, task: ClassificationTask, fitted: Fitted[LinearClassifier], run: Run) -> Report:
        classes = task.spec.classes
        hat, labels, features = _training(task, fitted, run)
        strength = fitted.extra["regularisation"]

        @torch.no_grad()
        def judge(batch: Batch) -> dict[str, Tensor]:
            queries = fitted.model.features(batch.inputs)
            columns = {"label": batch.targets}
            if classes == 2:
                certificates = certify_binary(hat, labels, queries, self.noise, strength)
            else:
                certificates = certify_multiclass(hat, labels, classes, queries, self.noise, strength, tilts=self.tilts)
            for i, certificate in enumerate(certificates):
                end = f"_{i}" if i else ""
                columns |= {
                    f"predicted{end}": certificate.prediction,
                    f"log_bound{end}": certificate.log_bound,
                    f"t{end}": certificate.t,
                    f"radius_kl{end}": certificate.radius_kl,
                    f"radius_np{end}": certificate.radius_np,
                }
            if self.exact:
                columns |= self._exact(hat, labels, classes, queries, strength)
            if self.partitions:
                ensemble = partition_votes(
                    features,
                    labels,
                    classes,
                    queries,
                    parts=self.partitions,
                    regularisation=strength / self.partitions,
                    generator=torch.Generator().manual_seed(run.seed_for("partition")),
                )
                columns |= {"predicted_ensemble": ensemble.prediction, "radius_ensemble": ensemble.radius}
            return columns

        columns = judge_examples(judge, task, run, **self.selection)
        return self._report(columns, hat, labels, classes)

    @staticmethod
    def _exact(hat: RidgeHat, labels: Tensor, classes: int, queries: Tensor, strength: float) -> dict[str, Tensor]:
        targets = one_hot(labels, classes).double()

        def flips(alpha: Tensor) -> ExactFlips:
            return exact_flips(alpha, labels) if classes == 2 else exact_flips_multiclass(alpha, targets)

        blocks = hat.map_alphas(flips, hat.weights(queries, strength))
        return {
            "predicted_exact": torch.cat([block.prediction for block in blocks]),
            "radius_exact": torch.cat([block.radius for block in blocks]),
        }

    def _report(self, columns: dict[str, np.ndarray], hat: RidgeHat, labels: Tensor, classes: int) -> Report:
        truth, n = columns["label"], len(hat)
        correct = columns["predicted"] == truth
        metrics = {
            "accuracy": float(correct.mean()),
            "abstained": float((columns["log_bound"] >= np.log(0.5)).mean()),
            "constant_accuracy": float((truth == int(labels.bincount().argmax())).mean()),
        }
        series = {}
        for i, q in enumerate(self.noise):
            end = f"_{i}" if i else ""
            right = columns[f"predicted{end}"] == truth
            for bound in ("kl", "np"):
                radius = columns[f"radius_{bound}{end}"]
                if not i:
                    metrics |= certified(right, radius, bound, self.radii)
                if not i or bound == "kl":
                    series[f"{bound.upper()}, q = {q:g}"] = curve(right, radius)
        for name, label in (("exact", "exact, unsmoothed"), ("ensemble", f"{self.partitions} partitions")):
            if f"radius_{name}" in columns:
                right, radius = columns[f"predicted_{name}"] == truth, columns[f"radius_{name}"]
                metrics |= {f"accuracy_{name}": float(right.mean())} | certified(right, radius, name, self.radii)
                series[label] = curve(right, radius)
        figure = flips_figure("Certified accuracy", series, n, metrics["constant_accuracy"])
        figures = {"certified_accuracy": figure, "required_margin": margin_figure(self.noise, classes)}
        return Report(metrics, columns, figures, {"examples": len(truth), "labels": n})


@certifiers.register("label_flip_sampling")
class LabelFlipSampling(Certifier):
    """The same smoothing by sampled labellings and Clopper-Pearson: shows what the deterministic bound saves.

    Each example's radius holds with confidence 1 - `alpha`.

    Args:
        q: probability that the smoothing noise changes a label.
        samples: labellings.
        alpha: error probability of an example.
        radii, examples, batch_size, shard: as for label_flip.
    """

    closed_form = True

    def __init__(
        self,
        *,
        q: Positive = 0.1,
        samples: PositiveInt = 1000,
        alpha: Probability = 0.001,
        radii: list[NonNegativeInt] = [1, 10, 25, 50, 100, 200, 300],  # noqa: B006
        examples: PositiveInt | None = None,
        batch_size: PositiveInt = 1000,
        shard: str | None = None,
    ):
        if not 0 < alpha < 1:
            raise ConfigError(f"certifier.alpha={alpha} must lie strictly between 0 and 1")
        self.q, self.samples, self.alpha, self.radii = q, samples, alpha, radii
        self.selection = {"examples": examples, "batch_size": batch_size, "shard": shard}

    def check(self, task: ClassificationTask) -> None:
        _check_noise(self.q, task.spec.classes)

    def certify(self, task: ClassificationTask, fitted: Fitted[LinearClassifier], run: Run) -> Report:
        classes, q = task.spec.classes, self.q
        hat, labels, _ = _training(task, fitted, run)

        @torch.no_grad()
        def judge(batch: Batch) -> dict[str, Tensor]:
            # the same labellings for every batch: the classifiers voting are the same ones
            votes = sampled_votes(
                hat,
                labels,
                classes,
                fitted.model.features(batch.inputs),
                q,
                fitted.extra["regularisation"],
                samples=self.samples,
                generator=torch.Generator(labels.device).manual_seed(run.seed_for("labellings")),
                alpha=self.alpha,
            )
            return {
                "label": batch.targets,
                "predicted": votes.prediction,
                "votes": votes.votes,
                "radius_kl": votes.radius_kl,
                "radius_np": votes.radius_np,
            }

        columns = judge_examples(judge, task, run, **self.selection)
        correct = columns["predicted"] == columns["label"]
        metrics, series = {"accuracy": float(correct.mean())}, {}
        for bound in ("kl", "np"):
            metrics |= certified(correct, columns[f"radius_{bound}"], bound, self.radii)
            series[f"{bound.upper()}, {self.samples} samples"] = curve(correct, columns[f"radius_{bound}"])
        constant = float((columns["label"] == int(labels.bincount().argmax())).mean())
        figure = flips_figure("Certified accuracy by sampling", series, len(labels), constant)
        return Report(metrics, columns, {"certified_accuracy": figure}, {"examples": len(correct)})


@certifiers.register("label_flip_attack")
class LabelFlipAttack(Certifier):
    """How few flips break undefended classifiers: an upper bound on what any certificate of theirs could say.

    Logistic regression is retrained on labels flipped in the order of their influence, and of their distance
    (arXiv 2002.03018); least squares without smoothing is attacked optimally.

    Args:
        components: principal components of the features that the logistic regression sees.
        penalty: its l2 penalty, on the mean loss.
        radii, examples, stride, batch_size, shard: as for label_flip.
    """

    closed_form = True

    def __init__(
        self,
        *,
        components: PositiveInt = 50,
        penalty: Positive = 1e-3,
        radii: list[NonNegativeInt] = [1, 10, 25, 50, 100, 200, 300],  # noqa: B006
        examples: PositiveInt | None = 200,
        stride: PositiveInt = 1,
        batch_size: PositiveInt = 100,
        shard: str | None = None,
    ):
        self.components, self.penalty, self.radii = components, penalty, radii
        self.selection = {"examples": examples, "stride": stride, "batch_size": batch_size, "shard": shard}

    def check(self, task: ClassificationTask) -> None:
        if task.spec.classes != 2:
            raise ConfigError(f"these attacks flip labels of two classes, not of {task.spec.classes}")

    def certify(self, task: ClassificationTask, fitted: Fitted[LinearClassifier], run: Run) -> Report:
        hat, labels, features = _training(task, fitted, run)
        principal = RidgeHat.fit(features).basis[:, -self.components :]
        mean = features.mean(0)

        def reduced(x: Tensor) -> Tensor:
            return torch.cat([(x - mean) @ principal, torch.ones_like(x[:, :1])], 1)

        design = reduced(features)
        clean = fit_logistic(design, labels[None], penalty=self.penalty)[0]

        @torch.no_grad()
        def judge(batch: Batch) -> dict[str, Tensor]:
            queries = fitted.model.features(batch.inputs)
            inputs = reduced(queries)
            predicted = (inputs @ clean >= 0).long()
            orders = {
                "influence": influence_order(design, labels, clean, inputs, self.penalty),
                "distance": distance_order(design, labels, inputs, predicted),
            }
            flips = {
                f"flips_{name}": flips_to_break(design, labels, inputs, order, penalty=self.penalty)
                for name, order in orders.items()
            }
            exact = LabelFlip._exact(hat, labels, 2, queries, fitted.extra["regularisation"])
            return {"label": batch.targets, "predicted": predicted, **flips, **exact}

        columns = judge_examples(judge, task, run, description="attacking", **self.selection)
        correct = columns["predicted"] == columns["label"]
        survived = np.minimum(columns["flips_influence"], columns["flips_distance"]) - 1
        least_squares = columns["predicted_exact"] == columns["label"]
        metrics = {"accuracy": float(correct.mean())} | certified(correct, survived, "attacked", self.radii)
        metrics |= certified(least_squares, columns["radius_exact"], "exact", self.radii)
        series = {
            f"logistic, by {name}": curve(correct, columns[f"flips_{name}"] - 1) for name in ("influence", "distance")
        }
        series["least squares, optimal"] = curve(least_squares, columns["radius_exact"])
        constant = float((columns["label"] == int(labels.bincount().argmax())).mean())
        figure = flips_figure("Accuracy of undefended classifiers", series, len(labels), constant)
        return Report(metrics, columns, {"attacked_accuracy": figure}, {"examples": len(correct)})
