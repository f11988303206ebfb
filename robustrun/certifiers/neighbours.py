"""How much of the classes unlabelled features know: the votes of the nearest training examples.

Source: Wu, Xiong, Yu and Lin (arXiv 1805.01978), whose test of unlabelled features this is, unweighted.
"""

import torch
import torch.nn.functional as F

from robustrun.certifiers.examplewise import fraction, judge_examples
from robustrun.numbers import PositiveInt
from robustrun.registry import certifiers
from robustrun.roles import Batch, Certifier, ClassificationTask, Encoder, Fitted, Report
from robustrun.runtime import Run


@certifiers.register("neighbours")
class Neighbours(Certifier):
    """Accuracy of the most frequent label among the nearest training examples, by cosine similarity of the features.

    Args:
        neighbours: how many vote; ties go to the smaller class.
        examples: the first so many test examples.
        batch_size: examples at a time.
        shard: "i/n": only this part of the examples.
    """

    def __init__(
        self,
        *,
        neighbours: PositiveInt = 20,
        examples: PositiveInt | None = None,
        batch_size: PositiveInt = 500,
        shard: str | None = None,
    ):
        self.neighbours = neighbours
        self.selection = {"examples": examples, "batch_size": batch_size, "shard": shard}

    def certify(self, task: ClassificationTask, fitted: Fitted[Encoder], run: Run) -> Report:
        model, classes = fitted.at("last"), task.spec.classes

        @torch.no_grad()
        def embedded(batch: Batch) -> torch.Tensor:
            return F.normalize(model.features(batch.inputs).float(), dim=1)

        parts = [(embedded(batch), batch.targets) for batch in task.loader("train", 500, run).epoch(0)]
        known, labels = (torch.cat(column) for column in zip(*parts, strict=True))

        def judge(batch: Batch) -> dict[str, torch.Tensor]:
            nearest = (embedded(batch) @ known.T).topk(min(self.neighbours, len(known)), dim=1).indices
            predicted = F.one_hot(labels[nearest], classes).sum(1).argmax(1)
            return {"label": batch.targets, "predicted": predicted, "correct": predicted == batch.targets}

        columns = judge_examples(judge, task, run, description="evaluating", **self.selection)
        return Report(fraction(columns["correct"], "accuracy"), columns, counts={"examples": len(columns["index"])})
