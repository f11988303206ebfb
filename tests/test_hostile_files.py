"""Damaged pictures, films, weights, networks, tables and run directories: a sentence of ours or a correct answer."""

import io
import zlib
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from safetensors.torch import save as save_safetensors
from torch import nn

import robustrun
from robustrun import cli
from robustrun.compose import Composer
from robustrun.data import obtain
from robustrun.data.image_folder import ImageFolder
from robustrun.data.tabular import table
from robustrun.errors import ConfigError, DataError, RobustrunError
from robustrun.plan import plan
from robustrun.query.onnx_file import OnnxClassifier
from robustrun.tasks.trajectories import Recorded
from robustrun.tasks.video import Film
from robustrun.trainers.ready import Load
from tests.test_hostile import BOUNDED, damaged, saved

PIXELS = (np.arange(12 * 12 * 3) % 251).astype(np.uint8).reshape(12, 12, 3)


def picture(form: str, **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, form, **options)
    return buffer.getvalue()


PNG, GIF = picture("PNG"), picture("GIF", save_all=True, append_images=[Image.fromarray(255 - PIXELS)])
_HEADER = b"IHDR" + b"\x00\x01\xff\xff" * 2 + PNG[24:29]
HUGE = PNG[:12] + _HEADER + zlib.crc32(_HEADER).to_bytes(4) + PNG[33:]  # says that it is 131071 x 131071


@BOUNDED
@given(st.sampled_from([PNG, HUGE]).flatmap(damaged) | st.just(HUGE))
def test_pictures_of_a_class(tmp_path, content):
    (tmp_path / "train" / "cat").mkdir(parents=True, exist_ok=True)
    (tmp_path / "train" / "cat" / "1.png").write_bytes(content)
    images = ImageFolder(tmp_path, "train", size=8, crop="centre")
    try:
        image, label, _ = images[0, 0]
    except DataError:
        return
    assert image.shape == (3, 8, 8)
    assert label == 0


@BOUNDED
@given(st.sampled_from([PNG, HUGE]).flatmap(damaged), damaged(GIF), st.booleans())
def test_films(tmp_path, run, frame, gif, as_folder):
    (tmp_path / "frames").mkdir(exist_ok=True)
    for number, content in enumerate([PNG, PNG, frame]):
        (tmp_path / "frames" / f"{number}.png").write_bytes(content)
    (tmp_path / "film.gif").write_bytes(gif)
    try:
        Film(path=str(tmp_path / ("frames" if as_folder else "film.gif")), held_out=0.5).load(run)
    except (DataError, ConfigError):
        return


SPRITE = saved(lambda file: Image.fromarray(np.zeros((2, 1024, 3), np.uint8)).save(file, "PNG"))


@BOUNDED
@given(damaged(SPRITE), damaged(b"[0, 1]"))
def test_sprites(tmp_path, sprite, labels):
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        (tmp_path / f"{name}.png").write_bytes(sprite if name == "data_batch_3" else SPRITE)
    (tmp_path / "train_lables.json").write_bytes(labels if len(labels) > 6 else b"[0,1,0,1,0,1,0,1,0,1]")
    (tmp_path / "test_lables.json").write_bytes(labels)
    try:
        arrays = obtain(f"{tmp_path}/")
    except DataError:
        return
    assert len(arrays.train.images) == len(arrays.train.labels)


@settings(BOUNDED, max_examples=20)
@given(st.binary(max_size=300) | st.just(b"MATLAB 5.0 MAT-file".ljust(124) + b"\0\1IM" + b"\xff" * 64))
def test_mat_files(tmp_path, content):
    for name in ("train_32x32.mat", "test_32x32.mat"):
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError):
        obtain("svhn", tmp_path, download=False)


def linear_onnx() -> bytes:
    weight = numpy_helper.from_array(np.ones((3, 12), np.float32), "w")
    nodes = [helper.make_node("Flatten", ["x"], ["f"]), helper.make_node("Gemm", ["f", "w"], ["y"], transB=1)]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 3, 2, 2])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 3])
    model = helper.make_model(helper.make_graph(nodes, "g", [x], [y], [weight]), ir_version=8)
    model.opset_import[0].version = 17
    onnx.checker.check_model(model)
    return model.SerializeToString()


ONNX = linear_onnx()


@BOUNDED
@given(damaged(ONNX))
def test_networks(tmp_path, content):
    (tmp_path / "net.onnx").write_bytes(content)
    try:
        logits = OnnxClassifier(tmp_path / "net.onnx")(torch.rand(2, 3, 2, 2))
    except DataError as error:
        said = str(error)
    else:
        said = ""
        assert len(logits) == 2
    assert "\n" not in said


