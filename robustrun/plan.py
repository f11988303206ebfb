"""From lists of overrides to the jobs that must run: a comparison's rows each, needs first."""

from collections.abc import Iterable, Sequence

from robustrun.check import Job, check, rows_of
from robustrun.compose import Composer
from robustrun.errors import ConfigError


def plan(composer: Composer, points: Iterable[Sequence[str]]) -> list[Job]:
    """Every job that the lists of overrides ask for (the points of a sweep, or one), checked.

    Raises:
        ConfigError: a bad request; two rows of a comparison that compose to the same job.
    """
    jobs: dict[str, Job] = {}
    for point in points:
        rows: dict[str, Job] = {}
        for overrides in rows_of(composer, point):
            job = check(composer.compose(overrides), composer)
            twin = rows.get(job.sha256)
            if twin is not None:
                raise ConfigError(
                    f"rows '{twin.row}' and '{job.row}' of {job.exp} compose to the same job: "
                    "an override typed here replaces what tells them apart, or one of them does not say what it means"
                )
            rows[job.sha256] = job
        jobs |= {job.directory.as_posix(): job for job in rows.values()}
    return list(jobs.values())


def waves(jobs: Iterable[Job]) -> list[list[Job]]:
    """The unfinished jobs and their unfinished needs, in waves: each wave needs only earlier ones.

    Where nothing is trained yet, the first shard of a certification goes before the others: they judge its model.
    """
    depth: dict[str, int] = {}
    found: dict[str, Job] = {}
    first_shards: dict[str, Job] = {}

    def visit(job: Job) -> int:
        key = job.directory.as_posix()
        if key not in depth:
            needed = [need.job for need in job.needs.values() if need.job is not None]
            first = first_shards.setdefault(job.sha256, job) if job.shard else job
            if first is not job and not any((kin / "result.json").is_file() for kin in job.kin):
                needed.append(first)
            depth[key] = max((visit(need) + 1 for need in needed if not need.finished), default=0)
            found[key] = job
        return depth[key]

    for job in jobs:
        if not job.finished or job.config.rerun:
            visit(job)
    ordered = [
        [job for key, job in found.items() if depth[key] == level]
        for level in range(max(depth.values(), default=-1) + 1)
    ]
    return [wave for wave in ordered if wave]
