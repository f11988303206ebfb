"""The paper label_flip as a job: tasks, linear models, closed-form fit, certificates, attacks, kill and resume."""

import numpy as np
import pytest
import torch

from robustrun.certifiers.label_flip import LabelFlip, LabelFlipAttack, LabelFlipSampling, certified
from robustrun.certifiers.label_flip_figures import curve
from robustrun.errors import ConfigError, DataError
from robustrun.models.linear import FeatureCNN, Linear, LinearFourier
from robustrun.roles import ClassificationSpec, Fitted
from robustrun.tasks.images import Images
from robustrun.tasks.label_flip import ClassSubset, FeatureFile, Reviews, SmallTable
from robustrun.trainers.least_squares import LeastSquares


def fitted_on(task, run, model=Linear, **options):
    task.load(run)
    return LeastSquares(**options).fit(task, model(task.spec), run)


def records(run):
    (path,) = run.dir.rglob("examples*.jsonl")
    return path


def forget(run):
    records(run).unlink()


def test_breast_cancer_as_measured_elsewhere(run):
    task = SmallTable()
    report = LabelFlip(radii=[1, 5, 10, 20]).certify(task, fitted_on(task, run, regularisation=1000.0), run)
    expected = {
        "accuracy": 0.941,
        **dict(zip(("kl_1", "kl_5", "kl_10", "kl_20"), (0.858, 0.710, 0.580, 0.207), strict=True)),
        **dict(zip(("np_1", "np_5", "np_10", "np_20"), (0.888, 0.781, 0.710, 0.574), strict=True)),
        **dict(zip(("exact_1", "exact_5", "exact_10", "exact_20"), (0.935, 0.888, 0.834, 0.722), strict=True)),
    }
    assert {name: report.metrics[name] for name in expected} == pytest.approx(expected, abs=1e-3)
    medians = [report.metrics[f"median_{name}"] for name in ("kl", "np", "exact")]
    assert medians == [12, 24, 45]
    assert len(report.examples["index"]) == 169
    assert list(report.figures["certified_accuracy"].series) == ["KL, q = 0.1", "NP, q = 0.1", "exact, unsmoothed"]
    margin = report.figures["required_margin"].series
    assert list(margin) == ["KL, q = 0.1", "NP, q = 0.1"]
    assert margin["NP, q = 0.1"][1][0] == pytest.approx(0.1 / 1.8)
    assert (margin["NP, q = 0.1"][1] > margin["KL, q = 0.1"][1]).all()


def test_the_model_answers_what_is_certified(run):
    for options in ({"intercept": True}, {"intercept": False}):
        task = ClassSubset(dataset="digits", classes=[1, 7])
        fitted = fitted_on(task, run, gamma=0.01, **options)
        report = LabelFlip().certify(task, fitted, run)
        loader = task.loader("test", 1000, run)
        (batch,) = loader.epoch(0)
        answers = fitted.model(batch.inputs).argmax(1)
        assert (answers.numpy() == report.examples["predicted_exact"]).all()
        if options["intercept"]:
            assert (answers.numpy() == report.examples["predicted"]).all()
        forget(run)


def test_several_classes_partitions_and_sampling(run):
    task = SmallTable(dataset="wine", train=120)
    fitted = fitted_on(task, run, gamma=0.1)
    report = LabelFlip(q=0.1, sweep=[0.5], partitions=20).certify(task, fitted, run)
    columns = report.examples
    assert report.metrics["accuracy"] > 0.9
    assert report.metrics["median_ensemble"] >= 1
    assert (columns["radius_kl"] <= columns["radius_np"] + 2).all()
    assert columns["radius_kl"].max() >= 3
    assert {"KL, q = 0.1", "KL, q = 0.5", "20 partitions"} <= set(report.figures["certified_accuracy"].series)
    forget(run)
    sampled = LabelFlipSampling(samples=2000).certify(task, fitted, run)
    assert (sampled.examples["predicted"] == columns["predicted"]).mean() > 0.9
    with pytest.raises(ConfigError, match="two classes"):
        LabelFlipAttack().check(task)


def test_attacks_never_beat_certificates(run):
    task = ClassSubset(dataset="digits", classes=[1, 7])
    fitted = fitted_on(task, run, gamma=0.05)
    attacked = LabelFlipAttack(components=10, examples=25).certify(task, fitted, run)
    n = attacked.examples["flips_influence"]
    assert (n >= 1).all()
    assert attacked.metrics["attacked_300"] <= attacked.metrics["attacked_1"] <= attacked.metrics["accuracy"]