STATE = {"weight": torch.ones(2, 3), "bias": torch.zeros(2)}
WEIGHTS = {
    "pt": saved(lambda file: torch.save({"state_dict": STATE}, file)),
    "safetensors": save_safetensors(STATE),
}
ODD = [
    saved(lambda file, content=content: torch.save(content, file))
    for content in ({}, {1: 2}, {"model": {}}, {"weight": "x", "bias": None}, {"model": {3: torch.ones(2)}}, [STATE])
]


@BOUNDED
@given(st.sampled_from(sorted(WEIGHTS)).flatmap(lambda form: st.tuples(st.just(form), damaged(WEIGHTS[form]))))
def test_weights(tmp_path, file):
    form, content = file
    _load_weights(tmp_path / f"weights.{form}", content)


@pytest.mark.parametrize("content", ODD)
def test_odd_weights(tmp_path, content):
    with pytest.raises((DataError, ConfigError)):
        _load_weights(tmp_path / "weights.pt", content, swallow=())


def _load_weights(path: Path, content: bytes, swallow=(DataError, ConfigError)) -> None:
    path.write_bytes(content)
    try:
        fitted = Load(path=str(path)).fit(None, nn.Linear(3, 2), None)
    except swallow as error:
        said = str(error)
    else:
        said = ""
        assert fitted.model.weight.shape == (2, 3)
    assert "\n" not in said


STATES = b"time,x,v\n" + b"".join(b"%.1f,%d,%d\n" % (i / 10, i % 5, i % 3) for i in range(20))
CLASSES = b"a,b,class\n" + b"".join(b"%d,%d,%d\n" % (i, i % 7, i % 2) for i in range(30))


@BOUNDED
@given(damaged(STATES), damaged(CLASSES))
def test_tables_of_states_and_of_classes(tmp_path, run, states, classes):
    (tmp_path / "states.csv").write_bytes(states)
    (tmp_path / "classes.csv").write_bytes(classes)
    try:
        Recorded(files=str(tmp_path / "states.csv"), time="time").load(run)
    except RobustrunError as error:
        said = str(error)
    else:
        said = ""
    try:
        X, y = table(str(tmp_path / "classes.csv"))
    except (DataError, ConfigError) as error:
        said += str(error)
    else:
        assert np.isfinite(X).all()
        assert len(X) == len(y)
    assert "\n" not in said


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run directory."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    model = ["task=digits", "task.test_limit=20", "model=mlp_classifier", "trainer=standard", "trainer.epochs=1"]
    assert cli.run([*model, "certifier=accuracy", f"hydra.run.dir={folder}"]) == 0
    return folder


@BOUNDED
@given(st.data())
def test_run_directories(finished, data):
    file = finished / "config.yaml"
    whole = file.read_bytes()
    file.write_bytes(data.draw(damaged(whole)))
    try:
        robustrun.load(finished)(torch.rand(1, 1, 8, 8))
    except RobustrunError as error:
        said = str(error)
    else:
        said = ""
    finally:
        file.write_bytes(whole)
    assert "\n" not in said


EXP = b"""# @package _global_
# A toy
defaults:
  - override /task: digits
  - override /model: mlp_classifier
  - override /trainer: fgsm
  - override /certifier: pgd
  - override /threat: linf_mnist
  - _self_
needs: {}
rows: {one: [trainer.epochs=1], two: [trainer.epochs=2]}
paper_metrics: {clean_accuracy: 0.5}
"""
NOISE = [b"${", b"}", b": ", b"- ", b"!!python/object/apply:os.system [x]", b"&a ", b"*a", b"\t", b"{", b"[", b"null"]


@settings(BOUNDED, max_examples=40)
@given(damaged(EXP), st.sampled_from(NOISE), st.integers(0, len(EXP)))
def test_configs(tmp_path, content, noise, at):
    (tmp_path / "exp").mkdir(exist_ok=True)
    (tmp_path / "exp" / "hostile.yaml").write_bytes(content[:at] + noise + content[at:])
    composer = Composer.create(tmp_path)
    try:
        jobs = plan(composer, [["+exp=hostile"]])
    except RobustrunError as error:
        said = str(error)
    else:
        said = ""
        assert jobs
    assert "\n" not in said


@pytest.mark.parametrize(
    "line",
    ["rows: {one: [{trainer.epoc: 2}]}", "rows: text", "rows: [1]", "needs: text", "needs: [a]", "needs: {a: 3}",
     "paper_metrics: text", "paper_metrics: {clean_accuracy: high}", "paper_metrics: {clean_accuracy: [1]}"],
)  # fmt: skip
def test_configs_of_the_wrong_shape(tmp_path, line):
    (tmp_path / "exp").mkdir()
    (tmp_path / "exp" / "hostile.yaml").write_bytes(b"\n".join([*EXP.split(b"\n")[:9], line.encode()]))
    with pytest.raises(ConfigError) as caught:
        plan(Composer.create(tmp_path), [["+exp=hostile"]])
    assert "\n" not in str(caught.value)
