"""Every config file composes and type-checks, and the axes of every experiment can be swapped."""

import functools
import itertools
import json
import os
import random
import re
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from robustrun.catalogue import GROUPS, describe, files, options
from robustrun.check import check, rows_of
from robustrun.compose import Composer
from robustrun.errors import ConfigError
from robustrun.fit import misfit
from robustrun.paths import conf_dir
from robustrun.registry import AXES, parameters

EXPERIMENTS = list(options("exp"))
OPTIONS = [(axis, option) for axis in AXES for option in options(axis)]


@functools.cache
def composer():
    return Composer.create()


@functools.cache
def raw(axis, option):
    """An option's own config, interpolations left alone: its file over that of the option it builds on."""
    held = files(axis)
    own = yaml.safe_load(held[option].read_text())
    defaults = own.pop("defaults", [])
    base = next((raw(axis, name) for name in defaults if isinstance(name, str) and name in held), {})
    return OmegaConf.to_container(OmegaConf.merge(base, own), resolve=False)


def implementation(axis, option):
    return AXES[axis][raw(axis, option)["name"]]


@pytest.mark.parametrize(("axis", "option"), OPTIONS, ids=[f"{a}={o}" for a, o in OPTIONS])
def test_an_option_holds_exactly_the_keys_of_its_implementation(axis, option):
    keys = set(raw(axis, option)) - {"name"}
    assert keys == set(parameters(implementation(axis, option)))


@pytest.mark.parametrize("file", sorted(conf_dir().rglob("*.yaml")), ids=lambda f: f.relative_to(conf_dir()).as_posix())
def test_a_file_describes_itself(file: Path):
    if file.name == "config.yaml" or file.parent.name not in {*GROUPS, "quick"}:
        return
    assert 10 < len(describe(file)) < 120, "the first comment line of a config file says what it is"


@pytest.mark.parametrize("exp", EXPERIMENTS)
def test_an_experiment_composes_and_checks(exp, tmp_path, monkeypatch):
    monkeypatch.setenv("ROBUSTRUN_OUTPUTS", str(tmp_path))
    jobs = [check(composer().compose(row), composer()) for row in rows_of(composer(), [f"+exp={exp}"])]
    assert len({job.sha256 for job in jobs}) == len(jobs)
    assert jobs[0].config.paper or exp.startswith("quick/"), "an experiment says which paper it belongs to"
    assert not any(tmp_path.iterdir())


def _required(axis, option):
    """Keys and needs that an option leaves to the user, filled for the test."""
    fill = {"target": "torch.nn:Identity", "path": "somewhere"}
    required = [
        f"{axis}.{key}={fill.get(key, 'somewhere')}" for key, value in raw(axis, option).items() if value == "???"
    ]
    # An option that builds on another job's model reads it as a need: any file stands for that here.
    needs = sorted(set(re.findall(r"\$\{needs\.(\w+)\}", json.dumps(raw(axis, option)))))
    return required + [f"++needs.{name}={__file__}" for name in needs]


@functools.cache
def _row(exp):
    """An experiment's first row, and the implementations of its axes."""
    row = rows_of(composer(), [f"+exp={exp}"])[0]
    # What it needs is composed by other tests; any file stands for that here.
    row += [f"++needs.{name}={__file__}" for name in composer().compose(row).needs]
    return row, {axis: c.implementation for axis, c in check(composer().compose(row), composer()).axes.items()}


@functools.cache
def _one_an_implementation():
    """The first option of every implementation: options of one have the same keys, so one of them stands for all."""
    return {(axis, implementation(axis, option)): option for axis, option in reversed(OPTIONS)}


def _swaps(exp, kinds):
    """Two other implementations an axis, drawn by the experiment's name; with ROBUSTRUN_CROSSINGS=all every one.

    What an experiment would leave behind lies below the axis, whichever option replaces its own.
    """
    for axis in AXES:
        fitting = [
            (other, option)
            for (of, other), option in _one_an_implementation().items()
            if of == axis and misfit(**kinds | {axis: other}) is None
        ]
        few = len(fitting) if os.environ.get("ROBUSTRUN_CROSSINGS") == "all" else 2
        for _, option in random.Random(f"{exp} {axis}").sample(fitting, min(few, len(fitting))):
            yield axis, option


@pytest.mark.parametrize("exp", EXPERIMENTS)
def test_each_axis_can_be_swapped_for_what_fits(exp, tmp_path, monkeypatch):
    """A swap leaves no value of the old option behind: it would be an unknown key, or a silent recipe."""
    monkeypatch.setenv("ROBUSTRUN_OUTPUTS", str(tmp_path))
    row, kinds = _row(exp)
    swapped = set()
    for axis, option in _swaps(exp, kinds):
        own = [text for text in row if not text.startswith((f"{axis}=", f"{axis}."))]
        overrides = [*own, f"{axis}={option}", *_required(axis, option)]
        try:
            config = composer().compose(overrides)
            check(config, composer())
        except ConfigError as error:
            raise AssertionError(f"{axis}={option}: {error}") from error
        assert set(config[axis]) == set(raw(axis, option)), f"{axis}={option} under {exp} has keys of another option"
        swapped.add(axis)
    assert swapped == set(AXES)


@pytest.mark.parametrize("exp", EXPERIMENTS)
def test_an_experiment_chooses_and_holds_no_recipe(exp):
    """Values of its own below an axis would stay behind under a swap."""
    content = yaml.safe_load(files("exp")[exp].read_text())
    assert not set(content) & set(AXES)


@pytest.mark.parametrize(("axis", "option"), OPTIONS, ids=[f"{a}={o}" for a, o in OPTIONS])
def test_an_option_can_be_swapped_in(axis, option, tmp_path, monkeypatch):
    """Every option once, in an experiment that its implementation fits, or fits with another trainer."""
    monkeypatch.setenv("ROBUSTRUN_OUTPUTS", str(tmp_path))
    other = implementation(axis, option)
    trainers = [(None, None), *((n, o) for (a, n), o in _one_an_implementation().items() if a == "trainer" != axis)]
    # Quick ones first: they have tasks of nearly every kind, and composing the others is what takes long.
    for exp, (fitted_by, trainer) in itertools.product(sorted(EXPERIMENTS, key=lambda e: "quick/" not in e), trainers):
        row, kinds = _row(exp)
        if misfit(**kinds | {axis: other} | ({"trainer": fitted_by} if fitted_by else {})) is None:
            swapped = [(axis, option)] + ([("trainer", trainer)] if trainer else [])
            own = [t for t in row if not t.startswith(tuple(f"{a}{mark}" for a, _ in swapped for mark in "=."))]
            typed = [text for a, o in swapped for text in (f"{a}={o}", *_required(a, o))]
            check(composer().compose([*own, *typed]), composer())
            return
    raise AssertionError(f"{axis}={option} fits no experiment")
