"""What all certifiers that judge one example at a time share: chunks, resume, shards, progress, signals."""

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from torch import Tensor

from robustrun.errors import ConfigError
from robustrun.methods.smoothing import clopper_pearson_lower, clopper_pearson_upper
from robustrun.numbers import PositiveInt
from robustrun.roles import Batch, Certifier, ExampleTask, Split
from robustrun.runtime import Run, shard_indices

Judge = Callable[[Batch], dict[str, Tensor]]


class Examplewise(Certifier):
    """Judges the first examples of a split, by one state of the fitted model: `**self.selection` says which.

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

    def check(self, task: ExampleTask) -> None:
        check_split(task, self.selection["split"])


def check_split(task: ExampleTask, split: Split) -> None:
    """Look whether the split has examples.

    Raises:
        ConfigError: it has none.
    """
    if not task.size(split):
        raise ConfigError(f"the task has no split '{split}' to certify on")


def judge_examples(
    judge: Judge,
    task: ExampleTask,
    run: Run,
    *,
    split: Split = "test",
    examples: int | None = None,
    stride: int = 1,
    shard: str | None = None,
    batch_size: int = 512,
    name: str = "examples",
    description: str = "certifying",
) -> dict[str, np.ndarray]:
    """Judge the examples of a split that are not judged yet; one record an example, in order.

    The batches are the same however often the job was interrupted, so randomness that a judge draws from
    `run.generator(..., batch.indices[0])` gives the same records as an undisturbed run.

    Args:
        judge: a batch on the device -> columns of one entry an example.
        split, examples, stride: the first `examples` of every `stride`-th example of the split.
        shard: "i/n", this job's part of them.
        batch_size: examples a call of `judge`.
        name: of the records, where a certifier keeps several.
        description: for the progress bar.

    Returns:
        Columns, "index" first.

    Raises:
        ConfigError: the split is empty, or the shard makes no sense.
        Stopped: a signal came; the records so far are kept.
    """
    check_split(task, split)
    chosen = shard_indices(np.arange(0, task.size(split), stride)[:examples], shard)
    # Each process judges its share of the batches; together they have all records.
    chunks = [chosen[i : i + batch_size] for i in range(0, len(chosen), batch_size)]
    chunks = chunks[run.distributed.rank :: run.distributed.world_size]
    total = sum(len(chunk) for chunk in chunks)
    log = run.example_log(name)
    first = next((i for i, chunk in enumerate(chunks) if len(log.remaining(chunk))), len(chunks))
    with run.progress(total, description, unit="example", done=sum(map(len, chunks[:first]))) as progress:
        if first < len(chunks):
            loader = task.loader(split, batch_size, run, indices=np.concatenate(chunks))
            for chunk, batch in zip(chunks[first:], loader.epoch(0, first), strict=True):
                if len(log.remaining(chunk)):
                    batch = Batch(batch.inputs, batch.targets, batch.targets.new_tensor(chunk))
                    columns = {key: value.detach().cpu().numpy() for key, value in judge(batch).items()}
                    log.append(index=chunk, **columns)
                progress.advance(len(chunk))  # where a signal ends the job, its records kept
    columns = log.columns()
    keep = np.isin(columns["index"], chosen)
    return {key: value[keep] for key, value in columns.items()}


def fraction(successes: np.ndarray | Sequence[bool], name: str, confidence: float = 0.95) -> dict[str, float]:
    """`name`, `name_low` and `name_high`: a fraction with its exact (Clopper-Pearson) confidence interval."""
    successes = np.asarray(successes, dtype=bool)
    hits, alpha = successes.sum(), (1 - confidence) / 2
    return {
        name: float(successes.mean()),
        f"{name}_low": float(clopper_pearson_lower(hits, len(successes), alpha)),
        f"{name}_high": float(clopper_pearson_upper(hits, len(successes), alpha)),
    }
