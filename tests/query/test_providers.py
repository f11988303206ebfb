import json
import logging
from datetime import UTC, datetime

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robustrun.errors import ConfigError, DataError, JobFailed
from robustrun.query import Again, Answer, Client, Limits, Rejected, make_provider, top_label
from robustrun.query.answers import Reply, Unauthorised
from robustrun.query.images import decode, encode, to_bytes
from robustrun.query.providers import failure, retry_after
from robustrun.query.signature import sign, signing_key
from tests.query.servers import KEYS, SECRETS, FakeService, label_image

PROVIDERS = ("azure", "google", "aws", "clarifai")
FAST = Limits(backoff=0.001, longest=0.01, concurrency=1, timeout=1)


@pytest.fixture(autouse=True)
def credentials(monkeypatch):
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)


def pictures(count, side=16):
    pixels = np.random.default_rng(0).integers(0, 256, (count, 1, 1, 3), dtype=np.uint8)
    noise = np.random.default_rng(1).integers(0, 40, (count, side, side, 3), dtype=np.uint8)
    return np.clip(pixels.astype(int) + noise, 0, 255).astype(np.uint8)


def ask(name, service, images, limits=FAST, **options):
    return Client(make_provider(name, service.url), limits, **options).ask([encode(image) for image in images])


@pytest.mark.parametrize("name", PROVIDERS)
def test_pixels_arrive_as_sent_and_labels_come_back_in_order(name):
    images = pictures(20)
    with FakeService() as service:
        outcomes = ask(name, service, images)
    assert np.array_equal(np.stack(service.pixels), images)
    for image, outcome in zip(images, outcomes, strict=True):
        expected = label_image(image)
        assert [label for label, _ in outcome.labels] == [label for label, _ in expected]
        assert [score for _, score in outcome.labels] == pytest.approx([score for _, score in expected])
        assert top_label(outcome.labels) == expected[0][0]


def test_azure_four():
    from robustrun.query.providers import Azure

    with FakeService() as service:
        outcome = Client(Azure(service.url, "4.0"), FAST).ask([encode(pictures(1)[0])])[0]
    assert outcome.version == "2023-10-01"
    assert outcome.labels[0][0] == label_image(pictures(1)[0])[0][0]


FAULTS = {
    "azure": ("429", "500", "reset", "slow", "truncated", "malformed"),
    "google": ("429", "500", "reset", "slow", "truncated", "malformed", "error in 200", "short"),
    "aws": ("429", "500", "reset", "slow", "truncated", "malformed", "throttled in 400"),
    "clarifai": ("429", "500", "reset", "slow", "truncated", "malformed", "mixed"),
}


@pytest.mark.parametrize(("name", "fault"), [(name, fault) for name in PROVIDERS for fault in FAULTS[name]])
def test_a_passing_fault_loses_no_image_and_sends_the_same_bytes_again(name, fault):
    images = pictures(6)
    with FakeService() as clean:
        expected = ask(name, clean, images)
    with FakeService({1 if name in ("azure", "aws") else 0: fault}) as service:
        outcomes = ask(name, service, images)
    assert [o.labels for o in outcomes] == [o.labels for o in expected]
    assert service.requests == clean.requests + 1
    if fault not in ("error in 200", "mixed"):  # there only the failed image is sent again
        assert len(set(service.bodies)) == clean.requests


@pytest.mark.parametrize("name", PROVIDERS)
def test_an_empty_answer_is_a_label_of_its_own(name):
    with FakeService({0: "empty"}) as service:
        outcome = ask(name, service, pictures(1))[0]
    assert outcome.labels == ()
    assert top_label(outcome.labels) == "None"


@pytest.mark.parametrize("name", PROVIDERS)
def test_wrong_credentials_end_everything_at_once(name, monkeypatch):
    for variable in KEYS:
        monkeypatch.setenv(variable, "wrong-credential")
    with FakeService() as service, pytest.raises(Unauthorised) as caught:
        ask(name, service, pictures(3))
    assert service.requests == 1
    assert "wrong-credential" not in str(caught.value)


@pytest.mark.parametrize("name", PROVIDERS)
def test_a_refused_request_is_not_repeated(name):
    with FakeService({0: "bad request"}) as service:
        outcome = ask(name, service, pictures(1))[0]
    assert isinstance(outcome, Rejected)
    assert service.requests == 1


def test_a_fault_that_stays_is_given_up_after_the_retries():
    with FakeService() as service:
        service.always = "500"
        outcome = ask("azure", service, pictures(1), FAST.model_copy(update={"retries": 2}))[0]
    assert isinstance(outcome, Again)
    assert service.requests == 3


def test_the_budget_counts_repetitions_and_is_never_exceeded():
    limits = FAST.model_copy(update={"budget": 4})
    with FakeService({0: "500"}) as service:
        with pytest.raises(JobFailed, match="budget=4 is spent"):
            ask("azure", service, pictures(6), limits)
        assert service.requests == 4
        client = Client(make_provider("azure", service.url), limits.model_copy(update={"price": 2.0}))
        with pytest.raises(ConfigError, match=r"up to 1000 queries to azure, about 2\.00 in cost are more than"):
            client.check(1000)
        assert service.requests == 4


