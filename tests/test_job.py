"""The one flow, from what is typed to the run directory: toys of each awkward shape, and all that goes wrong."""

import csv
import json
from pathlib import Path

import pytest
import torch

import robustrun
import tests.toys.implementations  # noqa: F401 - registers the toys
from robustrun import cli, job
from robustrun.errors import DataError
from robustrun.report.results import Result
from robustrun.runtime import Run

CONF = Path(__file__).parent / "toys" / "conf"


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ROBUSTRUN_OUTPUTS", raising=False)


@pytest.fixture
def robust(capsys):
    """Type a command; its exit code, what it printed, and what it said on stderr."""

    def type_it(*arguments):
        code = cli.run([*arguments, "--config-dir", str(CONF)])
        output = capsys.readouterr()
        return code, output.out, output.err

    return type_it


def results(exp):
    return [Result.read(path) for path in sorted(Path("outputs", exp).glob("*/result.json"))]


# ------------------------------------------------------------------------------------------- awkward shapes


def test_an_agent_that_interacts_and_a_certifier_that_reads_its_history(robust):
    code, out, _ = robust("task=corridor", "model=q_table", "trainer=q_learning", "certifier=regret")
    assert code == 0
    (result,) = results("adhoc")
    assert result.metrics["last_reward"] > result.metrics["first_reward"]
    assert "mean_reward" in out


def test_a_closed_form_and_a_certifier_that_needs_the_training_set(robust):
    assert robust("task=digits", "model=toy_linear", "trainer=toy_least_squares", "certifier=toy_leverage")[0] == 0
    (result,) = results("adhoc")
    assert result.metrics["accuracy"] > 0.85
    assert result.metrics["total_leverage"] == pytest.approx(64, abs=1e-6)


def test_a_model_around_another_jobs_model(robust):
    assert robust("+exp=toy_wrapped")[0] == 0
    (need,), (wrapped,) = results("toy_digits"), results("toy_wrapped")
    assert need.seed == 7
    assert wrapped.counts["parameters"] == need.counts["parameters"] + 1
    model = robustrun.load(next(Path("outputs/toy_wrapped").iterdir()))
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


def test_best_and_last_states_are_compared(robust):
    assert robust("+exp=toy_digits", "certifier=pgd_quick", "certifier.states=[best,last]", "certifier.steps=2")[0] == 0
    (result,) = results("toy_digits")
    assert {"best_robust_accuracy", "last_robust_accuracy"} <= set(result.metrics)
    run_dir = next(Path("outputs/toy_digits").iterdir())
    best = torch.load(run_dir / "checkpoints" / "best.pt", weights_only=True)["model"]
    last = torch.load(run_dir / "checkpoints" / "last.pt", weights_only=True)["model"]
    assert best.keys() == last.keys()
    loaded = robustrun.load(run_dir, state="best").state_dict()
    assert all(torch.equal(loaded[name], best[name]) for name in best)


# ---------------------------------------------------------------------------------------- the run directory


def test_everything_is_in_the_run_directory(robust):
    robust("+exp=toy_digits")
    run_dir = next(Path("outputs/toy_digits").iterdir())
    (result,) = results("toy_digits")
    assert result.config_sha256.startswith(run_dir.name)
    assert {"data", "build", "fit", "certify", "total", "train"} <= set(result.timings)
    assert {"versions", "device", "precision"} <= set(result.env)
    with open(run_dir / "examples.csv") as file:
        records = list(csv.DictReader(file))
    assert len(records) == 360
    correct = sum(record["correct"] == "True" for record in records)
    assert correct / 360 == pytest.approx(result.metrics["accuracy"])
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 2
    assert "${" not in (run_dir / "config.yaml").read_text()


def test_the_same_command_again_only_shows(robust):
    robust("+exp=toy_digits")
    before = next(Path("outputs/toy_digits").glob("*/result.json")).read_bytes()
    code, out, _ = robust("+exp=toy_digits")
    assert code == 0
    assert "complete already" in out
    assert next(Path("outputs/toy_digits").glob("*/result.json")).read_bytes() == before


def test_rerun_repeats_to_the_same_numbers(robust):
    robust("+exp=toy_digits")
    (before,) = results("toy_digits")
    assert robust("+exp=toy_digits", "rerun=true")[0] == 0
    (after,) = results("toy_digits")
    assert after.metrics == before.metrics
    assert after.timings != before.timings


def test_a_certifier_that_does_not_suit_the_task_is_refused_before_training(robust):
    code, _, err = robust("task=digits", "model=linear", "trainer=least_squares", "certifier=label_flip_attack")
    assert code == 2
    assert err == "robustrun: these attacks flip labels of two classes, not of 10\n"


def test_changing_the_certifier_does_not_change_the_training(robust):
    robust("+exp=toy_digits")
    robust("+exp=toy_digits", "certifier=pgd_quick", "certifier.steps=1")
    first, second = (torch.load(p, weights_only=True)["model"] for p in Path("outputs").rglob("last.pt"))
    assert all(torch.equal(first[name], second[name]) for name in first)


