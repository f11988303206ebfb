"""PGD-k-r: clean accuracy, and an upper bound on robust accuracy by projected gradient descent with restarts."""

from typing import Literal

import numpy as np
import torch
from torch import nn

from robustrun.certifiers.examplewise import fraction, judge_examples
from robustrun.methods.attacks import LossName, evaluation_mode, fgsm, pgd
from robustrun.numbers import NonNegative, NonNegativeInt, Number, PositiveInt
from robustrun.registry import certifiers
from robustrun.roles import Batch, Certifier, ClassificationTask, Fitted, Report
from robustrun.runtime import Run


@certifiers.register("pgd")
class PGD(Certifier):
    """Attack every example (arXiv 1706.06083; evaluation of 2001.03994 and 2002.11569).

    Args:
        norm, epsilon: the threat model.
        alpha, steps, restarts: of the attack; zero steps only draw the random starts.
        loss: what is ascended.
        freeze: examples that are broken stop moving, and leave the batch.
        select: which restart counts: `max_loss` as in the papers, or `any_break`, stricter and faster.
        states: which states of the fitted model to attack; several prefix the metrics by the state's name.
        split, examples, stride: which examples.
        batch_size: examples attacked at a time.
        shard: "i/n": only this part of the examples.
    """

    def __init__(
        self,
        *,
        norm: Literal["linf", "l2"] = "linf",
        epsilon: NonNegative = 8 / 255,
        alpha: Number = 2 / 255,
        steps: NonNegativeInt = 50,
        restarts: PositiveInt = 10,
        loss: LossName = "cross_entropy",
        freeze: bool = True,
        select: Literal["max_loss", "any_break"] = "any_break",
        states: tuple[str, ...] = ("last",),
        split: Literal["train", "valid", "test"] = "test",
        examples: PositiveInt | None = None,
        stride: PositiveInt = 1,
        batch_size: PositiveInt = 1000,
        shard: str | None = None,
    ):
        self.norm, self.epsilon, self.alpha, self.steps = norm, epsilon, alpha, steps
        self.restarts, self.loss, self.freeze, self.select = restarts, loss, freeze, select
        self.states = states
        self.selection = {
            "split": split, "examples": examples, "stride": stride, "batch_size": batch_size, "shard": shard,
        }  # fmt: skip

    def certify(self, task: ClassificationTask, fitted: Fitted[nn.Module], run: Run) -> Report:
        metrics: dict[str, float] = {}
        examples: dict[str, np.ndarray] = {}
        passes = {"forward_passes": 0.0, "backward_passes": 0.0}
        for state in self.states:
            prefix = f"{state}_" if len(self.states) > 1 else ""
            model = fitted.at(state)
            name = "examples" if len(self.states) == 1 else f"examples_{state}"
            columns = judge_examples(
                lambda batch, model=model: self.judge(model, batch, run),
                task,
                run,
                name=name,
                description=f"PGD-{self.steps}-{self.restarts} {prefix}".strip("_ "),
                **self.selection,
            )
            for key in passes:
                passes[key] += columns.pop(key.removesuffix("_passes") + "s").sum()
            metrics |= {f"{prefix}{key}": value for key, value in self._metrics(columns).items()}
            examples |= {
                key if key in ("index", "label") else f"{prefix}{key}": column for key, column in columns.items()
            }
        counts = {"examples": len(examples["index"]), **{key: round(value) for key, value in passes.items()}}
        return Report(metrics, examples, counts=counts)

    def judge(self, model: nn.Module, batch: Batch, run: Run) -> dict[str, torch.Tensor]:
        """Clean, FGSM and PGD predictions for one batch."""
        inputs, targets = batch.inputs, batch.targets
        with torch.no_grad(), evaluation_mode(model):
            clean = model(inputs).argmax(1)
        one_step = fgsm(model, inputs, targets, norm=self.norm, epsilon=self.epsilon)
        result = pgd(
            model,
            inputs,
            targets,
            norm=self.norm,
            epsilon=self.epsilon,
            alpha=self.alpha,
            steps=self.steps,
            restarts=self.restarts,
            loss=self.loss,
            freeze=self.freeze,
            select=self.select,
            generator=run.generator("certify", int(batch.indices[0]), device=run.device),
        )
        correct = clean == targets
        return {
            "label": targets,
            "predicted": clean,
            "correct": correct,
            "fgsm_correct": ~one_step.success & correct,
            "robust": ~result.success & correct,
            "loss": result.loss,
            # Averages over the batch, so that the sums are right however the work was cut up.
            "forwards": result.loss.new_full(targets.shape, result.forwards / len(targets), dtype=torch.float64),
            "backwards": result.loss.new_full(targets.shape, result.backwards / len(targets), dtype=torch.float64),
        }

    def _metrics(self, columns: dict[str, np.ndarray]) -> dict[str, float]:
        return {
            **fraction(columns["correct"], "clean_accuracy"),
            "fgsm_accuracy": float(np.mean(columns["fgsm_correct"])),
            **fraction(columns["robust"], "robust_accuracy"),
        }