def test_many_at_a_time_give_the_same_answers():
    images = pictures(40)
    with FakeService({3: "500", 7: "429"}) as service:
        one = ask("azure", service, images)
    with FakeService({3: "500", 7: "429"}) as service:
        eight = ask("azure", service, images, FAST.model_copy(update={"concurrency": 8}))
    assert [o.labels for o in one] == [o.labels for o in eight]


def test_the_rate_is_kept():
    import time

    with FakeService() as service:
        start = time.monotonic()
        ask("azure", service, pictures(5), FAST.model_copy(update={"rate": 20.0, "concurrency": 4}))
        assert time.monotonic() - start >= 4 / 20 - 0.01


@pytest.mark.parametrize("name", PROVIDERS)
@pytest.mark.parametrize("fault", [None, "500", "malformed", "reset", "unauthorised"])
def test_no_secret_in_messages_or_representations(name, fault, caplog):
    caplog.set_level(logging.DEBUG)
    said = []
    with FakeService() as service:
        service.always = fault
        provider = make_provider(name, service.url)
        request = provider.request([encode(pictures(1)[0])])
        said += [repr(provider), repr(request), str(vars(provider))]
        try:
            outcomes = ask(name, service, pictures(1), FAST.model_copy(update={"retries": 0}))
            said += [repr(outcomes)]
        except JobFailed as error:
            said += [str(error), repr(error)]
    text = " ".join(said) + caplog.text
    assert not any(secret in text for secret in SECRETS)


def test_a_missing_credential_is_named(monkeypatch):
    monkeypatch.delenv("CLARIFAI_API_KEY")
    with pytest.raises(ConfigError, match="CLARIFAI_API_KEY"):
        make_provider("clarifai").request([b""])


def test_signature_keys_are_derived_as_in_the_public_example():
    key = signing_key("wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", "20150830", "us-east-1", "iam")
    assert key.hex() == "c4afb1cc5771d871763a393e44b703571b55cc28424d1a5e86da6ed3c154a4b9"
    moment = datetime(2015, 8, 30, 12, 36, tzinfo=UTC)
    headers = sign({"host": "a:81", "content-type": "x"}, b"{}", "ID", "secret", "eu", "rekognition", moment)
    assert headers["x-amz-date"] == "20150830T123600Z"
    assert "SignedHeaders=content-type;host;x-amz-date, " in headers["authorization"]


def test_how_long_to_wait():
    def after(text):
        return retry_after(Reply(429, {"retry-after": text}, b""))

    assert after("7") == 7
    assert after("-1") == 0
    assert after("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert after("Wed, 21 Oct 2115 07:28:00 GMT") > 1e9
    assert after("soon") is None
    assert failure(Reply(503, {"retry-after": "3"}, b""), "x").after == 3


@given(
    st.sampled_from(PROVIDERS),
    st.integers(100, 599),
    st.binary(max_size=60)
    | st.recursive(
        st.none() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["tags", "responses", "Labels", "outputs", "status", "error", "code"]), inner
            )
        ),
        max_leaves=8,
    ).map(lambda content: json.dumps(content).encode()),
)
@settings(deadline=None, max_examples=150)
def test_whatever_comes_back_is_an_outcome_or_a_refusal(name, status, body):
    import os

    os.environ.setdefault("AZURE_COMPUTER_VISION_ENDPOINT", "http://nowhere")
    try:
        outcomes = make_provider(name, "http://nowhere").read(Reply(status, {}, body), 1)
    except Unauthorised:
        return
    assert all(isinstance(outcome, (Answer, Again, Rejected)) for outcome in outcomes)


def test_images_become_bytes_and_back():
    images = torch.tensor([[-0.2, 0.5], [1.7, 0.499]]).view(1, 1, 2, 2)
    assert to_bytes(images)[0, ..., 0].tolist() == [[0, 128], [255, 127]]
    assert to_bytes(images, upscale=4).shape == (1, 4, 4, 1)
    assert to_bytes(images, colour=True).shape == (1, 2, 2, 3)
    stretched = to_bytes(images, stretch=True)[0, ..., 0]
    assert stretched.min() == 0
    assert stretched.max() == 255
    for channels in (1, 3):
        pixels = np.random.default_rng(0).integers(0, 256, (5, 7, channels), dtype=np.uint8)
        assert np.array_equal(decode(encode(pixels), channels), pixels)
    with pytest.raises(DataError, match="mode L where RGB"):
        decode(encode(np.zeros((2, 2, 1), np.uint8)), 3)
    with pytest.raises(DataError, match="not an image"):
        decode(b"no image", 3)


def test_the_first_of_equals_is_the_top_label():
    labels = [("a", 0.3), ("b", 0.9), ("c", 0.9)]
    assert top_label(labels) == "b"
    assert top_label(labels, "first") == "a"
