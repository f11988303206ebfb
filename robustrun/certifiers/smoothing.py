"""Randomized smoothing: certified radii of any classifier from its votes under noise."""

from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from robustrun.certifiers.examplewise import fraction, judge_examples
from robustrun.errors import ConfigError
from robustrun.methods.folding import InferenceCopy
from robustrun.methods.smoothing import (
    ABSTAIN,
    Law,
    NoisyVotes,
    Norm,
    SmoothedCertificate,
    certified_accuracy,
    certify,
    certify_adaptive,
    noise_law,
    to_three_digits,
)
from robustrun.numbers import NonNegative, Positive, PositiveInt, Probability
from robustrun.registry import certifiers
from robustrun.roles import Batch, Certifier, ClassificationTask, Figure, Fitted, QueriedClassifier, Report
from robustrun.runtime import Run


@certifiers.register("smoothing")
class Smoothing(Certifier):
    """CERTIFY for every chosen example (Cohen, Rosenfeld, Kolter, ICML 2019; arXiv 2003.01908).

    Args:
        law, sigma: of the noise, in units of the inputs; as in training.
        norm: of the radii; laws other than Gaussian certify l1 alone.
        n0, n: draws that choose the class, and fresh ones that bound its probability.
        alpha: probability that an example's certificate is wrong.
        adaptive: stop sampling an example once it is decided at all `radii`.
        radii: at which certified accuracy is reported.
        skip_wrong: no estimation draws where the chosen class is wrong already; leaves certified accuracy as it is.
        truth: what is correct, the `label` or the model's own answer on the `clean` example.
        three_digits: round radii before they are compared, as the paper's tables did; never a claim.
        state: which state of the fitted model.
        split, examples, stride, shard: which examples.
        batch_size: noisy inputs a forward pass.
        together: examples sampled together.
    """

    def __init__(
        self,
        *,
        law: Law = "gaussian",
        sigma: Positive = 0.25,
        norm: Norm = "l2",
        n0: PositiveInt = 100,
        n: PositiveInt = 10_000,
        alpha: Probability = 0.001,
        adaptive: bool = False,
        radii: tuple[NonNegative, ...] = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5),
        skip_wrong: bool = False,
        truth: Literal["label", "clean"] = "label",
        three_digits: bool = False,
        state: str = "last",
        split: Literal["train", "valid", "test"] = "test",
        examples: PositiveInt | None = None,
        stride: PositiveInt = 1,
        batch_size: PositiveInt = 1000,
        together: PositiveInt = 10,
        shard: str | None = None,
    ):
        self.noise = noise_law(law, sigma)
        if norm not in self.noise.norms:
            raise ConfigError(f"certifier.norm={norm}: {law} noise certifies {', '.join(self.noise.norms)} alone")
        if not 0 < alpha < 1:
            raise ConfigError(f"certifier.alpha={alpha}: a failure probability lies strictly between 0 and 1")
        self.norm, self.n0, self.n, self.alpha = norm, n0, n, alpha
        self.adaptive, self.radii, self.skip_wrong, self.truth = adaptive, radii, skip_wrong, truth
        self.three_digits, self.state, self.batch_size = three_digits, state, batch_size
        self.selection = {
            "split": split, "examples": examples, "stride": stride, "batch_size": together, "shard": shard,
        }  # fmt: skip

    def certify(self, task: ClassificationTask, fitted: Fitted[nn.Module | QueriedClassifier], run: Run) -> Report:
        model = fitted.at(self.state)
        classify = _Answers(model, run, self.n0, self._planned(task))
        classes = classify.classes or task.spec.classes
        seed = run.seed_for("smoothing")

        def judge(batch: Batch) -> dict[str, Tensor]:
            truth = batch.targets if self.truth == "label" else classify.clean(batch)
            votes = NoisyVotes(
                classify,
                batch.inputs,
                batch.indices,
                noise=self.noise,
                seed=seed,
                classes=classes,
                batch_size=self.batch_size,
            )
            return self._columns(self._certificate(votes, batch, truth), truth)

        columns = judge_examples(judge, task, run, **self.selection)
        counts = {"examples": len(columns["index"]), "forward_passes": self._draws(columns)}
        return Report(self._metrics(columns), columns, {"certified_accuracy": self._curve(columns)}, counts)

    def _planned(self, task: ClassificationTask) -> int:
        """Upper bound on the evaluations of the whole certification."""
        chosen = len(range(0, task.size(self.selection["split"]), self.selection["stride"]))
        chosen = min(chosen, self.selection["examples"] or chosen)
        return chosen * (self.n0 + self.n + (self.truth == "clean"))

    def _certificate(self, votes: NoisyVotes, batch: Batch, truth: Tensor) -> SmoothedCertificate:
        common = {
            "n0": self.n0,
            "n": self.n,
            "alpha": self.alpha,
            "norm": self.norm,
            "dimension": batch.inputs[0].numel(),
            "labels": truth if self.skip_wrong else None,
        }
        if self.adaptive:
            return certify_adaptive(votes, len(batch.targets), self.noise, radii=self.radii, **common)
        return certify(votes, len(batch.targets), self.noise, **common)

    @staticmethod
    def _columns(found: SmoothedCertificate, truth: Tensor) -> dict[str, Tensor]:
        label = truth.cpu().numpy()
        columns = {
            "label": label,
            "predicted": found.prediction,
            "correct": found.prediction == label,
            "radius": found.radius,
            "guess": found.guess,
            "successes": found.successes,
            "trials": found.trials,
            "p_lower": found.p_lower,
        }
        return {name: torch.from_numpy(np.asarray(column)) for name, column in columns.items()}

    def _draws(self, columns: dict[str, np.ndarray]) -> int:
        return int(columns["trials"].sum()) + self.n0 * len(columns["index"])

    def _metrics(self, columns: dict[str, np.ndarray]) -> dict[str, float]:
        correct, radius = columns["correct"], self._radii(columns)
        metrics = fraction(correct, "certified_accuracy")
        for at in self.radii:
            metrics |= fraction(correct & (radius >= at), f"certified_accuracy_{radius_name(at)}")
        metrics["average_radius"] = float(np.where(correct, columns["radius"], 0.0).mean())
        if not self.skip_wrong:  # which abstains where it would only have been wrong
            metrics["abstained"] = float((columns["predicted"] == ABSTAIN).mean())
        metrics["draws"] = self._draws(columns) / len(columns["index"])
        return metrics

    def _radii(self, columns: dict[str, np.ndarray]) -> np.ndarray:
        return to_three_digits(columns["radius"]) if self.three_digits else columns["radius"]

    def _curve(self, columns: dict[str, np.ndarray]) -> Figure:
        """Certified accuracy against the radius, with its exact 95 % interval."""
        end = max([*self.radii, float(columns["radius"].max(initial=0.0))])
        at = np.linspace(0, 1.02 * end or 1.0, 200)
        if self.adaptive:  # beyond what was decided the records say nothing
            at = np.unique(np.append(0.0, self.radii))
        radius = self._radii(columns)
        accuracy = certified_accuracy(columns["correct"], radius, at)
        bounds = [fraction(columns["correct"] & (radius >= r), "a") for r in at]
        low, high = (np.array([bound[f"a_{side}"] for bound in bounds]) for side in ("low", "high"))
        series = {f"sigma = {self.noise.sigma:g}": (at, accuracy, low, high)}
        return Figure("Certified accuracy", f"{self.norm} radius", "certified accuracy", series)


def radius_name(radius: float) -> str:
    """The name of a radius in a metric's name, which holds no dots: r025 for 0.25."""
    return (f"r{radius:.2f}" if abs(radius * 100 - round(radius * 100)) < 1e-9 else f"r{radius:g}").replace(".", "")


class _Answers:
    """A fitted model as a classifier of noisy inputs; `classes` where it knows better than the task."""

    def __init__(self, model: nn.Module, run: Run, n0: int, planned: int):
        self.classes = None
        self.remote = model if isinstance(model, QueriedClassifier) else None
        if self.remote is not None:
            self.classes = self.remote.open(run, selection=n0, planned=planned)
        else:
            self.network = InferenceCopy(model, run.precision.dtype)

    def __call__(self, noisy: Tensor, indices: Tensor, draws: Tensor) -> Tensor:
        if self.remote is not None:
            return self.remote.answers(noisy, indices, draws)
        return self.network(noisy)

    @torch.inference_mode()
    def clean(self, batch: Batch) -> Tensor:
        """The model's answers on the clean examples (draw -1)."""
        answers = self(batch.inputs, batch.indices, torch.full_like(batch.indices, -1))
        return answers.argmax(1) if answers.is_floating_point() else answers
