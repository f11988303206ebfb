"""Damaged and hostile files and requests: one of our errors or a correct answer, never another exception or a hang."""

import io
import json
import pickle
import shutil
import struct
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from robustrun.compose import Composer
from robustrun.data import obtain
from robustrun.errors import ConfigError, DataError, JobFailed, RobustrunError
from robustrun.models.denoisers import Denoiser
from robustrun.models.queried import Queried, Query
from robustrun.plan import plan
from robustrun.query import Limits, LoggedVotes, QueryLog, Vocabulary
from robustrun.report import tables
from robustrun.report.index import Index
from robustrun.report.results import Result
from robustrun.roles import ClassificationSpec
from robustrun.runtime import ExampleLog
from robustrun.runtime.checkpoints import Checkpoints, load_file
from robustrun.tasks.sensor_table import Column, Table, Target, read_table
from tests.query.servers import KEYS

BOUNDED = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@st.composite
def damaged(draw, content: bytes) -> bytes:
    """A file that was cut short, had bytes changed, taken out or put in, or was replaced by something else."""
    data = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        match draw(st.sampled_from(["cut", "change", "remove", "insert", "other"])):
            case "cut":
                del data[at:]
            case "change" if at < len(data):
                data[at] = draw(st.integers(0, 255))
            case "remove":
                del data[at : at + draw(st.integers(1, 50))]
            case "insert":
                data[at:at] = draw(st.binary(max_size=20))
            case "other":
                data = bytearray(draw(st.binary(max_size=50)))
    return bytes(data)


def saved(save, *arguments, **named) -> bytes:
    buffer = io.BytesIO()
    save(buffer, *arguments, **named)
    return buffer.getvalue()


def idx(array: np.ndarray) -> bytes:
    return b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


IMAGES, LABELS = np.arange(96, dtype=np.uint8).reshape(6, 4, 4), np.arange(6, dtype=np.uint8)
NPZ = saved(np.savez, images=IMAGES, labels=LABELS)
CHECKPOINT = saved(lambda file: torch.save({"model": {"weight": torch.arange(4.0)}, "epoch": 3}, file))
RESULT = json.dumps(
    {
        "schema": 1,
        "exp": "x",
        "metrics": {"accuracy": 0.5},
        "seed": 0,
        "config_sha256": "a" * 64,
        "timings": {"fit": 1.0},
    }
).encode()
TABLE = b"""
paper: toy
tables:
  one:
    caption: a table
    source: nowhere
    columns: {accuracy: {heading: acc, unit: "%", better: higher, tolerance: 1}}
    rows: {a: {label: a row, overrides: [+exp=quick/fast_at, row=x], paper: {accuracy: [50, 1]}}}
"""
CSV = b"pressure,position,flow\n" + b"".join(b"%d,%d,%d\n" % (10 + i, i % 7, 20 + i) for i in range(40))


@BOUNDED
@given(damaged(RESULT))
def test_results(tmp_path, content):
    path = tmp_path / "outputs" / "x" / "1" / "result.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    try:
        Result.read(path)
        whole = True
    except DataError:
        whole = False
    with Index(tmp_path / "outputs") as index:
        assert (len(index.all()), len(index.damaged)) == ((1, 0) if whole else (0, 1))


@BOUNDED
@given(damaged(CHECKPOINT))
def test_checkpoints(tmp_path, content):
    (tmp_path / "last.pt").write_bytes(content)
    try:
        payload = load_file(tmp_path / "last.pt")
    except DataError:
        return
    assert isinstance(payload, dict)


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("save", [torch.save, pickle.dump], ids=["torch.save", "pickle"])
def test_no_code_in_a_file_is_run(tmp_path, save):
    proof = tmp_path / "proof"
    with open(tmp_path / "last.pt", "wb") as file:
        save({"model": Evil(proof)}, file)
    np.savez(tmp_path / "set.npz", images=np.array([Evil(proof)], dtype=object), labels=LABELS[:1])
    with pytest.raises(DataError):
        Checkpoints(tmp_path).load("last")
    with pytest.raises(DataError):
        obtain(str(tmp_path / "set.npz"))
    assert not proof.exists()


