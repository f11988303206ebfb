"""Every model x trainer x certifier on every kind of task: it runs and certifies, or is refused with one sentence.

The suite runs a selection in which every implementation occurs; with ROBUSTRUN_CROSSINGS=all every pair of them does,
which takes some minutes.
"""

import functools
import itertools
import math
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from torch import nn

from robustrun import cli
from robustrun.catalogue import files
from robustrun.fit import misfit
from robustrun.registry import AXES

FEW = {"epochs": 1, "batch_size": 32}

# The smallest sensible size of every implementation; options where the first one is not it.
SMALL = {
    "task": {
        "images": ("digits", {"limit": 64, "test_limit": 12}),
        "class_subset": ("digits17", {}),
        "one_against_rest": ("mnist_0", {"dataset": "digits", "limit": 64, "test_limit": 12}),
        "injector": ("injector", {"train": 64, "valid": 16, "test": 12}),
        "pendulum": ("pendulum_1", {"points_per_link": 60}),
        "texture": ("texture", {"frame_count": 24}),
        "unsafe_grid": ("unsafe_grid_small", {"steps": 300}),
        "street_scenes": ("street_scenes", {"train": 8, "test": 2}),
    },
    "model": {
        "cifar_resnet": ("cifar_resnet20", {"width": 2}),
        "contrastive": ("contrastive", {"width": 4, "projection": 8}),
        "denoised": ("denoised_small", {"denoiser.width": 4, "denoiser.depth": 3}),
        "latent_video": ("latent_video_small", {}),
        "linear_fourier": ("linear_fourier", {"dimension": 20}),
        "mdeq": ("mdeq_quick", {"channels": "[8,8]", "halvings": 0, "forward_steps": 3, "backward_steps": 3}),
        "mdeq_segmentation": ("mdeq_segmentation", {
            "channels": "[8,8]", "expansion": 1, "groups": 4, "halvings": 2, "forward_steps": 3, "backward_steps": 3}),
        "module": ("module", {"target": "tests.exp.test_crossings:Net"}),
        "mon_conv": ("mon_conv", {"channels": 4}),
        "mon_fc": ("mon_fc", {"features": 10}),
        "mon_multi": ("mon_multi", {"channels": "[2,3,4]"}),
        "deq_fc": ("deq_fc", {"features": 10}),
        "preact_resnet18": ("preact_resnet18", {"width": 4}),
        "rica": ("rica", {"filters": 10, "patch": 4}),
        "wide_resnet": ("wide_resnet", {"depth": 10, "widen_factor": 1}),
        "stable_dynamics": ("stable_dynamics", {"hidden": "[8]", "lyapunov.hidden": "[8,8]"}),
    },
    "trainer": {
        "adversarial": ("pgd", FEW | {"steps": 2}),
        "standard": ("standard", FEW),
        "least_squares": ("least_squares", {}),
        "none": ("none", {}),
        # 51 examples: of batches of 25 a single one is left, whose one pixel cannot be normalised
        "ap_perf": ("ap_perf", {"epochs": 1, "penalties": "[0.01]", "batch_size": 16}),
        "cross_entropy": ("cross_entropy", {"epochs": 1, "penalties": "[0.01]", "batch_size": 16}),
        "free": ("free", FEW | {"replays": 2}),
        "rica": ("rica", {"epochs": 1, "patches": 200, "batch_size": 50}),
        "one_step": ("one_step", {"epochs": 1}),
        "trajectory": ("trajectory", {"epochs": 1, "horizon": 2}),
        "latent_video": ("latent_video_small", {"epochs": 1, "batch_size": 12}),
        "ase": ("ase", {"trials": 1}),
        "rmax": ("rmax", {"trials": 1}),
        "mbie": ("mbie", {"trials": 1}),
        "epsilon_greedy": ("epsilon_greedy", {"trials": 1}),
    },
    "certifier": {
        "accuracy": ("accuracy", {}),
        "autoattack": ("autoattack", {"examples": 6, "steps": 2, "queries": 5, "targets": 2}),
        "best_last": ("best_last", {"examples": 6, "steps": 2, "states": "[last]"}),
        "deep_equilibrium": ("deep_equilibrium", {
            "examples": 6, "study.examples": 4, "study.steps": 4, "study.depths": "[1,2]",
            "study.gradient_examples": 2, "study.gradient_layers": "[1,2]"}),
        "equilibrium": ("equilibrium", {
            "examples": 6, "study.examples": 4, "study.alphas": "[1.0,0.5]", "study.max_iterations": 20}),
        "label_flip": ("label_flip", {"examples": 6}),
        "label_flip_attack": ("label_flip_attack", {"examples": 6, "components": 3}),
        "label_flip_sampling": ("label_flip_sampling", {"examples": 6, "samples": 20}),
        "metric": ("metric", {"resamples": 20}),
        "neighbours": ("neighbours", {"examples": 6, "neighbours": 3}),
        "pgd": ("pgd", {"examples": 6, "steps": 2, "restarts": 1}),
        "safe_exploration": ("safe_exploration", {"frames": 2}),
        "sensor_error": ("sensor_crown", {"examples": 6, "attack_steps": 2, "restarts": 1}),
        "smoothing": ("smoothing", {"examples": 3, "n0": 5, "n": 20}),
        "stability": ("stability", {
            "starts": 5, "steps": 10, "far_steps": 5, "times": "[0.05]",
            "attack_starts": 20, "attack_steps": 2, "film": 0}),
        "video_stability": ("video_stability", {
            "steps": 20, "times": "[10]", "film": 0, "attack_starts": 20, "attack_steps": 2}),
    },
}  # fmt: skip
# What asks for another job, a file or a service, and is crossed by tests of its own.
APART = {
    "denoised", "queried", "linear_on_encoder", "load", "denoiser", "cifar_zoo", "resnet", "feature_cnn",
    "cnn_classifier",
}  # fmt: skip
KINDS = (
    "images", "class_subset", "one_against_rest", "street_scenes", "injector", "pendulum", "texture", "unsafe_grid",
)  # fmt: skip


