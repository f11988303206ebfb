"""What certifiers that attack every example share: which examples, which states, what is counted."""

from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from robustrun.certifiers.examplewise import check_split, judge_examples
from robustrun.numbers import PositiveInt
from robustrun.roles import Batch, Certifier, ClassificationTask, Figure, Fitted, Report
from robustrun.runtime import Run


class Attack(Certifier):
    """Attacks the chosen examples of each chosen state; a subclass says how, and what is made of it.

    Args:
        states: which states of the fitted model to attack; several prefix the metrics by the state's name.
        split, examples, stride: which examples.
        batch_size: examples attacked at a time.
        shard: "i/n": only this part of the examples.
    """

    def __init__(
        self,
        *,
        states: tuple[str, ...] = ("last",),
        split: Literal["train", "valid", "test"] = "test",
        examples: PositiveInt | None = None,
        stride: PositiveInt = 1,
        batch_size: PositiveInt = 1000,
        shard: str | None = None,
    ):
        self.states = states
        self.selection = {
            "split": split, "examples": examples, "stride": stride, "batch_size": batch_size, "shard": shard,
        }  # fmt: skip

    description = "attacking"

    def judge(self, model: nn.Module, batch: Batch, run: Run) -> dict[str, Tensor]:
        """One entry an example: "label", "forwards", "backwards" (`shared`), and whatever `summary` reads."""
        raise NotImplementedError

    def summary(self, columns: dict[str, np.ndarray]) -> dict[str, float]:
        """Metrics of one state."""
        raise NotImplementedError

    def figures(self, columns: dict[str, dict[str, np.ndarray]]) -> dict[str, Figure]:
        """Pictures of all states: state -> its columns."""
        return {}

    def check(self, task: ClassificationTask) -> None:
        check_split(task, self.selection["split"])

    def certify(self, task: ClassificationTask, fitted: Fitted[nn.Module], run: Run) -> Report:
        metrics: dict[str, float] = {}
        examples: dict[str, np.ndarray] = {}
        passes = {"forward_passes": 0.0, "backward_passes": 0.0}
        judged: dict[str, dict[str, np.ndarray]] = {}
        for state in self.states:
            several = len(self.states) > 1
            prefix = f"{state}_" if several else ""
            model = fitted.at(state)
            columns = judge_examples(
                lambda batch, model=model: self.judge(model, batch, run),
                task,
                run,
                name=f"examples_{state}" if several else "examples",
                description=f"{self.description} {state if several else ''}".strip(),
                **self.selection,
            )
            for key in passes:
                passes[key] += columns.pop(key.removesuffix("_passes") + "s").sum()
            judged[state] = columns
            metrics |= {f"{prefix}{key}": value for key, value in self.summary(columns).items()}
            examples |= {
                key if key in ("index", "label") else f"{prefix}{key}": column for key, column in columns.items()
            }
        counts = {"examples": len(examples["index"]), **{key: round(value) for key, value in passes.items()}}
        return Report(metrics, examples, self.figures(judged), counts)


def shared(count: int, targets: Tensor) -> Tensor:
    """A batch's count, spread evenly over its examples: the sum is right however the work was cut up."""
    return targets.new_full(targets.shape, count / len(targets), dtype=torch.float64)
