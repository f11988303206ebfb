"""The verbs of the command line beside running jobs. What a verb needs is imported when it runs."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass

from robustrun.errors import ConfigError


@dataclass(frozen=True)
class Verb:
    usage: str
    help: str
    run: Callable[[list[str]], int]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        raise ConfigError(f"{self.prog}: {message}; '{self.prog} --help' shows how")


def parser(verb: str, description: str) -> argparse.ArgumentParser:
    return _Parser(prog=f"robustrun {verb}", description=description, allow_abbrev=False)


def list_(argv: list[str]) -> int:
    """What can be composed, one line each."""
    from robustrun.catalogue import GROUPS, options

    arguments = parser("list", "What can be composed, one line each.")
    arguments.add_argument("group", nargs="?", help=f"one of {', '.join(GROUPS)}; all if left out")
    group = arguments.parse_args(argv).group
    for name in [group] if group else GROUPS:
        found = options(name)
        if not group:
            print(f"\n{name}: {GROUPS[name]}")
        width = max((len(option) for option in found), default=0)
        for option, description in found.items():
            print(f"  {option:<{width}}  {description}".rstrip())
    return 0


def data(argv: list[str]) -> int:
    """Data sets: what, how large, where from, licence, present?"""
    from robustrun.data import catalog

    arguments = parser("data", "Data sets: list them, obtain them, check them.")
    arguments.add_argument("action", choices=("list", "get", "verify"))
    arguments.add_argument("names", nargs="*", help="names of data sets; all that are present if left out of verify")
    chosen = arguments.parse_args(argv)
    return catalog.command(chosen.action, chosen.names)


def doctor(argv: list[str]) -> int:
    """Device, versions, data, disk, SLURM, wandb: what works here."""
    parser("doctor", "What works here: device, versions, data, disk, SLURM, wandb.").parse_args(argv)
    from robustrun.doctor import examine

    return examine()


VERBS = {
    "list": Verb("list [GROUP]", "what can be composed, one line each", list_),
    "data": Verb("data list|get|verify [NAME]", "data sets: size, source, licence, present?", data),
    "doctor": Verb("doctor", "what works on this machine", doctor),
}
