"""Plain accuracy: an evaluation that claims nothing beyond the test set.

Source of the interval: Clopper and Pearson, Biometrika 26 (1934).
"""

import torch
import torch.nn.functional as F
from torch import nn

from robustrun.certifiers.examplewise import Examplewise, fraction, judge_examples
from robustrun.registry import certifiers
from robustrun.roles import Batch, ClassificationTask, Fitted, Report
from robustrun.runtime import Run


@certifiers.register("accuracy")
class Accuracy(Examplewise):
    """Accuracy and mean cross-entropy, with an exact binomial confidence interval; options as of `Examplewise`."""

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
