"""`robustrun data`: data sets, listed, obtained, checked against their checksums."""

from robustrun.errors import ConfigError
from robustrun.verbs.parsing import parser


def run(argv: list[str]) -> int:
    """Data sets: what, how large, where from, licence, present?"""
    arguments = parser("data", "Data sets: list them, obtain them, check them against their checksums.")
    arguments.add_argument("action", choices=("list", "get", "verify"))
    arguments.add_argument("names", nargs="*", help="data sets; verify without a name checks all that are cached")
    chosen = arguments.parse_args(argv)
    if chosen.action == "list":
        return _list_data(chosen.names)
    from robustrun.data import catalog, data_root, obtain, verify

    if chosen.action == "get":
        if not chosen.names:
            raise ConfigError(f"data get: which? One or more of {', '.join(catalog.DATASETS)}")
        for name in chosen.names:
            arrays = obtain(name)
            print(f"{name}: {len(arrays.train)} training and {len(arrays.test)} test examples in {data_root()}")
        return 0
    names = chosen.names or [n for n, e in catalog.DATASETS.items() if e.cache(data_root()).exists()]
    for name in names:
        print(f"{name}: sha256 {verify(name)}")
    return 0


def _list_data(names: list[str]) -> int:
    from rich.table import Table

    from robustrun.data import catalog, data_root
    from robustrun.report.terminal import console

    table = Table(title=f"data sets in {data_root()} ($ROBUSTRUN_DATA)", title_justify="left")
    for column in ("name", "what", "train", "test", "MB", "licence", "here"):
        table.add_column(column, justify="right" if column in ("train", "test", "MB") else "left")
    for entry in [catalog.find(name) for name in names] or catalog.DATASETS.values():
        sizes = [f"{entry.sizes[split]:,}" if split in entry.sizes else "-" for split in ("train", "test")]
        here = "yes" if entry.present() else "-"
        table.add_row(entry.name, entry.description, *sizes, str(entry.megabytes), entry.licence, here)
    console().print(table)
    return 0