def test_interrupted_certification_goes_on_to_the_same_records(run):
    task = ClassSubset(dataset="digits", classes=[1, 7])
    fitted = fitted_on(task, run)
    whole = LabelFlip(batch_size=10).certify(task, fitted, run).examples
    path = records(run)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[: len(lines) // 2]))
    again = LabelFlip(batch_size=10).certify(task, fitted, run).examples
    for name, column in whole.items():
        np.testing.assert_array_equal(column, again[name])


def test_counts_and_curves():
    correct, radius = np.array([True, True, False, True]), np.array([3, 0, 9, 5])
    assert certified(correct, radius, "kl", [0, 1, 4]) == {"kl_0": 0.75, "kl_1": 0.5, "kl_4": 0.25, "median_kl": 1.5}
    x, y = curve(correct, radius)
    for flips, height in zip(x, y, strict=True):
        assert height == (correct & (radius >= flips)).mean()
    assert y[-1] == 0


def test_wrong_requests(run, tmp_path):
    task = ClassSubset(dataset="digits", classes=[1, 7])
    task.load(run)
    with pytest.raises(ConfigError, match="must lie between"):
        LabelFlip(q=0.5).check(task)
    with pytest.raises(ConfigError, match="must lie between"):
        LabelFlipSampling(q=0.5).check(task)
    with pytest.raises(ConfigError, match="partitions"):
        LabelFlip(partitions=10_000).check(task)
    with pytest.raises(ConfigError, match="two classes, not of 10"):
        LabelFlipAttack().check(Images(dataset="digits"))
    LabelFlip(q=0.4, partitions=10).check(task)
    LabelFlipAttack().check(task)
    with pytest.raises(ConfigError, match="least squares"):
        LabelFlip().certify(task, Fitted(Linear(task.spec)), run)
    for classes in ([1], [1, 1], [1, 10]):
        with pytest.raises(ConfigError, match="classes"):
            ClassSubset(dataset="digits", classes=classes)
    with pytest.raises(DataError, match="not there"):
        FeatureFile(path=str(tmp_path / "none.npz")).load(run)
    with pytest.raises(DataError, match="no texts"):
        Reviews(path=str(tmp_path)).load(run)
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(DataError, match="does not hold"):
        FeatureFile(path=str(tmp_path / "bad.npz")).load(run)
    x, y = np.zeros((4, 2)), np.array([0, 1, 2, 0])
    np.savez(tmp_path / "labels.npz", X_train=x, Y_train=y, X_test=x, Y_test=y)
    with pytest.raises(DataError, match="labels from 0 to 1"):
        FeatureFile(path=str(tmp_path / "labels.npz")).load(run)


def test_features_and_reviews_from_files(run, tmp_path):
    g = np.random.default_rng(0)
    y = np.arange(60) % 2
    x = g.normal(size=(60, 3, 2)) + 3 * y[:, None, None]
    np.savez(tmp_path / "f.npz", X_train=x[:40], Y_train=y[:40], X_test=x[40:], Y_test=y[40:])
    task = FeatureFile(path=str(tmp_path / "f.npz"))
    report = LabelFlip(radii=[1]).certify(task, fitted_on(task, run), run)
    assert report.metrics["np_1"] > 0.5
    forget(run)

    words = {"neg": "dull slow bad film awful", "pos": "great fine film superb joy"}
    for split in ("train", "test"):
        for side, text in words.items():
            folder = tmp_path / split / side
            folder.mkdir(parents=True)
            for i in range(12):
                (folder / f"{i}_1.txt").write_text(" ".join(g.choice(text.split(), 4)) + " film")
    task = Reviews(path=str(tmp_path), dimension=4)
    report = LabelFlip(radii=[1]).certify(task, fitted_on(task, run), run)
    assert report.metrics["accuracy"] > 0.9
    assert task.size("train") == 24


def test_parameter_counts_and_seeds():
    spec = ClassificationSpec((1, 28, 28), 8)
    assert sum(p.numel() for p in FeatureCNN(spec).parameters()) == 92_106
    torch.manual_seed(3)
    one = LinearFourier(spec, dimension=20)
    torch.manual_seed(3)
    two = LinearFourier(spec, dimension=20)
    x = torch.rand(5, 1, 28, 28)
    assert torch.equal(one.features(x), two.features(x))
    wide = LinearFourier(spec, dimension=20_000).features(x)
    kernel = torch.exp(-0.5 * 0.15**2 * torch.cdist(x.flatten(1).double(), x.flatten(1).double()).square())
    torch.testing.assert_close(wide @ wide.T, kernel, atol=0.05, rtol=0)


def test_a_linear_model_on_anothers_features(cli):
    small = ["task=digits17", "certifier.batch_size=100"]
    done = cli("+exp=label_flip_encoder", *small, "task.classes=[0,2,3]", "trainer.epochs=1")
    assert done.returncode == 0, done.stderr
    encoder = f"model.encoder={done.stdout.strip().splitlines()[-1]}"
    done = cli(*small, "model=linear_on_encoder", encoder, "trainer=least_squares", "certifier=label_flip_quick")
    assert done.returncode == 0, done.stderr
    assert "median_np" in done.stdout
