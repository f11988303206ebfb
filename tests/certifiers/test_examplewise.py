import numpy as np
import pytest
import torch
from torch import nn

from robustrun.certifiers.examplewise import fraction, judge_examples
from robustrun.certifiers.pgd import PGD
from robustrun.errors import ConfigError
from robustrun.roles import Fitted
from robustrun.runtime import Run
from robustrun.tasks.images import Images


@pytest.fixture
def task(run):
    task = Images(dataset="digits", test_limit=50)
    task.load(run)
    return task


def linear():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()


def test_each_example_is_judged_once_and_in_order(task, run):
    seen = []

    def judge(batch):
        seen.extend(batch.indices.tolist())
        return {"label": batch.targets, "mean": batch.inputs.mean((1, 2, 3))}

    columns = judge_examples(judge, task, run, batch_size=16)
    assert seen == columns["index"].tolist() == list(range(50))
    judge_examples(judge, task, run, batch_size=16)
    assert len(seen) == 50, "what is judged already is not judged again"


def test_strides_and_limits(task, run):
    columns = judge_examples(lambda b: {"label": b.targets}, task, run, stride=7, examples=5, name="some")
    assert columns["index"].tolist() == [0, 7, 14, 21, 28]


def test_an_interrupted_certification_has_the_same_records(task, run, tmp_path):
    def judge(batch):
        generator = run.generator("certify", int(batch.indices[0]))
        return {"draw": torch.rand(len(batch.targets), generator=generator)}

    whole = judge_examples(judge, task, run, batch_size=8, name="whole")
    count = 0

    def dying(batch):
        nonlocal count
        count += 1
        if count == 4:
            raise RuntimeError("killed")
        return judge(batch)

    with pytest.raises(RuntimeError, match="killed"):
        judge_examples(dying, task, run, batch_size=8, name="part")
    resumed = judge_examples(judge, task, run, batch_size=8, name="part")
    assert resumed["draw"].tolist() == whole["draw"].tolist()


def test_shards_are_parts_of_the_whole(task, run):
    parts = [
        judge_examples(lambda b: {"label": b.targets}, task, run, batch_size=8, shard=f"{i}/3", name=f"shard{i}")
        for i in (1, 2, 3)
    ]
    assert np.concatenate([part["index"] for part in parts]).tolist() == list(range(50))


def test_an_empty_split_is_refused(task, run):
    with pytest.raises(ConfigError, match="no split 'valid'"):
        judge_examples(lambda b: {}, task, run, split="valid")


def test_a_fraction_has_its_exact_interval():
    found = fraction([True] * 10, "x")
    assert found["x"] == 1.0
    assert found["x_low"] == pytest.approx(0.025 ** (1 / 10))
    assert found["x_high"] == 1.0
    half = fraction([True, False] * 50, "x")
    assert half["x_low"] == pytest.approx(0.39832, abs=1e-4)
    assert half["x_high"] == pytest.approx(0.60168, abs=1e-4)


def test_robust_accuracy_of_a_linear_model_is_the_closed_form(task, run):
    """Two classes matter: y (w.x + b) - eps |w|_1, where the box does not cut; here against the attack itself."""
    model, epsilon = linear(), 0.05
    certifier = PGD(epsilon=epsilon, alpha=epsilon, steps=5, restarts=2, batch_size=20)
    report = certifier.certify(task, Fitted(model), run)
    batch = next(iter(task.loader("test", 50, run).epoch(0)))
    weight, bias = model[1].weight, model[1].bias
    inputs = batch.inputs.flatten(1)
    low, high = (inputs - epsilon).clamp_min(0) - inputs, (inputs + epsilon).clamp_max(1) - inputs
    rows = torch.arange(50)
    gap = weight[batch.targets].unsqueeze(1) - weight  # (B, classes, 64)
    worst = torch.where(gap > 0, gap * low.unsqueeze(1), gap * high.unsqueeze(1)).sum(2)
    margin = inputs @ weight.T + bias
    margin = margin[rows, batch.targets].unsqueeze(1) - margin + worst
    margin[rows, batch.targets] = torch.inf
    exact = (margin.min(1).values > 0).numpy()
    assert report.metrics["robust_accuracy"] >= exact.mean() - 1e-9, (
        "an attack never does better than the exact worst case"
    )
    assert report.metrics["clean_accuracy"] >= report.metrics["robust_accuracy"]
    assert not (exact & ~report.examples["robust"]).any()


def test_counts_do_not_depend_on_how_the_work_was_cut(task, tmp_path):
    counts = []
    for attempt in range(2):
        with Run.create(tmp_path / str(attempt), device="cpu", threads=1) as run:
            certifier = PGD(epsilon=0.1, alpha=0.02, steps=5, restarts=2, batch_size=10)
            if attempt:
                original = certifier.judge
                calls = iter(range(10))

                def dying(*arguments, original=original, calls=calls):
                    if next(calls) == 2:
                        raise RuntimeError
                    return original(*arguments)

                certifier.judge = dying
                with pytest.raises(RuntimeError):
                    certifier.certify(task, Fitted(linear()), run)
                certifier.judge = original
            counts.append(certifier.certify(task, Fitted(linear()), run).counts)
    assert counts[0] == counts[1]
    assert counts[0]["forward_passes"] > 50


def test_select_any_break_is_never_higher(task, run, tmp_path):
    options = {"epsilon": 0.1, "alpha": 0.05, "steps": 3, "restarts": 4, "batch_size": 50}
    values = {}
    for select in ("max_loss", "any_break"):
        with Run.create(tmp_path / select, device="cpu", threads=1) as own:
            values[select] = (
                PGD(select=select, **options).certify(task, Fitted(linear()), own).metrics["robust_accuracy"]
            )
    assert values["any_break"] <= values["max_loss"]
