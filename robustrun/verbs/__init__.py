"""The verbs of the command line beside running jobs: one file each, imported when it is called."""

import importlib
from dataclasses import dataclass


@dataclass(frozen=True)
class Verb:
    """A verb of the command line: how it is typed, and what it does."""

    usage: str
    help: str

    def run(self, argv: list[str]) -> int:
        """Run the verb; the exit code."""
        module = importlib.import_module(f"robustrun.verbs.{self.usage.partition(' ')[0]}")
        return module.run(argv)


VERBS = {
    verb.usage.partition(" ")[0]: verb
    for verb in (
        Verb("table [PAPER[.TABLE]] [--run ...]", "the papers' tables: what is done, missing; --run launches the rest"),
        Verb("report [RUN...] -o FILE", "one page with every table, curve and run"),
        Verb("list [GROUP]", "what can be composed, one line each"),
        Verb("data list|get|verify [NAME]", "data sets: size, source, licence, present?"),
        Verb("jobs", "jobs on the cluster and how they stand"),
        Verb("serve RUN", "a finished classifier over HTTP"),
        Verb("merge RUN...", "join the shards of one certification"),
        Verb("doctor", "what works on this machine"),
    )
}