@BOUNDED
@given(damaged(NPZ))
def test_image_archives(tmp_path, content):
    (tmp_path / "set.npz").write_bytes(content)
    try:
        arrays = obtain(str(tmp_path / "set.npz"))
    except DataError:
        return
    assert len(arrays.train.images) == len(arrays.train.labels)


@BOUNDED
@given(damaged(idx(IMAGES)), damaged(idx(LABELS)))
def test_idx_files(tmp_path, images, labels):
    for prefix in ("train", "t10k"):
        (tmp_path / f"{prefix}-images-idx3-ubyte").write_bytes(images)
        (tmp_path / f"{prefix}-labels-idx1-ubyte").write_bytes(labels)
    try:
        arrays = obtain(str(tmp_path))
    except DataError:
        return
    assert len(arrays.train.images) == len(arrays.train.labels)


@BOUNDED
@given(damaged(CSV))
def test_csv_files(tmp_path, content):
    (tmp_path / "data.csv").write_bytes(content)
    sensors = [Column(column=name, min=0, max=60, tolerance=0.01) for name in ("pressure", "position")]
    target = Target(column="flow", max=100)
    table = Table(str(tmp_path / "data.csv"), target, sensors, None, (0.6, 0.2, 0.2), None, 0)
    try:
        splits, _ = read_table(table)
    except (DataError, ConfigError):
        return
    for inputs, targets in splits.values():
        assert np.isfinite(inputs).all()
        assert len(inputs) == len(targets) > 0


@BOUNDED
@given(damaged(TABLE))
def test_table_files(tmp_path, content):
    folder = tmp_path / "experiments" / "toy"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tables.yaml").write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "experiments_dir", lambda: tmp_path / "experiments")
        try:
            tables.load("toy")
        except ConfigError:
            return


@BOUNDED
@given(damaged(b'{"index":[0,1],"correct":[true,false]}\n{"index":[2,3],"correct":[true,true]}\n'))
def test_records_of_examples(tmp_path, content):
    (tmp_path / "examples.0.jsonl").write_bytes(content)
    try:
        columns = ExampleLog(tmp_path, columns=["correct"]).columns()
    except DataError:
        return
    assert len(columns["index"]) == len(columns["correct"])


# Shapes in which the services answer, in any combination with what they would never say.
WORDS = ("tags", "responses", "Labels", "outputs", "status", "error", "code", "labels", "model", "name", "confidence")
JSON = st.recursive(
    st.sampled_from([None, True, "", "3", "x", 0, 1, -1, 0.5, float("nan"), float("inf"), 10**400, 10_000, "9" * 30]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=4),
    max_leaves=12,
)
LABELS_ANSWER = {"model": "1", "labels": [[["3", 0.9], ["4", 0.1]]]}
ANSWERS = [
    json.dumps(answer).encode()
    for answer in (
        LABELS_ANSWER,
        {"tags": [{"name": "cat", "confidence": 0.9}], "modelVersion": "2021-05-01"},
        {"responses": [{"labelAnnotations": [{"description": "cat", "score": 0.9}]}]},
        {"Labels": [{"Name": "cat", "Confidence": 90.0}], "LabelModelVersion": "3.0"},
        {"status": {"code": 10_000}, "outputs": [{"status": {"code": 10_000}, "data": {"concepts": []}}]},
    )
]
BODIES = st.one_of(
    st.sampled_from(ANSWERS).flatmap(damaged),
    JSON.map(lambda content: json.dumps(content).encode()),
    JSON.map(lambda content: json.dumps({**LABELS_ANSWER, "model": content}).encode()),
    JSON.map(lambda content: json.dumps({**LABELS_ANSWER, "labels": [[[content, content]]]}).encode()),
    st.sampled_from([b"[" * 100_000, b'{"labels":' + b"[" * 5000 + b"]" * 5000 + b"}"]),
)
WAITS = st.none() | st.sampled_from(["0", "-1", "1e999", "nan", "99999999999", "soon", "Mon, 01 Jan 9999 00:00:00 GMT"])


