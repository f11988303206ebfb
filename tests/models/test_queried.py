import base64
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from robustrun.certifiers.smoothing import Smoothing
from robustrun.errors import ConfigError, DataError, JobFailed
from robustrun.methods.smoothing import Gaussian, certify
from robustrun.models.denoisers import Denoiser
from robustrun.models.queried import Queried, Query
from robustrun.query import ClassifierServer, Limits, LoggedVotes
from robustrun.query.images import encode, to_bytes
from robustrun.roles import Fitted
from robustrun.runtime import Run
from robustrun.tasks.images import Images
from tests.query.servers import KEYS, FakeService

SMALL = {
    "sigma": 0.2,
    "n0": 10,
    "n": 40,
    "alpha": 0.05,
    "examples": 5,
    "together": 2,
    "radii": (0.1,),
    "batch_size": 64,
}
LIMITS = Limits(backoff=0.001, longest=0.01, concurrency=2, timeout=0.3)


@pytest.fixture(autouse=True)
def credentials(monkeypatch):
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def task(tmp_path):
    with Run.create(tmp_path / "data", device="cpu", threads=1) as run:
        task = Images(dataset="digits", test_limit=5)
        task.load(run)
    return task


def classifier():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()


def model(task, **query):
    query = {"limits": LIMITS} | query
    return Queried(task.spec, denoiser=Denoiser(depth=3, width=4), query=Query(**query)).eval()


def certified(where, task, queried, **options):
    with Run.create(where, device="cpu", threads=1) as run:
        report = Smoothing(**SMALL | options).certify(task, Fitted(queried), run)
    return report, where / "queries" / "log.0.jsonl"


def same(a, b):
    assert {k: v.tolist() for k, v in a.examples.items()} == {k: v.tolist() for k, v in b.examples.items()}