# What is refused only once it is built, since only the built parts tell: some of a cell, and the sentence.
REFUSED = {
    ("images", "label_flip_attack"): "these attacks flip labels of two classes, not of 10",
    ("street_scenes", "module"): "a label for every pixel takes (B, 5, H, W)",
    ("rest", "one_step"): "this model has no parameters to train: use trainer=none",
    ("rest", "trajectory"): "this model has no parameters to train: use trainer=none",
}


class Net(nn.Sequential):
    """Anyone's module."""

    def __init__(self, spec):
        outputs = spec.classes if hasattr(spec, "classes") else spec.outputs
        super().__init__(nn.Flatten(), nn.Linear(math.prod(spec.input_shape), outputs))


@functools.cache
def smallest(axis: str) -> dict[str, tuple[str, dict]]:
    """Implementation -> option and overrides."""
    found = dict(SMALL[axis])
    held = files(axis)
    for option in held:
        plain = _plain(held, option)
        found.setdefault(plain["name"], (option, {key: value for key, value in FEW.items() if key in plain}))
    return {name: value for name, value in found.items() if name in AXES[axis].names() and name not in APART}


def _plain(held: dict[str, Path], option: str) -> dict:
    """An option's keys with those of the option that it builds on; reading them so takes no composition."""
    own = yaml.safe_load(held[option].read_text())
    base = next((name for name in own.pop("defaults", []) if isinstance(name, str) and name in held), None)
    return (_plain(held, base) if base else {}) | own


def fitting(task: str) -> list[tuple[str, str, str]]:
    """(model, trainer, certifier) that fit the task, by implementation."""
    products = itertools.product(*(smallest(axis) for axis in ("model", "trainer", "certifier")))
    return [c for c in products if misfit(*(AXES[a][n] for a, n in zip(AXES, (task, *c), strict=True))) is None]


def selection(task: str, everything: bool, seen: set) -> Iterator[tuple[str, str, str]]:
    """Cells in which every implementation occurs that was not seen on another task, or every pair of them."""
    cells = fitting(task)

    def parts(cell):
        model, trainer, certifier = cell
        if everything:
            return {("mt", model, trainer), ("tc", trainer, certifier), ("mc", model, certifier)}
        return {("m", model), ("t", trainer), ("c", certifier)}

    left = set().union(*map(parts, cells)) - seen
    seen |= left
    # Those that fit with least come first, or they would be left with cells of their own.
    cells.sort(key=lambda cell: sum(sum(name in other for other in cells) for name in cell))
    while left:
        best = max(cells, key=lambda cell: len(parts(cell) & left))
        left -= parts(best)
        yield best


