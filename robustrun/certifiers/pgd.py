"""PGD-k-r: clean accuracy, and an upper bound on robust accuracy by projected gradient descent with restarts."""

from typing import Literal

import numpy as np
import torch
from torch import nn

from robustrun.certifiers.attack import Attack, shared
from robustrun.certifiers.examplewise import fraction
from robustrun.methods.attacks import LossName, evaluation_mode, fgsm, pgd
from robustrun.numbers import NonNegative, NonNegativeInt, Number, PositiveInt
from robustrun.registry import certifiers
from robustrun.roles import Batch, Figure
from robustrun.runtime import Run


@certifiers.register("pgd")
class PGD(Attack):
    """Attack every example (arXiv 1706.06083; evaluation of 2001.03994 and 2002.11569).

    Args:
        norm, epsilon: the threat model.
        alpha, steps, restarts: of the attack; zero steps only draw the random starts.
        loss: what is ascended.
        freeze: examples that are broken stop moving, and leave the batch.
        select: which restart counts: `max_loss` as in the papers, or `any_break`, stricter and faster.
        common: see `Attack`.
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
        **common,
    ):
        super().__init__(**common)
        self.norm, self.epsilon, self.alpha, self.steps = norm, epsilon, alpha, steps
        self.restarts, self.loss, self.freeze, self.select = restarts, loss, freeze, select
        self.description = f"PGD-{steps}-{restarts}"

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
            "broken_after": result.broken_after,
            "loss": result.loss,
            "forwards": shared(result.forwards, targets),
            "backwards": shared(result.backwards, targets),
        }

    def summary(self, columns: dict[str, np.ndarray]) -> dict[str, float]:
        return {
            **fraction(columns["correct"], "clean_accuracy"),
            "fgsm_accuracy": float(np.mean(columns["fgsm_correct"])),
            **fraction(columns["robust"], "robust_accuracy"),
        }

    def figures(self, columns: dict[str, dict[str, np.ndarray]]) -> dict[str, Figure]:
        steps = np.arange(self.steps * self.restarts + 1)
        series = {}
        for state, those in columns.items():
            stands = np.where(those["correct"] & ~those["robust"], those["broken_after"], len(steps))
            stands = np.sort(np.where(those["correct"], stands, -1))
            accuracy = 1 - np.searchsorted(stands, steps, side="right") / len(stands)
            series[state if len(columns) > 1 else "robust"] = steps, accuracy
        label = "steps" if self.restarts == 1 else "steps, of all restarts one after another"
        return {
            "accuracy_by_steps": Figure(f"Accuracy under {self.description}", label, "accuracy", series, kind="step")
        }