# ------------------------------------------------------------------------------------------- what goes wrong


def test_a_failing_row_does_not_take_the_others_with_it(robust):
    code, out, err = robust("+exp=toy_rows")
    assert code == 1
    assert len(results("toy_rows")) == 2
    assert "toy_rows:bad: ZeroDivisionError: a bug in a plugin" in err
    assert "good" in out
    assert err.count("\n") == 1, "one sentence, no traceback"


def test_a_need_that_fails_is_said_and_what_needs_it_does_not_run(robust):
    code, _, err = robust("+exp=toy_failing_need")
    assert code == 1
    assert "ZeroDivisionError: a bug in a plugin" in err
    assert not results("toy_failing_need")


def test_a_full_disk(robust):
    code, _, err = robust("+exp=toy_digits", "trainer=toy_faulty", "trainer.how=disk")
    assert code == 1
    assert "the disk is full (/somewhere/last.pt): free some space and type the same command again" in err


def test_an_interrupt(robust):
    assert robust("+exp=toy_digits", "trainer=toy_faulty", "trainer.how=interrupt")[0] == 130


def test_a_directory_that_holds_another_job(robust):
    assert robust("+exp=toy_digits", "hydra.run.dir=here")[0] == 0
    code, _, err = robust("+exp=toy_digits", "seed=1", "hydra.run.dir=here")
    assert code == 2
    assert "holds another job" in err


def test_a_rerun_forgets_no_other_job(robust):
    robust("+exp=toy_digits", "trainer.epochs=1", "hydra.run.dir=here")
    before = {path: path.read_bytes() for path in Path("here").rglob("*") if path.is_file()}
    assert robust("+exp=toy_digits", "seed=1", "hydra.run.dir=here", "rerun=true")[0] == 2
    assert {path: path.read_bytes() for path in Path("here").rglob("*") if path.is_file()} == before


def test_a_rerun_killed_while_it_forgets_is_done_by_the_next_one(robust, monkeypatch):
    robust("+exp=toy_digits", "trainer.epochs=1")
    run_dir = next(Path("outputs/toy_digits").iterdir())
    (result,) = results("toy_digits")

    def killed(run):
        (run.dir / "checkpoints" / "best.pt").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Run, "clear", killed)
        assert robust("+exp=toy_digits", "trainer.epochs=1", "rerun=true")[0] == 130
    assert robust("+exp=toy_digits", "trainer.epochs=1", "rerun=true")[0] == 0
    (again,) = results("toy_digits")
    assert again.metrics == result.metrics
    assert again.timings != result.timings
    assert (run_dir / "checkpoints" / "best.pt").exists()


def test_what_another_process_has_finished_meanwhile_is_only_read(robust, monkeypatch):
    robust("+exp=toy_digits", "trainer.epochs=1")
    result = next(Path("outputs/toy_digits").glob("*/result.json"))
    content = result.read_bytes()
    result.unlink()
    monkeypatch.setattr(job, "_claim", lambda *_: result.write_bytes(content))  # between the look and the lock
    assert robust("+exp=toy_digits", "trainer.epochs=1")[0] == 0
    assert result.read_bytes() == content


def test_what_does_not_fit_is_refused_before_anything_is_made(robust):
    code, _, err = robust("task=corridor", "model=q_table", "trainer=q_learning", "certifier=pgd")
    assert code == 2
    assert "certifier=pgd does not fit task=corridor: it works on a ClassificationTask" in err
    assert "certifiers that fit here: regret" in err
    assert not Path("outputs").exists()


def test_an_unwritable_place(robust):
    code, _, err = robust("+exp=toy_digits", "paths.outputs=/proc/robustrun")
    assert code == 2
    assert "choose another place with paths.outputs=" in err


def test_no_gpu(robust):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    code, _, err = robust("+exp=toy_digits", "runtime.device=cuda")
    assert code == 2
    assert "no GPU is visible" in err


def test_a_corrupted_checkpoint(robust):
    robust("+exp=toy_digits")
    run_dir = next(Path("outputs/toy_digits").iterdir())
    (run_dir / "result.json").unlink()
    for checkpoint in (run_dir / "checkpoints").glob("last*.pt"):
        checkpoint.write_bytes(checkpoint.read_bytes()[:100])
    code, _, err = robust("+exp=toy_digits")
    assert code == 3
    assert "last.pt" in err
    with pytest.raises(DataError):
        robustrun.load(run_dir)


@pytest.mark.parametrize("content", ["", "{", '{"schema": 99}', '{"schema": 1}', "[]"])
def test_a_damaged_result(robust, content):
    robust("+exp=toy_digits", "trainer.epochs=1")
    next(Path("outputs/toy_digits").glob("*/result.json")).write_text(content)
    code, _, err = robust("+exp=toy_digits", "trainer.epochs=1")
    assert code == 3
    assert "result.json" in err
