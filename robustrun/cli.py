"""The entrypoint. The first argument alone decides: a known verb, or overrides for Hydra; none prints help.

Jobs raise; only this module catches, prints one sentence and exits with the code of DESIGN: 0 done, 1 the job
failed, 2 the request was wrong, 3 data not obtainable, 75 stopped with a checkpoint saved, 130 interrupted.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version

from robustrun.errors import ConfigError, report_error
from robustrun.registry import nearest

USAGE = """\
robustrun: experiments in certified and robust machine learning, job = task x model x trainer x certifier

Run
  robustrun +exp=quick/fast_at                        a named experiment (under two minutes on a laptop)
  robustrun +exp=fast_at_cifar trainer.epochs=30      with overrides
  robustrun -m +exp=fast_at_cifar seed=0,1,2          a sweep; on a cluster: hydra/launcher=slurm [--detach]
  robustrun task=mnist model=mnist_cnn trainer=fgsm certifier=pgd    the four axes by hand
  robustrun +exp=fast_at_cifar --cfg job              show the composed config and stop

Look
{verbs}

The same command typed again resumes a job that was cut short, and shows the result of one that is complete.
Exit codes: 0 done, 1 failed, 2 wrong request, 3 no data, 75 stopped by a signal (checkpoint saved), 130 interrupted.
'robustrun --hydra-help' explains Hydra's flags; ROBUSTRUN_TRACEBACK=1 shows where an error came from.
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line and exit."""
    sys.exit(run(sys.argv[1:] if argv is None else list(argv)))


def run(argv: Sequence[str]) -> int:
    """Run the command line; the exit code."""
    try:
        return _dispatch(list(argv))
    except KeyboardInterrupt:
        print("robustrun: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader has gone; say no more
        return 0
    except Exception as error:
        return report_error(error)


def _dispatch(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        from robustrun.verbs import VERBS

        width = max(len(verb.usage) for verb in VERBS.values())
        verbs = "\n".join(f"  robustrun {verb.usage:<{width}}  {verb.help}" for verb in VERBS.values())
        print(USAGE.format(verbs=verbs))
        return 0
    if argv[0] == "--version":
        print(f"robustrun {version('robustrun')}")
        return 0
    if argv[0][0].isalpha() and "=" not in argv[0]:
        from robustrun.verbs import VERBS

        if argv[0] not in VERBS:
            raise ConfigError(
                f"'{argv[0]}' is neither a verb nor an override{nearest(argv[0], VERBS)} (verbs: {', '.join(VERBS)})"
            )
        return VERBS[argv[0]].run(argv[1:])
    return _hydra(argv)


# ------------------------------------------------------------------------------------------- jobs


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        raise ConfigError(f"{message}; 'robustrun --help' shows what there is")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="robustrun", add_help=False, allow_abbrev=False)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("-h", "--help", action="store_true")
    parser.add_argument("-m", "--multirun", action="store_true")
    parser.add_argument("--detach", action="store_true")
    parser.add_argument("-cd", "--config-dir")
    parser.add_argument("-c", "--cfg", nargs="?", const="job", choices=("job", "hydra", "all"))
    parser.add_argument("-p", "--package")
    parser.add_argument("--resolve", action="store_true")
    parser.add_argument("-i", "--info", nargs="?", const="all")
    parser.add_argument("-sc", "--shell-completion", action="store_true")
    parser.add_argument("--hydra-help", action="store_true")
    return parser


def _hydra(argv: list[str]) -> int:
    parser = _parser()
    arguments = parser.parse_intermixed_args(argv)
    if arguments.help:
        return _dispatch([])
    from robustrun.compose import Composer

    composer = Composer.create(arguments.config_dir)
    if arguments.cfg or arguments.info or arguments.shell_completion or arguments.hydra_help:
        return _hydra_itself(composer, arguments, parser)
    return execute(composer, arguments.overrides, arguments.multirun, arguments.detach)


def _hydra_itself(composer, arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """What Hydra answers better than anyone: showing configs, its own help, tab completion."""
    import robustrun.check  # noqa: F401 - names the run directories

    hydra, overrides = composer.hydra, arguments.overrides
    if arguments.shell_completion:
        hydra.shell_completion(config_name="config", overrides=overrides)
    elif arguments.hydra_help:
        hydra.hydra_help(config_name="config", args_parser=parser, args=arguments)
    else:
        composer.compose(overrides)  # first, for an error in one sentence
        if arguments.cfg:
            hydra.show_cfg("config", overrides, arguments.cfg, arguments.package, arguments.resolve)
        else:
            hydra.show_info(arguments.info, config_name="config", overrides=overrides)
    return 0


def execute(composer, overrides: Sequence[str], multirun: bool, detach: bool = False) -> int:
    """Plan, run and show what the overrides ask for; the exit code."""
    if detach:
        from robustrun.launch import detached

        overrides = detached(composer, overrides)
    parsed = composer.parse(overrides)
    chosen = {override.key_or_group: override.value() for override in parsed}
    if chosen.get("hydra/sweeper", "basic") != "basic":
        return _sweeper(composer, overrides)
    # A launcher only ever means "launch it there", so asking for one is asking for a multirun.
    multirun = multirun or "hydra/launcher" in chosen
    points = composer.expand(overrides) if multirun else [list(overrides)]
    composer.compose(points[0])  # an unknown name or key is said before torch is imported

    from robustrun.launch import launch
    from robustrun.plan import plan

    jobs = plan(composer, points)
    finished = {job.directory for job in jobs if job.finished and not job.config.rerun}
    outcomes = launch(composer, jobs, multirun)
    return _show(outcomes, finished)


def _sweeper(composer, overrides: Sequence[str]) -> int:
    """An optimising sweeper proposes the jobs itself, so Hydra's own multirun is the right one."""
    from robustrun.launch import task

    composer.hydra.multirun("config", task, list(overrides), with_log_configuration=False)
    return 0


