"""A classifier that can only be asked, behind a denoiser of ours: the black-box setting of arXiv 2003.01908."""

from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from robustrun.errors import ConfigError, JobFailed
from robustrun.models.denoisers import Denoiser
from robustrun.models.normalize import image_shape
from robustrun.numbers import PositiveInt
from robustrun.query import Answer, ClassifierServer, Client, Limits, QueryLog, Vocabulary, make_provider, top_label
from robustrun.query.answers import Outcome, Top
from robustrun.query.images import encode, to_bytes
from robustrun.query.providers import ProviderName
from robustrun.registry import models
from robustrun.roles import ClassificationSpec, QueriedClassifier
from robustrun.runtime import Run
from robustrun.saved import load

MOST_LABELS = 10_000  # that a service with an open vocabulary may use


class Query(BaseModel):
    """Whom to ask and how."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    provider: ProviderName = "plain"
    url: str | None = None  # null: the provider's own address
    serve: str | None = None  # a finished run that is served on this machine for the job's duration, asked as "plain"
    labels: Literal["numbers", "names"] = "numbers"  # "numbers": names are class numbers; "names": an open set of names
    top: Top = "highest"
    upscale: PositiveInt | None = None  # enlarge images to this side
    colour: bool = False  # grey images are sent as RGB
    stretch: bool = False  # each image's range is stretched to 0 ... 255, as the published client did
    lost: Literal["abort", "no_class"] = "abort"  # an image without an answer: the end, or a vote for no class
    offline: bool = False  # answers come from the log alone
    limits: Limits = Limits()


@models.register("queried")
class Queried(QueriedClassifier):
    """The top label of a service for 8-bit images that a denoiser has cleaned.

    Everything after the noise is a fixed function of the noisy image: denoising, cutting to [0, 1], rounding, PNG.
    Draws are answered once: the log in the run directory is read before anything is sent.

    Args:
        denoiser: what stands before the service.
        clamp: cut the noisy image to [0, 1] before it is denoised.
        query: see `Query`.
    """

    def __init__(
        self,
        spec: ClassificationSpec,
        *,
        denoiser: Denoiser = Denoiser(),  # noqa: B008
        clamp: bool = True,
        query: Query = Query(),  # noqa: B008
    ):
        super().__init__()
        if query.serve is not None and query.provider != "plain":
            raise ConfigError("model.query.serve=RUN is asked in the plain format: model.query.provider=plain")
        self.denoiser = denoiser.build(image_shape(spec)[0])
        self.classifier = _NoGradients()
        self.clamp, self.query = clamp, query
        self._shape, self._classes = image_shape(spec), spec.classes
        self._client: Client | None = None

    # ------------------------------------------------------------------------------- getting ready

    def open(self, run: Run, *, selection: int, planned: int) -> int:
        query = self.query
        self._selection, self._run = selection, run
        folder, rank = run.dir / "queries", run.distributed.rank
        self._log = QueryLog(folder / f"log.{rank}.jsonl", self._head(run, selection))
        self._names = Vocabulary(folder / f"names.{rank}.txt")
        if not query.offline and self._client is None:
            self._client = Client(make_provider(query.provider, self._address()), query.limits, spent=len(self._log))
        if self._client is not None:
            run.logger.info(self._client.check(max(0, planned - len(self._log))))
        return self._classes if query.labels == "numbers" else MOST_LABELS

    def _head(self, run: Run, selection: int) -> dict:
        query = self.query.model_dump(mode="json", exclude={"url", "serve", "limits", "offline", "lost"})
        return {"query": query, "clamp": self.clamp, "seed": run.seed, "selection": selection}

    def _address(self) -> str | None:
        if self.query.serve is None:
            return self.query.url
        self._server = ClassifierServer(load(self.query.serve), self._shape).start()
        return self._server.url

    # ------------------------------------------------------------------------------------- asking

    @torch.inference_mode()
    def answers(self, images: Tensor, indices: Tensor, draws: Tensor) -> Tensor:
        contents = [encode(image) for image in self._cleaned(images)]
        keys = list(zip(indices.tolist(), draws.tolist(), strict=True))
        entries = {key: self._log.get(key, content) for key, content in zip(keys, contents, strict=True)}
        missing = {key: content for key, content in zip(keys, contents, strict=True) if entries[key] is None}
        if missing:
            self._ask(missing, entries)
        labels = [self._number(entries[key]["label"]) for key in keys]
        return torch.tensor(labels, device=images.device)

    def _cleaned(self, images: Tensor):
        query = self.query
        images = images.clamp(0, 1) if self.clamp else images
        cleaned = self.denoiser(images)
        return to_bytes(cleaned, upscale=query.upscale, colour=query.colour, stretch=query.stretch)

    def _ask(self, missing: dict[tuple[int, int], bytes], entries: dict) -> None:
        if self._client is None:
            where = "the log is offline" if self.query.offline else "the model was not opened"
            raise JobFailed(f"{len(missing)} draws have no answer and {where}")
        keys, contents = list(missing), list(missing.values())
        self._check_sizes(contents)

        def keep(position: int, outcome: Outcome) -> None:
            key = keys[position]
            if isinstance(outcome, Answer):
                self._check_version(outcome.version)
                label = top_label(outcome.labels, self.query.top)
                entries[key] = self._log.add(
                    key, self._stage(key[1]), contents[position], label, outcome.raw, outcome.version
                )
            elif self.query.lost == "no_class":
                failed = {"failed": outcome.reason}
                entries[key] = self._log.add(key, self._stage(key[1]), contents[position], None, failed, None)

        outcomes = self._client.ask(contents, keep)
        lost = [(key, outcome) for key, outcome in zip(keys, outcomes, strict=True) if entries[key] is None]
        if lost:
            (image, draw), outcome = lost[0]
            raise JobFailed(
                f"{len(lost)} queries got no answer, the first being draw {draw} of image {image}: {outcome.reason}; "
                "the same command goes on from the log"
            )

    def _check_sizes(self, contents: list[bytes]) -> None:
        provider = self._client.provider
        side = self.query.upscale or min(self._shape[1:])
        if side < provider.smallest:
            raise ConfigError(
                f"{provider.name} takes sides of at least {provider.smallest} pixels, not {side}: "
                f"model.query.upscale={4 * -(-provider.smallest // 4)} enlarges, as a part of the classifier"
            )
        largest = max(map(len, contents))
        if largest > provider.largest:
            raise ConfigError(f"an image of {largest} bytes is more than {provider.name} takes")

    def _check_version(self, version: str | None) -> None:
        known = self._log.versions()
        if version is not None and known and version not in known:
            raise JobFailed(
                f"the service's model changed from {known.pop()} to {version} while it was being certified: "
                "delete the run directory and begin again"
            )

    def _stage(self, draw: int) -> str:
        return "clean" if draw < 0 else "selection" if draw < self._selection else "estimation"

    def _number(self, label: str | None) -> int:
        if label is None:
            return -1
        if self.query.labels == "numbers":
            return int(label) if label.isdecimal() and len(label) < 10 else -1
        return self._names.number(label)

    def forward(self, images: Tensor) -> Tensor:
        """There are no logits: raises JobFailed."""
        raise JobFailed("a classifier behind an API gives labels for smoothing, not logits: certifier=smoothing")


class _NoGradients(nn.Module):
    """Stands where a classifier would be trained through."""

    def forward(self, images: Tensor) -> Tensor:
        raise ConfigError("a classifier behind an API has no gradients: give trainer.surrogates, or train for mse")
