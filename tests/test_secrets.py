"""A run with credentials all over its environment: none of them is in any file, log or line that it writes."""

from collections.abc import Iterable
from pathlib import Path

import pytest

from tests import disasters
from tests.disasters import Disaster
from tests.forked import Forked
from tests.query.servers import KEYS, FakeService
from tests.query.servers import SECRETS as SERVICES

VARIABLES = (
    "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AZURE_COMPUTER_VISION_SUBSCRIPTION_KEY",
    "GOOGLE_VISION_API_KEY", "GOOGLE_VISION_ACCESS_TOKEN", "CLARIFAI_API_KEY", "ROBUSTRUN_API_KEY", "GITHUB_TOKEN",
    "HF_TOKEN", "OPENAI_API_KEY", "MY_PASSWORD", "SSH_PASSPHRASE", "DATABASE_URL",
)  # fmt: skip
SECRETS = {name: f"s3cr3t-{number}-of-{name.lower()}" for number, name in enumerate(VARIABLES)}
PROXIES = dict.fromkeys(("http_proxy", "HTTPS_PROXY", "ALL_PROXY"), "http://user:s3cr3t-of-the-proxy@127.0.0.1:9")
SMALL = ("task=digits", "task.test_limit=4")
TRAINING = (*SMALL, "model=mlp_classifier", "trainer=standard", "trainer.epochs=1", "certifier=accuracy")
QUERIES = (
    *SMALL, "model=queried", "model.denoiser.name=identity", "trainer=none", "certifier=smoothing", "certifier.n0=2",
    "certifier.n=4", "certifier.examples=2", "certifier.radii=[0.1]", "noise.sigma=0.1", "model.query.labels=names",
    "model.query.colour=true", "model.query.limits.retries=1", "model.query.limits.backoff=0.01",
)  # fmt: skip


def run(folder: Path, *words: str, **environment: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a job with this environment and its outputs in the folder."""
    env = {**environment, **PROXIES, "ROBUSTRUN_TRACEBACK": "1", "WANDB_MODE": "offline"}
    return Forked(disasters.run, list(words), str(folder), Disaster(), None, None, env=env).finish()


def assert_silent(folder: Path, secrets: Iterable[str], *said: str) -> None:
    written = [path.read_bytes() for path in folder.rglob("*") if path.is_file()]
    assert len(written) > 3
    for text in [*written, *(str(path).encode() for path in folder.rglob("*")), *(text.encode() for text in said)]:
        assert not [secret for secret in secrets if secret.encode() in text]


@pytest.mark.parametrize("words", [(), ("trainer.optimizer.lr=1e30",), ("tracker=wandb",), ("tracker=tensorboard",)])
def test_a_training_run_writes_no_credential(tmp_path, words):
    code, out, said = run(tmp_path, *TRAINING, *words, **SECRETS)
    assert code == (1 if "trainer.optimizer.lr=1e30" in words else 0), said
    assert_silent(tmp_path, ["s3cr3t"], out, said)


@pytest.mark.parametrize("provider", ["azure", "google", "aws", "clarifai"])
@pytest.mark.parametrize("fault", [None, "malformed", "unauthorised"])
def test_a_run_that_asks_a_service_writes_no_credential(tmp_path, provider, fault):
    with FakeService() as service:
        service.always = fault
        words = [*QUERIES, f"model.query.provider={provider}", f"model.query.url={service.url}"]
        code, out, said = run(tmp_path, *words, "model.query.upscale=80", **KEYS)
    assert service.requests > 0, said
    assert (code == 0) == (fault is None), said
    assert_silent(tmp_path, [*SERVICES, "s3cr3t"], out, said)
