"""How a verb reads its arguments: argparse, with mistakes said in one sentence."""

import argparse

from robustrun.errors import ConfigError


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        raise ConfigError(f"{self.prog}: {message}; '{self.prog} --help' shows how")


def parser(verb: str, description: str) -> argparse.ArgumentParser:
    """A parser for `robustrun VERB ...`."""
    return _Parser(prog=f"robustrun {verb}", description=description, allow_abbrev=False)
