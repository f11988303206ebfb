"""`robustrun merge`: join the shards of one certification."""

from pathlib import Path

from robustrun.verbs.parsing import parser


def run(argv: list[str]) -> int:
    """Merge shards and print the whole job's figures."""
    arguments = parser("merge", "Join the shards of one certification into the whole job's run directory.")
    arguments.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run directories of all shards")
    arguments.add_argument("-cd", "--config-dir", help="the configuration directory that the shards were run with")
    chosen = arguments.parse_args(argv)
    from robustrun.compose import Composer
    from robustrun.merge import merge
    from robustrun.report import summary
    from robustrun.report.terminal import console

    job, result = merge(chosen.runs, Composer.create(chosen.config_dir))
    console().print(summary.single(result, job.title))
    console().print(str(job.directory), style="dim", highlight=False, soft_wrap=True)
    return 0
