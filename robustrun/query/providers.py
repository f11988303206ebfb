"""The wire formats: how images become a request, and what a reply says about each of them.

Credentials come from the environment alone, and are in no message, log or repr.
"""

import base64
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Literal, Protocol
from urllib.parse import quote, urlsplit

from robustrun.errors import ConfigError
from robustrun.query.answers import Again, Answer, Outcome, Rejected, Reply, Unauthorised
from robustrun.query.images import to_base64
from robustrun.query.signature import sign

ProviderName = Literal["plain", "azure", "google", "aws", "clarifai"]


@dataclass(frozen=True)
class Request:
    """What is sent: none of it is shown, since addresses and headers may hold credentials."""

    url: str = field(repr=False)
    headers: dict[str, str] = field(repr=False)
    body: bytes = field(repr=False)


class Provider(Protocol):
    """A service: `batch` images a request at most, sides of at least `smallest` pixels, files of `largest` bytes."""

    name: str
    batch: int
    smallest: int
    largest: int

    def request(self, images: Sequence[bytes]) -> Request:
        """The request that asks for labels of these PNG files."""
        ...

    def read(self, reply: Reply, count: int) -> list[Outcome]:
        """One outcome an image, in the order of the request; raises Unauthorised."""
        ...


def secret(variable: str) -> str:
    """A credential from the environment.

    Raises:
        ConfigError: it is not set.
    """
    value = os.environ.get(variable, "").strip()
    if not value:
        raise ConfigError(f"the environment variable {variable} must hold the service's credential; it is not set")
    return value


def retry_after(reply: Reply) -> float | None:
    """Seconds that a reply asks to wait: a number or a date; None if it does not."""
    text = reply.headers.get("retry-after", "").strip()
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    try:
        moment = parsedate_to_datetime(text)
        return max(0.0, (moment - datetime.now(moment.tzinfo or UTC)).total_seconds())
    except (ValueError, TypeError, OverflowError):
        return None


def failure(reply: Reply, name: str, code: str = "") -> Outcome:
    """What an HTTP error means: to be sent again, or never.

    Raises:
        Unauthorised: credentials or address are wrong.
    """
    what = f"{name} answered {reply.status}" + (f" {code}" if code else "")
    if reply.status in (401, 403, 404, 407):
        raise Unauthorised(f"{what}: check the credentials in the environment and the address; nothing more was sent")
    if reply.status in (408, 425, 429) or reply.status >= 500:
        return Again(what, retry_after(reply))
    return Rejected(what)


def parsed(reply: Reply) -> Any:
    """The JSON of a reply, None if it is none."""
    try:
        return json.loads(reply.body)
    except (ValueError, RecursionError):
        return None


def ranked(items: Any, name: str, score: str, scale: float = 1.0) -> tuple[tuple[str, float], ...]:
    """(name, score) of a list of objects; raises KeyError, TypeError or ValueError for anything else."""
    if not isinstance(items, list):
        raise TypeError("no list of labels")
    return tuple((str(item[name]), float(item[score]) / scale) for item in items)


_MALFORMED = (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError)


def sound(outcome: Outcome) -> Outcome:
    """The outcome, if an answer's scores are numbers and its version is a name; raises TypeError or ValueError."""
    if isinstance(outcome, Answer):
        if not isinstance(outcome.version, str | None):
            raise TypeError("the version of a model is a name")
        if not all(math.isfinite(score) for _, score in outcome.labels):
            raise ValueError("a score that is no number")
    return outcome


class _Service:
    """What the formats share: a reply is an error, or parsed by `answers`; what cannot be parsed is asked for again."""

    name = ""
    batch, smallest, largest = 1, 1, 1 << 62

    def read(self, reply: Reply, count: int) -> list[Outcome]:
        content = parsed(reply)
        if reply.status != 200:
            return [failure(reply, self.name, self.code(content))] * count
        try:
            return [sound(outcome) for outcome in self.answers(content)]
        except _MALFORMED:
            return [Again(f"{self.name} answered something unreadable")] * count

    def code(self, content: Any) -> str:
        """The service's own name for an error, where its format has one."""
        error = content.get("error") if isinstance(content, dict) else None
        return str(error.get("status") or error.get("code") or "")[:80] if isinstance(error, dict) else ""

    def answers(self, content: Any) -> list[Outcome]:
        raise NotImplementedError


