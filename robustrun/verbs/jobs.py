"""`robustrun jobs`: how the jobs stand that were given to SLURM."""

from robustrun.verbs.parsing import parser


def run(argv: list[str]) -> int:
    """Print one line a job."""
    arguments = parser("jobs", "How the jobs stand that were given to SLURM from here.")
    arguments.add_argument("outputs", nargs="?", help="the directory of the runs (default: $ROBUSTRUN_OUTPUTS)")
    chosen = arguments.parse_args(argv)
    from rich.table import Table
    from rich.text import Text

    from robustrun.cluster import standings
    from robustrun.report.terminal import console
    from robustrun.reproduction import outputs_dir

    outputs = outputs_dir([f"paths.outputs={chosen.outputs}"] if chosen.outputs else [])
    found = standings(outputs)
    if not found:
        print(f"no job in {outputs} was given to SLURM")
        return 0
    colours = {"done": "green", "running": "cyan", "failed": "red", "damaged": "red"}
    table = Table(title=f"jobs in {outputs}", title_justify="left")
    for heading in ("job", "state", "run", "detail"):
        table.add_column(heading, overflow="fold")
    for job in found:
        state = Text(job.state, style=colours.get(job.state, ""))
        table.add_row(job.number, state, str(job.directory.relative_to(outputs)), Text(job.detail))
    console().print(table)
    return 0