def _show(outcomes: Sequence, finished: set) -> int:
    from robustrun.report import overlay, summary
    from robustrun.report.results import Result
    from robustrun.report.terminal import console

    if int(os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or 0) > 0:
        return max((getattr(outcome.error, "exit_code", 1) for outcome in outcomes if outcome.error), default=0)
    screen = console()
    submitted = [outcome for outcome in outcomes if outcome.submitted]
    if submitted:
        numbers = ", ".join(dict.fromkeys(outcome.submitted.partition("_")[0] for outcome in submitted))
        screen.print(f"submitted {len(submitted)} jobs (SLURM {numbers}): 'robustrun jobs' shows how they stand")
        outcomes = [outcome for outcome in outcomes if not outcome.submitted]
    results = [
        Result.read(outcome.job.directory / "result.json") if outcome.error is None and outcome.job.finished else None
        for outcome in outcomes
    ]
    for group in _together(list(zip(outcomes, results, strict=True))):
        jobs, found = [outcome.job for outcome, _ in group], [result for _, result in group]
        if len(group) == 1:
            if found[0] is not None:
                screen.print(summary.single(found[0], jobs[0].title))
            continue
        labels = _labels(jobs)
        screen.print(
            summary.comparison(list(zip(labels, found, strict=True)), ", ".join(dict.fromkeys(j.exp for j in jobs)))
        )
        done = zip(labels, jobs, found, strict=True)
        drawn = overlay.write({label: job.directory for label, job, result in done if result is not None})
        if drawn is not None:
            screen.print(f"figures of all rows: {drawn}", style="dim", highlight=False, soft_wrap=True)
    for outcome in outcomes:
        note = " (complete already; rerun=true repeats it)" if outcome.job.directory in finished else ""
        if outcome.error is None:
            screen.print(f"{outcome.job.directory}{note}", style="dim", highlight=False, soft_wrap=True)
    failed: dict[str, list] = {}  # a sentence that many jobs end in is said once
    for outcome in outcomes:
        if outcome.error is not None:
            failed.setdefault(f"{type(outcome.error).__name__}: {outcome.error}", []).append(outcome)
    codes = []
    for those in failed.values():
        title = those[0].job.title if len(those) == 1 else f"{those[0].job.title} and {len(those) - 1} more"
        codes.append(report_error(those[0].error, f"robustrun: {title}: " if len(outcomes) > 1 else "robustrun: "))
    return codes[0] if codes and len(set(codes)) == 1 else min(codes, default=0)


def _together(pairs: list[tuple]) -> list[list[tuple]]:
    """(outcome, result) that one table compares: all of them, or those of an experiment where one has several jobs."""
    groups: dict[str, list[tuple]] = {}
    for outcome, result in pairs:
        groups.setdefault(outcome.job.exp, []).append((outcome, result))
    return list(groups.values()) if any(len(group) > 1 for group in groups.values()) else [pairs] if pairs else []


def _labels(jobs: Sequence) -> list[str]:
    """What tells the jobs apart: the row, and the overrides that not all of them share."""
    common = set.intersection(*(set(job.overrides) for job in jobs))
    labels = []
    for job in jobs:
        own = [o for o in job.overrides if o not in common and not o.startswith("row=")]
        labels.append(
            job.row if job.row and len({j.row for j in jobs}) == len(jobs) else " ".join(filter(None, [job.row, *own]))
        )
    return labels


if __name__ == "__main__":
    main()
