"""What can become of one queried image."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from robustrun.errors import JobFailed

NO_LABEL = "None"  # an empty answer is a class of its own
Top = Literal["highest", "first"]


@dataclass(frozen=True)
class Answer:
    """Ranked labels (name, score in [0, 1]), the service's own words, and the version of its model if it says."""

    labels: tuple[tuple[str, float], ...]
    raw: Any = field(default=None, repr=False)
    version: str | None = None


@dataclass(frozen=True)
class Again:
    """The service could not answer now: the same image is to be sent again, after so many seconds if it said."""

    reason: str
    after: float | None = None


@dataclass(frozen=True)
class Rejected:
    """The service will never answer this image."""

    reason: str


Outcome = Answer | Again | Rejected


@dataclass(frozen=True)
class Reply:
    """An HTTP response; header names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


class Unauthorised(JobFailed):
    """The service refuses the credentials or the whole request: asking on would only cost."""


def top_label(labels: Sequence[tuple[str, float]], top: Top = "highest") -> str:
    """The label with the highest score, the first listed among equals; "None" if there is none."""
    if not labels:
        return NO_LABEL
    return labels[0][0] if top == "first" else max(labels, key=lambda label: label[1])[0]
