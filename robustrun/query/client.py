"""Asking a service about images: in batches, side by side, again after a failure, never beyond the budget."""

import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from pydantic import BaseModel, ConfigDict

from robustrun.errors import ConfigError, JobFailed
from robustrun.numbers import NonNegativeInt, Positive, PositiveInt
from robustrun.query.answers import Again, Answer, Outcome, Rejected, Reply
from robustrun.query.providers import Provider

LONGEST_ASKED = 3600.0  # seconds that a service may ask to wait before the job is ended instead
MOST_BYTES = 16 * 2**20  # of an answer


class Limits(BaseModel):
    """How hard a service may be asked."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    budget: PositiveInt | None = None  # images that may be sent in all, repetitions included
    price: Positive | None = None  # of 1000 images, for the estimate
    rate: Positive | None = None  # requests a second
    concurrency: PositiveInt = 4  # requests at a time
    retries: NonNegativeInt = 6  # repetitions of one image
    timeout: Positive = 30.0  # seconds a request
    backoff: Positive = 0.5  # seconds before the first repetition, doubled each time, with jitter
    longest: Positive = 60.0  # seconds before any repetition, unless the service asks for more


class Client:
    """`ask` sends images and returns one outcome each, in order, whatever fails in between.

    Args:
        provider: the wire format.
        limits: see `Limits`.
        spent: images sent before, by an earlier part of the job.
    """

    def __init__(self, provider: Provider, limits: Limits = Limits(), *, spent: int = 0):  # noqa: B008
        self.provider, self.limits, self.sent = provider, limits, spent
        self._lock = threading.Lock()
        self._next_start = 0.0
        self._local = threading.local()
        self._stop = threading.Event()

    def check(self, planned: int) -> str:
        """A sentence on what is planned and what it costs.

        Raises:
            ConfigError: it is more than the budget.
        """
        cost = "" if self.limits.price is None else f", about {planned * self.limits.price / 1000:.2f} in cost"
        sentence = f"up to {planned} queries to {self.provider.name}{cost}"
        if self.limits.budget is not None and planned + self.sent > self.limits.budget:
            used = f" after {self.sent} sent already" if self.sent else ""
            raise ConfigError(
                f"{sentence}{used} are more than model.query.limits.budget={self.limits.budget}: nothing was sent"
            )
        return sentence

    def ask(self, images: Sequence[bytes], done: Callable[[int, Outcome], None] = lambda *_: None) -> list[Outcome]:
        """One outcome an image: an answer, or the last failure. `done(position, outcome)` is called as they come.

        Raises:
            Unauthorised: the service refuses the credentials; nothing further is sent.
            JobFailed: the budget is spent, or the service asks to wait for more than an hour.
        """
        size = self.provider.batch
        groups = [range(i, min(i + size, len(images))) for i in range(0, len(images), size)]
        outcomes: list[Outcome | None] = [None] * len(images)

        failed: list[BaseException] = []

        def work(group: range) -> None:
            if self._stop.is_set():
                return
            try:
                for position, outcome in self._settle({i: images[i] for i in group}):
                    outcomes[position] = outcome
                    done(position, outcome)
            except BaseException as error:
                failed.append(error)
                self._stop.set()  # before another worker begins

        self._stop.clear()
        with ThreadPoolExecutor(min(self.limits.concurrency, len(groups) or 1)) as pool:
            try:
                list(pool.map(work, groups))
            except BaseException:  # an interrupt of this thread
                self._stop.set()
                raise
        if failed:
            raise failed[0]
        return outcomes

    def _settle(self, pending: dict[int, bytes]):
        """(position, final outcome) of each image of one request, the failed ones sent again as they are."""
        for attempt in range(self.limits.retries + 1):
            again: dict[int, Again] = {}
            outcomes = self._request(list(pending.values()))
            for position, outcome in zip(list(pending), outcomes, strict=True):
                if isinstance(outcome, Again) and attempt < self.limits.retries:
                    again[position] = outcome
                else:
                    yield position, outcome
            if not again:
                return
            pending = {position: pending[position] for position in again}
            self._stop.wait(self._pause(attempt, [outcome.after for outcome in again.values()]))
            if self._stop.is_set():
                raise JobFailed("another query ended the run")

    def _pause(self, attempt: int, asked: Sequence[float | None]) -> float:
        longest = max((after for after in asked if after is not None), default=0.0)
        if longest > LONGEST_ASKED:
            raise JobFailed(
                f"{self.provider.name} asks to wait {longest:.0f} seconds: the same command goes on from the log then"
            )
        # Full jitter: clients that were throttled together do not come back together.
        own = min(self.limits.longest, self.limits.backoff * 2**attempt) * random.uniform(0.5, 1.0)
        return max(own, longest)

    def _request(self, images: Sequence[bytes]) -> list[Outcome]:
        import requests

        with self._lock:
            if self.limits.budget is not None and self.sent + len(images) > self.limits.budget:
                raise JobFailed(
                    f"model.query.limits.budget={self.limits.budget} is spent: a larger one goes on from here"
                )
            self.sent += len(images)
            wait = max(0.0, self._next_start - time.monotonic())
            if self.limits.rate is not None:
                self._next_start = time.monotonic() + wait + 1 / self.limits.rate
        if wait:
            time.sleep(wait)
        request = self.provider.request(images)
        try:
            response = self._session().post(
                request.url,
                data=request.body,
                headers=request.headers,
                timeout=self.limits.timeout,
                allow_redirects=False,
                stream=True,
            )
            with response:
                body = self._body(response)
        except requests.RequestException as error:  # its text may hold the address with a key in it: not passed on
            return [Again(f"no answer from {self.provider.name} ({type(error).__name__})")] * len(images)
        if body is None:
            return [Again(f"{self.provider.name} did not come to an end of its answer")] * len(images)
        headers = {name.lower(): value for name, value in response.headers.items()}
        outcomes = self.provider.read(Reply(response.status_code, headers, body), len(images))
        if len(outcomes) != len(images):
            return [Again(f"{self.provider.name} answered {len(outcomes)} of {len(images)} images")] * len(images)
        return outcomes

    def _body(self, response) -> bytes | None:
        """The answer; None if it grows too long, or trickles: the timeout of requests holds for single reads alone."""
        body, end = bytearray(), time.monotonic() + 10 * self.limits.timeout
        for chunk in response.iter_content(64):
            body += chunk
            if len(body) > MOST_BYTES or time.monotonic() > end:
                return None
        return bytes(body)

    def _session(self):
        if not hasattr(self._local, "session"):
            import requests

            self._local.session = requests.Session()
            self._local.session.trust_env = False  # no proxy and no .netrc by surprise
        return self._local.session


__all__ = ["Again", "Answer", "Client", "Limits", "Rejected"]
