"""`robustrun table`: the papers' tables beside ours, and the launch of what is missing."""

import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence

from robustrun.errors import ConfigError, DataError, report_error
from robustrun.report import render, tables
from robustrun.report.tables import Table
from robustrun.report.view import TableView
from robustrun.reproduction import Reproduction, open_index, outputs_dir
from robustrun.verbs.parsing import parser


def run(argv: list[str]) -> int:
    """Show tables; with --run, launch their missing rows first. The exit code."""
    arguments = parser("table", "The papers' tables: what is done, what is missing, the paper's numbers beside ours.")
    arguments.add_argument("name", nargs="?", help="PAPER or PAPER.TABLE; all tables if left out")
    arguments.add_argument("--format", choices=[*render.FORMATS, "json"], default="rich")
    arguments.add_argument(
        "--run", nargs="*", metavar="OVERRIDE", help="launch the missing rows, with these overrides added to each"
    )
    arguments.add_argument("--with", nargs="*", metavar="OVERRIDE", dest="added", default=[], help="show the rows so")
    arguments.add_argument("--detach", action="store_true", help="with --run on a cluster: submit and return at once")
    arguments.add_argument("-cd", "--config-dir")
    chosen = arguments.parse_args(argv)
    found = tables.load(chosen.name)
    if chosen.run is not None and not chosen.name:
        raise ConfigError("table --run: which? robustrun table PAPER.TABLE --run")
    if chosen.detach and chosen.run is None:
        raise ConfigError("table --detach goes with --run")
    overrides = list(chosen.run or chosen.added)
    complaints: dict[str, str] = {}
    code = _launch_missing(found, overrides, chosen, complaints) if chosen.run is not None else 0
    with open_index(outputs_dir(overrides)) as index:
        reproduction = Reproduction(index, overrides, chosen.config_dir)
        views = reproduction.views(found)
        _show(views, chosen.format, one=bool(chosen.name))
        damaged = list(index.damaged.values())
    complaints |= {f"{view.name}, row '{row.id}'": row.error for view in views for row in view.rows if row.error}
    for sentence in [*_sentences(complaints), *damaged]:
        print(f"robustrun: {sentence}", file=sys.stderr)
    return code or (ConfigError.exit_code if complaints else DataError.exit_code if damaged else 0)


def _sentences(complaints: Mapping[str, str]) -> list[str]:
    """One sentence for each thing that is wrong, however many rows it is wrong in."""
    where: dict[str, list[str]] = {}
    for place, error in complaints.items():
        where.setdefault(error, []).append(place)
    return [
        f"{places[0]}{f' and {len(places) - 1} more' if len(places) > 1 else ''}: {error}"
        for error, places in where.items()
    ]


def _show(views: Sequence[TableView], how: str, one: bool) -> None:
    if how == "json":
        print(render.jsons(views))
    elif how == "rich" and not one:
        print(render.overview(views))
    else:
        print("\n\n".join(render.FORMATS[how](view) for view in views))


def _launch_missing(
    found: Mapping[str, Table], overrides: list[str], chosen: Namespace, complaints: dict[str, str]
) -> int:
    """Launch every missing row of the tables as one multirun; the exit code. Rows that make no sense are left out."""
    from robustrun.check import Job
    from robustrun.launch import detached, launch

    with open_index(outputs_dir(overrides)) as index:
        reproduction = Reproduction(index, overrides, chosen.config_dir)
        if chosen.detach:
            reproduction.overrides = tuple(detached(reproduction.composer, reproduction.overrides))
        missing: dict[object, Job] = {}
        labels: dict[object, str] = {}
        for name, table in found.items():
            for row, job in reproduction.jobs(table):
                if not isinstance(job, Job):
                    complaints[f"{name}, row '{row}'"] = str(job)
                elif job.config.rerun or not reproduction.done(job):
                    missing[job.directory] = job
                    labels.setdefault(job.directory, f"{name}, row '{row}'")
    if not missing:
        if not complaints:
            print("robustrun: nothing is missing", file=sys.stderr)
        return 0
    print(f"robustrun: launching {len(missing)} missing of {', '.join(found)}", file=sys.stderr)
    outcomes = launch(reproduction.composer, list(missing.values()), multirun=True)
    if any(outcome.submitted for outcome in outcomes):
        print("robustrun: submitted; 'robustrun jobs' shows how they stand", file=sys.stderr)
    failed = [outcome for outcome in outcomes if outcome.error is not None]
    codes = [report_error(o.error, f"robustrun: {labels[o.job.directory]}: ") for o in failed]
    return codes[0] if len(set(codes)) == 1 else min(codes, default=0)
