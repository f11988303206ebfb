"""The three phases of FGSM training on ImageNet, as needs of each other, on a generated folder of its layout."""

import json

import numpy as np
import pytest
from PIL import Image

SMALL = "task.size=32 task.workers=0 model=resnet18 trainer.epochs=1 trainer.batch_size=8"


@pytest.fixture
def data(tmp_path):
    generator = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 3)):
        for label in range(2):
            folder = tmp_path / "data" / "imagenet" / split / f"n{label}"
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = generator.integers(0, 100, (40 + index, 50, 3)) + label * 100
                Image.fromarray(pixels.astype("uint8")).save(folder / f"{index}.jpg")
    return str(tmp_path / "data")


@pytest.mark.slow
def test_three_phases(cli, data, tmp_path):
    first = f'needs.previous="fast_at_imagenet_1 {SMALL}"'
    second = f"needs.previous='fast_at_imagenet_2 {SMALL} {first}'"
    attack = ["certifier.steps=2", "certifier.restarts=2"]
    done = cli("+exp=fast_at_imagenet", *SMALL.split(), *attack, second, ROBUSTRUN_DATA=data)
    assert done.returncode == 0, done.stderr
    outputs = tmp_path / "outputs"
    (result,) = outputs.glob("fast_at_imagenet/*/result.json")
    assert json.loads(result.read_text())["counts"]["examples"] == 6
    for phase in (1, 2):
        (need,) = outputs.glob(f"fast_at_imagenet_{phase}/*/result.json")
        assert json.loads(need.read_text())["env"]["world_size"] == 1
