import json
from pathlib import Path

import pytest

from robustrun.check import check, only_job, rows_of
from robustrun.compose import Composer
from robustrun.errors import ConfigError
from robustrun.plan import plan, waves


@pytest.fixture(scope="module")
def composer():
    return Composer.create()


@pytest.fixture(autouse=True)
def outputs(tmp_path, monkeypatch):
    monkeypatch.setenv("ROBUSTRUN_OUTPUTS", str(tmp_path))
    return tmp_path


FAST = "+exp=fast_at_cifar"


def job(composer, *overrides):
    return check(composer.compose(overrides), composer)


def test_the_directory_follows_from_the_identity(composer, outputs):
    found = job(composer, FAST)
    assert found.directory == outputs / "fast_at_cifar" / found.run_id
    assert len(found.run_id) == 12
    assert not any(outputs.iterdir())  # composing and checking make nothing


@pytest.mark.parametrize(
    "overrides",
    [
        ["runtime.threads=1"],
        ["runtime.device=cpu"],
        ["tracker=wandb"],
        ["trainer.epochs=30"],
        ["threat.epsilon=0.03137254901960784"],
    ],
)
def test_what_cannot_change_a_result_does_not_change_the_identity(composer, overrides):
    assert job(composer, FAST, *overrides).sha256 == job(composer, FAST).sha256


@pytest.mark.parametrize(
    "overrides",
    [
        ["seed=1"],
        ["trainer.epochs=29"],
        ["threat.epsilon=9/255"],
        ["task.limit=100"],
        ["model.width=32"],
        ["certifier.steps=49"],
    ],
)
def test_what_can_does(composer, overrides):
    assert job(composer, FAST, *overrides).sha256 != job(composer, FAST).sha256


def test_a_shared_node_reaches_trainer_and_certifier(composer):
    axes = job(composer, FAST, "threat.epsilon=16/255").axes
    assert axes["trainer"].values["epsilon"] == axes["certifier"].values["epsilon"] == 16 / 255
    assert axes["trainer"].values["alpha"] == pytest.approx(20 / 255, rel=1e-15)


def test_an_override_without_effect_is_refused(composer):
    with pytest.raises(ConfigError, match="nothing in this job reads noise"):
        job(composer, FAST, "noise.sigma=1")


def test_rows_come_before_what_the_user_typed(composer):
    rows = rows_of(composer, ["+exp=quick/fast_at", "trainer=free"])
    assert all("trainer=pgd_mnist_quick" not in row for row in rows)
    assert rows_of(composer, ["+exp=quick/fast_at", "row=PGD-7"])[0][-1] == "row=PGD-7"
    assert len(rows) == 3


def test_rows_that_compose_to_the_same_job_are_refused(composer):
    with pytest.raises(
        ConfigError, match="rows 'zero start' and 'random start' of quick/fast_at compose to the same job"
    ):
        plan(composer, [["+exp=quick/fast_at", "trainer.start=zero"]])


def test_a_sweep_is_a_product_and_reaches_keys_that_only_an_experiment_defines(composer):
    points = composer.expand(["+exp=fast_at_cifar,pgd_at_cifar", "trainer.epochs=1", "seed=0,1"])
    assert len(points) == 4
    jobs = plan(composer, points)
    assert len({j.directory for j in jobs}) == 4
    assert {j.axes["trainer"].values["epochs"] for j in jobs} == {1}


@pytest.mark.parametrize("sweep", ["+exp=glob(quick/fast_at*)", "+exp/quick=glob(fast_at*)"])
def test_a_sweep_over_experiments_of_a_folder(composer, sweep):
    points = composer.expand([sweep, "seed=1"])
    assert points == [["+exp=quick/fast_at", "seed=1"], ["+exp=quick/fast_at_alpha", "seed=1"]]
    with pytest.raises(ConfigError, match="no experiment is called so"):
        composer.expand(["+exp=glob(quicker/*)"])


def test_a_job_typed_twice_runs_once(composer):
    assert len(plan(composer, composer.expand([FAST, "seed=0,0"]))) == 1


# ------------------------------------------------------------------------------------------------ needs

NEEDS = "+exp=quick/fast_at", "row=random start"


def needing(composer, text, *more):
    return job(
        composer, "+exp=fast_at_mnist", f"+needs.first={text}", "trainer=load", "trainer.path=${needs.first}", *more
    )


def test_a_need_is_identified_by_what_it_is_and_not_by_where_it_lies(composer, tmp_path, monkeypatch):
    one = needing(composer, "'fast_at_mnist seed=3'")
    monkeypatch.setenv("ROBUSTRUN_OUTPUTS", str(tmp_path / "elsewhere"))
    other = needing(composer, "'fast_at_mnist seed=3'")
    assert one.sha256 == other.sha256
    assert one.axes["trainer"].values["path"] != other.axes["trainer"].values["path"]
    assert needing(composer, "'fast_at_mnist seed=4'").sha256 != one.sha256


def test_needs_run_first_and_once(composer):
    jobs = [needing(composer, "'fast_at_mnist seed=3'"), needing(composer, "'fast_at_mnist seed=3'", "seed=9")]
    first, second = waves(jobs)
    assert [j.seed for j in first] == [3]
    assert sorted(j.seed for j in second) == [0, 9]


def test_needs_carry_where_things_run_but_not_what_is_run(composer):
    need = needing(composer, "'fast_at_mnist seed=3'", "runtime.device=cpu", "seed=5").needs["first"].job
    assert need.config.runtime.device == "cpu"
    assert need.seed == 3


def test_a_file_is_identified_by_its_content(composer, tmp_path):
    weights = tmp_path / "w.pt"
    weights.write_bytes(b"one")
    one = needing(composer, str(weights))
    weights.write_bytes(b"two")
    assert needing(composer, str(weights)).sha256 != one.sha256


def test_a_run_directory_must_be_finished(composer, tmp_path):
    with pytest.raises(ConfigError, match=r"holds no finished run: there is no result\.json"):
        needing(composer, str(tmp_path))
    (tmp_path / "result.json").write_text(json.dumps({"config_sha256": "f" * 64}))
    assert needing(composer, str(tmp_path)).needs["first"].identity == "f" * 64


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("nonsense", "neither an experiment nor an existing run directory or file"),
        ("quick/fast_at", "a comparison of 3 rows"),
    ],
)
def test_bad_needs(composer, text, sentence):
    with pytest.raises(ConfigError, match=sentence):
        needing(composer, text)


def test_needs_in_a_circle(tmp_path):
    for name, other in (("a", "b"), ("b", "a")):
        file = tmp_path / "conf" / "exp" / f"{name}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"# @package _global_\ndefaults: [fast_at_mnist, _self_]\nneeds: {{x: {other}}}\n")
    composer = Composer.create(tmp_path / "conf")
    with pytest.raises(ConfigError, match=r"needs\.x goes in a circle: b -> a"):
        only_job(composer, ["+exp=a"])
    Composer.create()


def test_a_directory_by_hand(composer, tmp_path):
    assert job(composer, FAST, f"hydra.run.dir={tmp_path}/here").directory == Path(tmp_path, "here")