class Plain(_Service):
    """The format of `robustrun serve`: {"images": [base64 PNG, ...]} to {"labels": [[[name, score], ...], ...]}.

    Raises:
        ConfigError: there is no address.
    """

    name, batch = "plain", 64

    def __init__(self, url: str | None):
        if not url:
            raise ConfigError("model.query.url must be given for model.query.provider=plain: http://host:port")
        self.url = url.rstrip("/") + "/classify"

    def request(self, images: Sequence[bytes]) -> Request:
        body = json.dumps({"images": to_base64(images)}).encode()
        headers = {"Content-Type": "application/json"}
        if token := os.environ.get("ROBUSTRUN_API_KEY", "").strip():
            headers["Authorization"] = f"Bearer {token}"
        return Request(self.url, headers, body)

    def answers(self, content: Any) -> list[Outcome]:
        """The outcomes in a decoded reply, one an image."""
        version = content.get("model")
        return [
            Answer(tuple((str(name), float(score)) for name, score in labels), labels, version)
            for labels in content["labels"]
        ]


class Azure(_Service):
    """Azure AI Vision, Image Analysis 3.2 or 4.0: the image's bytes themselves, one a request."""

    name, smallest = "azure", 50

    def __init__(self, url: str | None, version: Literal["3.2", "4.0"] = "3.2"):
        endpoint = (url or secret("AZURE_COMPUTER_VISION_ENDPOINT")).rstrip("/")
        self.version, self.largest = version, (4 if version == "3.2" else 20) * 2**20
        path = {
            "3.2": "/vision/v3.2/analyze?visualFeatures=Tags",
            "4.0": "/computervision/imageanalysis:analyze?api-version=2023-10-01&features=tags",
        }[version]
        self.url = endpoint + path

    def request(self, images: Sequence[bytes]) -> Request:
        key = secret("AZURE_COMPUTER_VISION_SUBSCRIPTION_KEY")
        headers = {"Ocp-Apim-Subscription-Key": key, "Content-Type": "application/octet-stream"}
        return Request(self.url, headers, images[0])

    def answers(self, content: Any) -> list[Outcome]:
        tags = content["tags"] if self.version == "3.2" else content["tagsResult"]["values"]
        return [Answer(ranked(tags, "name", "confidence"), content, content.get("modelVersion"))]


class Google(_Service):
    """Google Cloud Vision v1, label detection: up to 16 images a request, failures of single ones inside a 200."""

    name, batch, largest = "google", 16, 20 * 2**20

    def __init__(self, url: str | None):
        self.base = (url or "https://vision.googleapis.com").rstrip("/")

    def request(self, images: Sequence[bytes]) -> Request:
        feature = {"type": "LABEL_DETECTION", "maxResults": 10}
        requests = [{"image": {"content": text}, "features": [feature]} for text in to_base64(images)]
        headers, address = {"Content-Type": "application/json"}, f"{self.base}/v1/images:annotate"
        if token := os.environ.get("GOOGLE_VISION_ACCESS_TOKEN", "").strip():
            headers["Authorization"] = f"Bearer {token}"
        else:
            headers["X-Goog-Api-Key"] = secret("GOOGLE_VISION_API_KEY")
        return Request(address, headers, json.dumps({"requests": requests}).encode())

    def answers(self, content: Any) -> list[Outcome]:
        return [self._one(response) for response in content["responses"]]

    @staticmethod
    def _one(response: dict[str, Any]) -> Outcome:
        error = response.get("error")
        if error:
            code = int(error.get("code", 0))
            # google.rpc.Code: deadline exceeded, exhausted, aborted, internal, unavailable
            return (Again if code in (4, 8, 10, 13, 14) else Rejected)(f"google refused an image with code {code}")
        return Answer(ranked(response.get("labelAnnotations", []), "description", "score"), response)


