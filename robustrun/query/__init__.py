"""Classifiers that are asked over a network: wire formats of vision APIs, retries, budget, a log that replays."""

from robustrun.query.answers import Again, Answer, Rejected, top_label
from robustrun.query.client import Client, Limits
from robustrun.query.log import QueryLog, Vocabulary
from robustrun.query.providers import PROVIDERS, make_provider
from robustrun.query.replay import LoggedVotes
from robustrun.query.server import ClassifierServer

__all__ = [
    "PROVIDERS",
    "Again",
    "Answer",
    "ClassifierServer",
    "Client",
    "Limits",
    "LoggedVotes",
    "QueryLog",
    "Rejected",
    "Vocabulary",
    "make_provider",
    "top_label",
]
