"""Damaged and hostile files and requests: one of our errors or a correct answer, never another exception or a hang."""

import io
import json
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from robustrun.compose import Composer
from robustrun.data import obtain
from robustrun.errors import ConfigError, DataError, RobustrunError
from robustrun.plan import plan
from robustrun.report import tables
from robustrun.report.index import Index
from robustrun.report.results import Result
from robustrun.runtime import ExampleLog
from robustrun.runtime.checkpoints import Checkpoints, load_file
from robustrun.tasks.sensor_table import Column, Table, Target, read_table

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
    sensors = [Column(column=name, min=0, max=60, tol=0.01) for name in ("pressure", "position")]
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