class Quantised(nn.Module):
    """What the plain service is asked: the classifier on what an 8-bit image holds."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, images):
        pixels = torch.from_numpy(to_bytes(images.clamp(0, 1))).permute(0, 3, 1, 2)
        return self.net(pixels.float() / 255)


def test_over_http_as_in_process(task, tmp_path):
    net = classifier()
    with ClassifierServer(net, (1, 8, 8)) as server:
        remote, log = certified(tmp_path / "remote", task, model(task, url=server.url))
    local, _ = certified(tmp_path / "local", task, Quantised(net))
    same(remote, local)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert len(lines) == 1 + 5 * 50
    assert {line["stage"] for line in lines[1:]} == {"selection", "estimation"}
    assert len({(line["image"], line["draw"]) for line in lines[1:]}) == 250


@pytest.mark.parametrize("provider", ["azure", "google", "aws", "clarifai"])
def test_every_provider_gives_the_same_certificates_and_replays(provider, task, tmp_path, monkeypatch):
    options = {"provider": provider, "labels": "names", "colour": True, "upscale": 96}
    with FakeService({5: "500"}, smallest=80) as service:
        queried = model(task, url=service.url, **options)
        found, log = certified(tmp_path / "live", task, queried, truth="clean")
        assert service.answered == 5 * 51
        # again from the log: nothing is sent
        requests = service.requests
    replayed = model(task, offline=True, **options)
    (tmp_path / "again" / "queries").mkdir(parents=True)
    for file in log.parent.iterdir():
        (tmp_path / "again" / "queries" / file.name).write_bytes(file.read_bytes())
    again, _ = certified(tmp_path / "again", task, replayed, truth="clean")
    assert service.requests == requests
    same(found, again)
    # and with neither network nor denoiser, for fewer draws too
    votes = LoggedVotes(log)
    from_log = certify(votes, 5, Gaussian(0.2), n0=10, n=40, alpha=0.05)
    assert from_log.successes.tolist() == found.examples["successes"].tolist()
    assert from_log.radius.tolist() == found.examples["radius"].tolist()
    assert ((from_log.prediction == votes.truth) == found.examples["correct"]).all()
    assert (certify(votes, 5, Gaussian(0.2), n0=10, n=15, alpha=0.05).successes <= 15).all()
    reference = tmp_path.parent / f"reference-{tmp_path.parent.name}.json"
    records = {name: found.examples[name].tolist() for name in ("successes", "radius", "correct")}
    if reference.exists():
        assert json.loads(reference.read_text()) == records
    reference.write_text(json.dumps(records))


def test_a_run_that_died_goes_on_at_the_next_draw(task, tmp_path):
    options = {"provider": "azure", "labels": "names", "colour": True, "upscale": 96}
    with FakeService() as whole:
        expected, _ = certified(tmp_path / "whole", task, model(task, url=whole.url, **options))
    with FakeService() as first:
        short = LIMITS.model_copy(update={"budget": 250, "retries": 0})
        first.faults = {130: "unauthorised"}
        with pytest.raises(JobFailed, match="credentials"):
            certified(tmp_path / "cut", task, model(task, url=first.url, **options | {"limits": short}))
    log = tmp_path / "cut" / "queries" / "log.0.jsonl"
    content = log.read_bytes()
    log.write_bytes(content[: content.rfind(b"\n", 0, -1) + 30])  # a line cut short by a kill
    kept = content.count(b"\n") - 2
    with FakeService() as second:
        resumed, _ = certified(tmp_path / "cut", task, model(task, url=second.url, **options))
    same(expected, resumed)
    assert second.answered == 250 - kept
    lines = [json.loads(line) for line in log.read_text().splitlines()][1:]
    assert len({(line["image"], line["draw"]) for line in lines}) == len(lines) == 250


def test_a_lost_image_ends_the_run_or_votes_for_nothing(task, tmp_path):
    options = {
        "provider": "azure",
        "labels": "names",
        "colour": True,
        "limits": LIMITS.model_copy(update={"retries": 0}),
    }
    with FakeService({20: "500"}) as service, pytest.raises(JobFailed, match="got no answer"):
        certified(tmp_path / "abort", task, model(task, url=service.url, upscale=96, **options))
    with FakeService() as service:
        expected, _ = certified(tmp_path / "all", task, model(task, url=service.url, upscale=96, **options))
    faults = dict.fromkeys(range(20, 30), "500")
    with FakeService(faults) as service:
        found, log = certified(
            tmp_path / "none", task, model(task, url=service.url, upscale=96, lost="no_class", **options)
        )
    assert sum(json.loads(line).get("label", "") is None for line in log.read_text().splitlines()) == 10
    assert (found.examples["trials"] == 40).all(), "a lost vote is counted as a draw"
    assert found.examples["successes"].sum() <= expected.examples["successes"].sum()


def test_too_small_images_are_refused_before_anything_is_sent(task, tmp_path):
    with FakeService() as service:
        with pytest.raises(ConfigError, match="at least 80 pixels, not 8"):
            certified(tmp_path / "a", task, model(task, url=service.url, provider="aws", labels="names", colour=True))
        limits = LIMITS.model_copy(update={"budget": 100})
        with pytest.raises(ConfigError, match="are more than"):
            certified(tmp_path / "b", task, model(task, url=service.url, provider="azure", limits=limits))
        assert service.requests == 0


def test_a_log_of_other_queries_is_refused(task, tmp_path):
    with ClassifierServer(classifier(), (1, 8, 8)) as server:
        certified(tmp_path / "run", task, model(task, url=server.url))
        for file in (tmp_path / "run" / "records").iterdir():
            file.unlink()
        with pytest.raises(ConfigError, match="differ in selection"):
            certified(tmp_path / "run", task, model(task, url=server.url), n0=11)
        other = model(task, url=server.url)
        nn.init.normal_(other.denoiser.layers[-1].weight, std=0.1)
        with pytest.raises(ConfigError, match="was another image"):
            certified(tmp_path / "run", task, other)


def test_a_model_that_changes_on_the_way_stops_the_run(task, tmp_path):
    with ClassifierServer(classifier(), (1, 8, 8)) as server:
        queried = model(task, url=server.url)
        certified(tmp_path / "run", task, queried)
        for file in (tmp_path / "run" / "records").iterdir():
            file.unlink()
        log = tmp_path / "run" / "queries" / "log.0.jsonl"
        log.write_bytes(b"".join(log.read_bytes().splitlines(keepends=True)[:-7]))
        server.version = "retrained"
        with pytest.raises(JobFailed, match="model changed"):
            certified(tmp_path / "run", task, queried)


def test_nothing_behind_an_api_has_gradients(task):
    queried = model(task, url="http://127.0.0.1:1")
    with pytest.raises(ConfigError, match="surrogates"):
        queried.classifier(torch.zeros(1, 1, 8, 8))
    with pytest.raises(JobFailed, match="certifier=smoothing"):
        queried(torch.zeros(1, 1, 8, 8))


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/classify", b"no json", 400),
        ("/classify", b'{"images": 3}', 400),
        ("/classify", b'{"images": ["&&&"]}', 400),
        ("/classify", b'{"images": ["aGVsbG8="]}', 400),
        ("/elsewhere", b"{}", 404),
    ],
)
def test_the_server_refuses_nonsense_and_lives_on(path, body, status):
    import requests

    with ClassifierServer(classifier(), (1, 8, 8)) as server:
        assert requests.post(server.url + path, data=body, timeout=5).status_code == status
        assert requests.get(server.url, timeout=5).json()["input_shape"] == [1, 8, 8]


def test_serve_as_a_user_types_it(tmp_path, task):
    import requests
    from omegaconf import OmegaConf

    from robustrun import saved
    from robustrun.runtime import Checkpoints

    config = {"model": {"name": "mnist_cnn", "width": 0.5}}
    OmegaConf.save(OmegaConf.create(config), tmp_path / "config.yaml")
    from robustrun.models.mnist_cnn import MnistCNN

    net = MnistCNN(task.spec, width=0.5).eval()
    saved.save(Fitted(net), task.spec, Checkpoints(tmp_path / "checkpoints"))
    command = [sys.executable, "-m", "robustrun.cli", "serve", str(tmp_path), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent) as process:
        try:
            url = process.stdout.readline().split(" at ")[1].split(";")[0]
            image = np.random.default_rng(0).integers(0, 256, (8, 8, 1), dtype=np.uint8)
            body = {"images": [base64.b64encode(encode(image)).decode()]}
            labels = requests.post(f"{url}/classify", json=body, timeout=20).json()["labels"][0]
        finally:
            process.terminate()
    pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 255
    assert int(labels[0][0]) == int(net(pixels).argmax())
    assert sum(score for _, score in labels) == pytest.approx(1, abs=1e-4)


def test_a_classifier_in_an_onnx_file(task, tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from onnx import helper, numpy_helper

    from robustrun.models.denoised import Denoised

    net = classifier()
    weight, bias = (parameter.detach().numpy() for parameter in net[1].parameters())
    nodes = [helper.make_node("Flatten", ["x"], ["f"]), helper.make_node("Gemm", ["f", "w", "b"], ["y"], transB=1)]
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 1, 8, 8])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 10])],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(bias, "b")],
    )
    file = tmp_path / "net.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), file)
    denoised = Denoised(task.spec, classifier=str(file), denoiser=Denoiser(name="identity"))
    images = torch.rand(4, 1, 8, 8)
    assert torch.allclose(denoised(images), net(images), atol=1e-5)
    same(certified(tmp_path / "a", task, denoised)[0], certified(tmp_path / "b", task, net)[0])
    with pytest.raises(ConfigError, match="no gradients"):
        denoised(images.requires_grad_(True))
    file.write_bytes(b"nothing")
    with pytest.raises(DataError, match="no ONNX network"):
        Denoised(task.spec, classifier=str(file))