@pytest.fixture
def answering(tmp_path, monkeypatch):
    """Asks a model behind an API about one image, and gets whatever the test wants it to."""
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    limits = Limits(retries=1, backoff=1e-4, longest=1e-3, timeout=5, concurrency=1)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            status, wait, body = replies[0]
            self.send_response(status)
            if wait is not None:
                self.send_header("Retry-After", wait)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_):
            """Who asked has gone."""

    replies: list = []
    with Server(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True).start()

        def ask(run, provider, labels, *reply):
            replies[:] = [reply]
            url = f"http://127.0.0.1:{http.server_address[1]}"
            query = Query(provider=provider, url=url, labels=labels, upscale=80, colour=True, limits=limits)
            spec = ClassificationSpec((1, 8, 8), 10)
            model = Queried(spec, denoiser=Denoiser(name="identity"), query=query)
            model.open(run, selection=1, planned=1)
            return model.answers(torch.rand(1, 1, 8, 8), torch.tensor([0]), torch.tensor([0]))

        yield ask
        http.shutdown()


@settings(BOUNDED, max_examples=150)
@given(
    st.sampled_from(["plain", "azure", "google", "aws", "clarifai"]),
    st.sampled_from(["numbers", "names"]),
    st.sampled_from([200, 200, 200, 204, 302, 400, 401, 429, 500, 503]),
    WAITS,
    BODIES,
)
def test_answers_of_services(tmp_path, run, answering, provider, labels, status, wait, body):
    shutil.rmtree(run.dir / "queries", ignore_errors=True)
    said = ""
    try:
        answer = answering(run, provider, labels, status, wait, body)
    except JobFailed as error:
        said = str(error)
    else:
        assert answer.shape == (1,)
        assert -1 <= int(answer) < 2**31
        LoggedVotes(run.dir / "queries" / "log.0.jsonl")  # what it said can be read back
    assert "\n" not in said


ENTRY = {"image": 0, "draw": 0, "stage": "selection", "sha256": "a" * 64, "label": "3", "version": None, "time": 1.5}
LOG = b"".join(json.dumps(line).encode() + b"\n" for line in ({"seed": 0}, ENTRY, {**ENTRY, "draw": 1}))


@BOUNDED
@given(damaged(LOG), damaged(b'"cat"\n"dog"\n'))
def test_logs_of_queries(tmp_path, content, names):
    (tmp_path / "log.jsonl").write_bytes(content)
    (tmp_path / "names.txt").write_bytes(names)
    with suppress(DataError):
        LoggedVotes(tmp_path / "log.jsonl")
    with suppress(DataError, ConfigError):
        QueryLog(tmp_path / "log.jsonl", {"seed": 0})
    with suppress(DataError):
        assert Vocabulary(tmp_path / "names.txt").number("new") >= 0


COMPOSER = []
TOKENS = [
    "+exp=",
    "task",
    "trainer.epochs",
    "=",
    "fast_at_cifar",
    "digits",
    ",",
    "${seed}",
    "[",
    "]",
    "{",
    "}",
    "'",
    '"',
    "1e999",
    "-1",
    "nan",
    "null",
    "~",
    "++",
    "seed",
    ".",
    "/",
    "@",
    ":",
    "model=module",
    "../..",
    "needs.x=",
    "é",
    "hydra.run.dir",
    "rows",
    "\\",
    "$",
    "(",
    ")",
    "*",
    "glob(*)",
    "range(3)",
]


@settings(BOUNDED, max_examples=150)
@given(st.lists(st.lists(st.sampled_from(TOKENS), max_size=6).map("".join), min_size=1, max_size=3))
def test_overrides(overrides):
    if not COMPOSER:
        COMPOSER.append(Composer.create())
    said = ""
    try:
        points = COMPOSER[0].expand(overrides)
        if len(points) < 4:
            plan(COMPOSER[0], points)
    except RobustrunError as error:
        said = str(error)
    assert "\n" not in said
