"""Joining the shards of one certification: their records and their model become the whole job's, which then ends.

The whole job finds every example judged already, so that its certifier only draws the conclusion. Nothing about
merging has to be said by a certifier that judges one example at a time.
"""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from omegaconf import OmegaConf

from robustrun.check import Job, only_job
from robustrun.compose import Composer
from robustrun.errors import ConfigError, DataError
from robustrun.job import run
from robustrun.report.results import Result
from robustrun.runtime import Checkpoints
from robustrun.runtime.files import write_atomically


@dataclass(frozen=True)
class Shard:
    """A finished part of a certification."""

    directory: Path
    result: Result

    @classmethod
    def read(cls, directory: Path) -> "Shard":
        """Raises DataError if it is not finished, ConfigError if it is no shard."""
        result = Result.read(directory / "result.json")
        if result.shard is None:
            raise ConfigError(f"{directory} is not a shard: its job was run without certifier.shard=i/n")
        return cls(directory, result)

    @property
    def part(self) -> tuple[int, int]:
        """(i, n) of the shard i/n."""
        i, _, n = self.result.shard.partition("/")
        return int(i), int(n)

    def records(self) -> dict[str, bytes]:
        """The files of records by name, a torn last line cut off."""
        files = {path.name: path.read_bytes() for path in sorted((self.directory / "records").glob("*.jsonl"))}
        return {name: content[: content.rfind(b"\n") + 1] for name, content in files.items()}


def merge(directories: Sequence[Path], composer: Composer) -> tuple[Job, Result]:
    """Join shards into the directory of the whole job, beside theirs; its result.

    Raises:
        ConfigError: the shards do not belong together, overlap, or some are missing.
        DataError: one of them is not finished or damaged.
    """
    shards = sorted((Shard.read(Path(d).absolute()) for d in directories), key=lambda shard: shard.part)
    _check_together(shards)
    job = _whole_job(shards[0], composer)
    if not job.finished:
        _check_models(shards)
        _gather(shards, job.directory)
        result = run(job)
        _add_up(result, shards).write(job.directory / "result.json")
    return job, Result.read(job.directory / "result.json")


def _check_together(shards: Sequence[Shard]) -> None:
    first = shards[0]
    for shard in shards[1:]:
        if shard.result.config_sha256 != first.result.config_sha256:
            raise ConfigError(f"{shard.directory} is a part of another job than {first.directory}")
        if shard.part[1] != first.part[1]:
            raise ConfigError(
                f"{shard.directory} is shard {shard.result.shard}, {first.directory} is {first.result.shard}: "
                "they were cut differently"
            )
    n = first.part[1]
    parts = [shard.part[0] for shard in shards]
    twice = sorted({i for i in parts if parts.count(i) > 1})
    if twice:
        raise ConfigError(f"shard {twice[0]}/{n} is given twice")
    missing = [f"{i}/{n}" for i in range(1, n + 1) if i not in parts]
    if missing:
        raise ConfigError(f"shards are missing: {', '.join(missing)}")
    seen: dict[str, set[int]] = defaultdict(set)
    for shard in shards:
        records = shard.records()
        if not records:
            raise DataError(f"{shard.directory} has no records of examples: its certifier does not work by example")
        new: dict[str, set[int]] = defaultdict(set)
        for name, content in records.items():
            new[name.partition(".")[0]] |= _examples(content, shard.directory / "records" / name)
        for name, indices in new.items():
            if seen[name] & indices:
                raise ConfigError(
                    f"{shard.directory} overlaps with another shard: both judged example {min(seen[name] & indices)}"
                )
            seen[name] |= indices


def _examples(content: bytes, path: Path) -> set[int]:
    try:
        return {int(i) for line in content.splitlines() for i in json.loads(line)["index"]}
    except (ValueError, KeyError, TypeError):
        raise DataError(f"{path} is damaged: delete the run directory and run that shard again") from None


def _whole_job(shard: Shard, composer: Composer) -> Job:
    """The job that the shard is a part of, composed from what was typed."""
    typed = OmegaConf.to_container(OmegaConf.load(shard.directory / "overrides.yaml"))
    kept = [o for o in typed if composer.parse([o])[0].key_or_group not in ("certifier.shard", "rerun")]
    target = shard.directory.with_name(shard.result.config_sha256[:12])
    job = only_job(composer, [*kept, f"hydra.run.dir='{target}'"])
    if job.sha256 != shard.result.config_sha256:
        raise ConfigError(
            f"what '{' '.join(kept)}' composes to has changed since {shard.directory} was run: run the shards again"
        )
    return job


def _check_models(shards: Sequence[Shard]) -> None:
    """All shards must have judged one model: training twice on a GPU need not give the same one."""
    first, *others = (Checkpoints(shard.directory / "checkpoints").load("last")["model"] for shard in shards)
    for shard, other in zip(shards[1:], others, strict=True):
        if other.keys() != first.keys() or not all(_same(first[name], other[name]) for name in first):
            raise ConfigError(
                f"{shard.directory} and {shards[0].directory} judged different models: run the first shard alone, "
                "then the others, which take its model"
            )


def _same(a: object, b: object) -> bool:
    return torch.equal(a, b) if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) else a == b


def _gather(shards: Sequence[Shard], target: Path) -> None:
    for folder in ("records", "checkpoints"):
        (target / folder).mkdir(parents=True, exist_ok=True)
    for shard in shards:
        for name, content in shard.records().items():
            stem, _, rest = name.partition(".")
            write_atomically(target / "records" / f"{stem}.shard{shard.part[0]}-{rest}", content)
    for name in ("metrics.jsonl", *(f"checkpoints/{path.name}" for path in shards[0].directory.glob("checkpoints/*"))):
        if (shards[0].directory / name).is_file():
            write_atomically(target / name, (shards[0].directory / name).read_bytes())


def _add_up(result: Result, shards: Sequence[Shard]) -> Result:
    """Times and passes are those of the shards, not of putting them together."""
    timings = {name: round(sum(shard.result.timings.get(name, 0.0) for shard in shards), 3) for name in result.timings}
    if "train" in timings:
        timings["train"] = shards[0].result.timings["train"]
    counts = {
        name: count if name == "parameters" else max(count, sum(shard.result.counts.get(name, 0) for shard in shards))
        for name, count in result.counts.items()
    }
    return result.model_copy(update={"timings": timings, "counts": counts})