def crossings() -> list[tuple[str, str, str, str]]:
    everything = os.environ.get("ROBUSTRUN_CROSSINGS") == "all"
    seen: set = set()
    return [(task, *cell) for task in KINDS for cell in selection(task, everything, seen)]


def overrides(cell: tuple[str, ...]) -> list[str]:
    typed = []
    for axis, name in zip(AXES, cell, strict=True):
        option, small = smallest(axis)[name]
        typed += [f"{axis}={option}", *(f"{axis}.{key}={value}" for key, value in small.items())]
    return typed


@pytest.mark.slow
@pytest.mark.parametrize("cell", crossings(), ids="-".join)
def test_a_crossing_runs_and_certifies(cell, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("ROBUSTRUN_OUTPUTS", str(tmp_path))
    code = cli.run(overrides(cell))
    said = capfd.readouterr()
    refusal = next((sentence for some, sentence in REFUSED.items() if set(some) <= set(cell)), None)
    if refusal:
        assert code == 2
        assert refusal in said.err
        assert said.err.count("\n") == 1
        return
    assert code == 0, said.err
    assert len(list(tmp_path.rglob("result.json"))) == 1


# -------------------------------------------------------------------------------- those that the README names

DIGITS = ("task=digits", "task.limit=64", "task.test_limit=12")
MONOTONE = "mon_fc task=digits task.limit=64 model.features=10 trainer.epochs=1 certifier.examples=6"
NAMED = {
    "a multiscale DEQ under PGD training, certified by AutoAttack": (
        *DIGITS, "model=mdeq_quick", "model.halvings=0", "model.channels=[8,8]", "model.forward_steps=3",
        "model.backward_steps=3", "trainer=pgd", "trainer.epochs=1", "trainer.steps=2", "certifier=autoattack",
        "certifier.examples=4", "certifier.steps=2", "certifier.queries=4", "certifier.targets=2",
        "threat.epsilon=0.1"),
    "a monotone network behind a denoiser, under randomized smoothing": (
        *DIGITS, f"+needs.classifier='{MONOTONE}'", "model=denoised_small", "model.denoiser.width=4",
        "model.denoiser.depth=3", "trainer=denoiser", "trainer.epochs=1", "certifier=smoothing", "certifier.examples=3",
        "certifier.n0=5",
        "certifier.n=20"),
    "certificates against flipped labels on features of an adversarially trained network": (
        "+exp=label_flip_mnist17_cnn", "task=digits17", "certifier.examples=4", "certifier.partitions=0",
        'needs.encoder="label_flip_encoder task=digits task.limit=64 trainer=pgd trainer.epochs=1 trainer.steps=1"'),
    "a stable dynamics model whose Lyapunov decrease CROWN verifies": (
        "task=pendulum_1", "task.points_per_link=60", "model=stable_dynamics", "model.hidden=[8]", "trainer=one_step",
        "model.lyapunov.hidden=[8,8]", "trainer.epochs=1", "certifier=stability_quick", "certifier.starts=5",
        "certifier.steps=10", "certifier.far_steps=5", "certifier.times=[0.05]", "certifier.attack_starts=20",
        "certifier.film=0"),
    "any module by its import path": (
        *DIGITS, "model=module", "model.target=tests.exp.test_crossings:Net", "trainer=pgd", "trainer.epochs=1",
        "trainer.steps=1", "certifier=pgd", "certifier.examples=4", "certifier.steps=2", "certifier.restarts=1"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMED)
def test_a_named_crossing(name, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("ROBUSTRUN_OUTPUTS", str(tmp_path))
    code = cli.run(list(NAMED[name]))
    assert code == 0, capfd.readouterr().err


def test_a_sensor_is_not_trained_for_a_metric_of_classes(capfd):
    assert cli.run(["task=injector", "model=mlp_regressor", "trainer=ap_perf", "certifier=sensor_crown"]) == 2
    said = capfd.readouterr().err
    assert "trainer=ap_perf does not fit task=injector: it works on a BinaryTask" in said
    assert "trainers that fit here: adversarial_regression" in said
