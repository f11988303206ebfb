"""`robustrun report`: one page with every table, curve and run."""

from pathlib import Path

from robustrun.errors import ConfigError
from robustrun.verbs.parsing import parser

_MOST = 200  # runs on one page, if none are named


def run(argv: list[str]) -> int:
    """Write the page; with --figures every figure too. The exit code."""
    arguments = parser("report", "One self-contained page: tables beside the paper's numbers, curves, runs.")
    arguments.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="run directories; all if left out")
    arguments.add_argument("-o", "--output", type=Path, default=Path("report.html"))
    arguments.add_argument("--table", metavar="PAPER[.TABLE]", help="only these tables")
    arguments.add_argument("--with", nargs="*", metavar="OVERRIDE", dest="added", default=[], help="show rows so")
    arguments.add_argument("--figures", type=Path, metavar="DIR", help="write every figure there as PNG and PDF")
    arguments.add_argument("-cd", "--config-dir")
    chosen = arguments.parse_args(argv)
    from robustrun.report import curves, html, tables
    from robustrun.reproduction import Reproduction, open_index, outputs_dir
    from robustrun.runtime.files import write_atomically

    found = tables.load(chosen.table)
    with open_index(outputs_dir(chosen.added)) as index:
        reproduction = Reproduction(index, chosen.added, chosen.config_dir)
        views = reproduction.views(found)
        everything = index.all()
    runs = _named(chosen.runs, everything) if chosen.runs else _newest(views, everything)
    left_out = 0 if chosen.runs else len(everything) - len(runs)
    try:
        write_atomically(chosen.output, html.page(views, runs, left_out).encode())
    except OSError as error:
        raise ConfigError(f"cannot write {chosen.output}: {error.strerror or error}") from None
    print(f"{chosen.output}: {len(views)} tables, {len(runs)} runs")
    if chosen.figures:
        figures = {view.name: figure for view in views if (figure := curves.of_table(view))}
        for one in runs:
            name = f"{one.data['exp']}-{one.data['config_sha256'][:12]}"
            drawn = curves.training(one.path.parent) | curves.certified(one.path.parent)
            figures |= {f"{name}-{key}": figure for key, figure in drawn.items()}
        curves.write(figures, chosen.figures)
        print(f"{chosen.figures}: {len(figures)} figures as PNG and PDF")
    return 0


def _named(directories: list[Path], everything: list) -> list:
    from robustrun.report.index import Found
    from robustrun.report.results import Result

    known = {one.path: one for one in everything}
    found = []
    for directory in directories:
        path = directory.absolute() / "result.json"
        if path not in known:
            result = Result.read(path)  # raises what is wrong with it
            known[path] = Found(path, result.model_dump_json(by_alias=True))
        found.append(known[path])
    return found


def _newest(views: list, everything: list) -> list:
    """The runs behind the tables, and the newest of the others."""
    shown = {run.path: run for view in views for row in view.rows for run in row.runs}
    others = sorted((run for run in everything if run.path not in shown), key=lambda run: run.data["finished_at"])
    return [*shown.values(), *others[::-1][: max(0, _MOST - len(shown))]]