class Aws(_Service):
    """AWS Rekognition DetectLabels with Signature v4: one image a request; throttling comes as a 400."""

    name, smallest, largest = "aws", 80, 5 * 2**20
    transient = frozenset({"ThrottlingException", "ProvisionedThroughputExceededException", "InternalServerError"})
    unauthorised = frozenset(
        {
            "AccessDeniedException", "UnrecognizedClientException", "InvalidSignatureException",
            "ExpiredTokenException", "MissingAuthenticationTokenException", "IncompleteSignatureException",
        }
    )  # fmt: skip

    def __init__(self, url: str | None, region: str = "us-east-1"):
        self.region = region
        self.url = (url or f"https://rekognition.{region}.amazonaws.com").rstrip("/") + "/"

    def request(self, images: Sequence[bytes]) -> Request:
        body = json.dumps({"Image": {"Bytes": base64.b64encode(images[0]).decode()}, "MaxLabels": 10}).encode()
        headers = {
            "content-type": "application/x-amz-json-1.1",
            "host": urlsplit(self.url).netloc,
            "x-amz-target": "RekognitionService.DetectLabels",
        }
        if token := os.environ.get("AWS_SESSION_TOKEN", "").strip():
            headers["x-amz-security-token"] = token
        signed = sign(
            headers, body, secret("AWS_ACCESS_KEY_ID"), secret("AWS_SECRET_ACCESS_KEY"), self.region, "rekognition"
        )
        return Request(self.url, signed, body)

    def read(self, reply: Reply, count: int) -> list[Outcome]:
        code = self.code(parsed(reply)) if reply.status != 200 else ""
        if code in self.transient:
            return [Again(f"aws answered {code}", retry_after(reply))] * count
        if code in self.unauthorised:
            raise Unauthorised(f"aws answered {code}: check the credentials in the environment; nothing more was sent")
        return super().read(reply, count)

    def code(self, content: Any) -> str:
        kind = content.get("__type", "") if isinstance(content, dict) else ""
        return str(kind).rpartition("#")[2][:80]

    def answers(self, content: Any) -> list[Outcome]:
        return [
            Answer(ranked(content["Labels"], "Name", "Confidence", 100.0), content, content.get("LabelModelVersion"))
        ]


class Clarifai(_Service):
    """Clarifai v2 general image recognition: up to 128 images a request, a status for each."""

    name, batch, largest = "clarifai", 128, 20 * 2**20
    unauthorised = range(11_001, 11_010)
    throttled = range(11_003, 11_007)  # among those, limits

    def __init__(self, url: str | None, model: str = "general-image-recognition"):
        base = (url or "https://api.clarifai.com").rstrip("/")
        self.url = f"{base}/v2/users/clarifai/apps/main/models/{quote(model, safe='')}/outputs"

    def request(self, images: Sequence[bytes]) -> Request:
        inputs = [{"data": {"image": {"base64": text}}} for text in to_base64(images)]
        headers = {"Authorization": f"Key {secret('CLARIFAI_API_KEY')}", "Content-Type": "application/json"}
        return Request(self.url, headers, json.dumps({"inputs": inputs}).encode())

    def read(self, reply: Reply, count: int) -> list[Outcome]:
        code = self._status(parsed(reply))
        if code is not None and code not in (10_000, 10_010):
            return [self._failed(code, reply)] * count
        return super().read(reply, count)

    def code(self, content: Any) -> str:
        return str(self._status(content) or "")

    @staticmethod
    def _status(content: Any) -> int | None:
        status = content.get("status") if isinstance(content, dict) else None
        code = status.get("code") if isinstance(status, dict) else None
        return code if isinstance(code, int) else None

    def _failed(self, code: int, reply: Reply | None = None) -> Outcome:
        what = f"clarifai answered with code {code}"
        if code in self.throttled or code in (10_020, 10_030):
            return Again(what, retry_after(reply) if reply else None)
        if code in self.unauthorised:
            raise Unauthorised(f"{what}: check CLARIFAI_API_KEY in the environment; nothing more was sent")
        if reply is not None and (reply.status >= 500 or reply.status == 429):
            return Again(what, retry_after(reply))
        return Rejected(what)

    def answers(self, content: Any) -> list[Outcome]:
        return [self._one(output) for output in content["outputs"]]

    def _one(self, output: dict[str, Any]) -> Outcome:
        code = output["status"]["code"]
        if code != 10_000:
            return self._failed(code)
        concepts = (output.get("data") or {}).get("concepts", [])
        model = output.get("model") or {}
        version = (model.get("model_version") or {}).get("id")
        return Answer(ranked(concepts, "name", "value"), output, version)


PROVIDERS = {"plain": Plain, "azure": Azure, "google": Google, "aws": Aws, "clarifai": Clarifai}


def make_provider(name: ProviderName, url: str | None = None) -> Provider:
    """The provider called `name`, at its own address or at `url`."""
    return PROVIDERS[name](url)
