"""Plain accuracy: an evaluation that claims nothing beyond the test set."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from robustrun.certifiers.examplewise import fraction, judge_examples
from robustrun.numbers import PositiveInt
from robustrun.registry import certifiers
from robustrun.roles import Batch, Certifier, ClassificationTask, Fitted, Report
from robustrun.runtime import Run


@certifiers.register("accuracy")
class Accuracy(Certifier):
    """Accuracy and mean cross-entropy, with an exact binomial confidence interval.

    Args:
        state: which state of the fitted model.
        split, examples: which examples.
        batch_size: examples at a time.
        shard: "i/n": only this part of the examples.
    """

    def __init__(
        self,
        *,
        state: str = "last",
        split: Literal["train", "valid", "test"] = "test",
        examples: PositiveInt | None = None,
        batch_size: PositiveInt = 1000,
        shard: str | None = None,
    ):
        self.state = state
        self.selection = {"split": split, "examples": examples, "batch_size": batch_size, "shard": shard}

    def certify(self, task: ClassificationTask, fitted: Fitted[nn.Module], run: Run) -> Report:
        model = fitted.at(self.state)

        @torch.no_grad()
        def judge(batch: Batch) -> dict[str, torch.Tensor]:
            logits = model(batch.inputs).float()
            predicted = logits.argmax(1)
            return {
                "label": batch.targets,
                "predicted": predicted,
                "correct": predicted == batch.targets,
                "loss": F.cross_entropy(logits, batch.targets, reduction="none"),
            }

        columns = judge_examples(judge, task, run, description="evaluating", **self.selection)
        metrics = fraction(columns["correct"], "accuracy") | {"loss": float(columns["loss"].mean())}
        return Report(metrics, columns, counts={"examples": len(columns["index"])})
