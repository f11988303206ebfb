"""The command line as a user types it, in processes of their own: errors, speed, kills, signals, two at once."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from robustrun.cli import _together, run

DIGITS = ("task=digits", "model=mnist_cnn", "trainer=fgsm", "certifier=pgd", "threat.epsilon=0.1")
SMALL = ("trainer.epochs=12", "certifier.steps=5", "certifier.restarts=2", "certifier.batch_size=40")


@pytest.mark.parametrize(
    ("jobs", "tables"),
    [("", []), ("a", ["a"]), ("abc", ["abc"]), ("aaa", ["aaa"]), ("aabcc", ["aa", "b", "cc"])],
    ids=str,
)
def test_a_table_compares_an_experiments_rows_or_experiments_of_one_job_each(jobs, tables):
    pairs = [(SimpleNamespace(job=SimpleNamespace(exp=exp)), None) for exp in jobs]
    assert [[outcome.job.exp for outcome, _ in group] for group in _together(pairs)] == [list(t) for t in tables]


def test_what_many_jobs_end_in_is_said_once(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("ROBUSTRUN_OUTPUTS", str(tmp_path))
    assert run(["-m", *DIGITS, "trainer=load", "trainer.path=nowhere.pt", "seed=0,1,2"]) == 3
    (line,) = [line for line in capfd.readouterr().err.splitlines() if "nowhere.pt" in line]
    assert line.startswith("robustrun: adhoc and 2 more: ")


@pytest.fixture
def start(tmp_path):
    """Start robustrun and leave it running."""
    processes = []

    def start_it(*arguments):
        process = subprocess.Popen(
            [sys.executable, "-m", "robustrun.cli", *arguments],
            cwd=tmp_path,
            env={**os.environ, "ROBUSTRUN_OUTPUTS": str(tmp_path / "outputs"), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        return process

    yield start_it
    for process in processes:
        process.kill()
        process.communicate()


def result(tmp_path: Path) -> dict:
    (file,) = (tmp_path / "outputs" / "adhoc").glob("*/result.json")
    return json.loads(file.read_text())


def wait_for(condition, process, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["+exp=fast_at_cifer"], 2, "no exp is called 'fast_at_cifer'; did you mean 'fast_at_cifar'?"),
        (["exp=fast_at_cifar"], 2, "write +exp=fast_at_cifar"),
        (["+exp=fast_at_cifar", "model=mnist_cn"], 2, "no model is called 'mnist_cn'; did you mean 'mnist_cnn'?"),
        (["+exp=fast_at_cifar", "trainer.epocs=3"], 2, "trainer=fgsm_cifar has no 'epocs'; did you mean 'epochs'?"),
        (["+exp=fast_at_cifar", "trainer.epochs=ten"], 2, 'trainer.epochs="ten": input should be a valid integer'),
        (["+exp=fast_at_cifar", "threat.epsilon=-1"], 2, "(it reads ${threat.epsilon})"),
        (["+exp=fast_at_cifar", "attack.epsilon=-1"], 2, "'attack.epsilon=-1' reaches no key"),
        (["+exp=fast_at_cifar", "+foo=1"], 2, "'+foo' reaches no key"),
        (["+exp=fast_at_cifar", "seed=1,2"], 2, "add -m to run them all"),
        (["+exp=fast_at_cifar", "metric=f_beta(2)"], 2, """quote the value: 'metric="f_beta(2)"'"""),
        (["task=mnist"], 2, "no certifier is chosen"),
        (["+exp=quick/fast_at", "row=x"], 2, "row=x: this experiment's rows are zero start"),
        (["--config-dir", "nowhere", "+exp=fast_at_cifar"], 2, "--config-dir nowhere: no such directory"),
        (["+exp=fast_at_cifar", "--bogus"], 2, "unrecognized arguments: --bogus"),
        (["lisst"], 2, "'lisst' is neither a verb nor an override; did you mean 'list'?"),
        (["list", "trainers"], 2, "there is no group 'trainers'; did you mean 'trainer'?"),
        (["data", "get", "cifar"], 2, "there is no data set 'cifar'"),
    ],
)
def test_one_sentence_and_the_right_code(arguments, code, sentence, cli, tmp_path):
    done = cli(*arguments)
    assert done.returncode == code
    assert sentence in done.stderr
    assert done.stderr.count("\n") == 1
    assert not done.stdout
    assert not any(tmp_path.iterdir()), "a wrong request leaves nothing behind"


@pytest.mark.parametrize("arguments", [[], ["--help"], ["list"], ["list", "exp"], ["data", "list"], ["--version"]])
def test_what_answers_at_once_imports_nothing_heavy(arguments, cli):
    code = (
        "import sys; from robustrun import cli; cli.run(sys.argv[1:]); "
        "heavy = {'torch', 'hydra', 'numpy', 'wandb', 'cvxpy', 'matplotlib'} & set(sys.modules); "
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_as_a_module():
    command = [sys.executable, "-m", "robustrun"]
    done = subprocess.run([*command, "list", "solver"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert "anderson" in done.stdout
    done = subprocess.run([*command, "+exp=fast_at_cifer"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "fast_at_cifar" in done.stderr


def test_an_unknown_name_needs_no_torch():
    code = (
        "import sys; from robustrun import cli; assert cli.run(sys.argv[1:]) == 2; "
        "sys.exit(1 if 'torch' in sys.modules else 0)"
    )
    for arguments in (["+exp=fast_at_cifer"], ["+exp=fast_at_cifar", "trainer.epocs=3"]):
        assert subprocess.run([sys.executable, "-c", code, *arguments], timeout=60).returncode == 0


def test_flags_may_stand_anywhere(cli, tmp_path):
    done = cli(*DIGITS, "trainer.epochs=1", "-m", "seed=0,1", "certifier.steps=1", "certifier.restarts=1")
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "outputs" / "adhoc").glob("*/result.json"))) == 2
    assert "seed=1" in done.stdout


def test_the_composed_config_is_shown(cli, tmp_path):
    done = cli("+exp=fast_at_cifar", "--cfg", "job")
    assert done.returncode == 0
    assert "dataset: cifar10" in done.stdout
    assert not any(tmp_path.iterdir())


def test_tab_completion_knows_experiments(cli):
    done = cli("-sc", "query=bash", COMP_LINE="robustrun +exp=fast_at", COMP_POINT="22")
    assert "fast_at_cifar" in done.stdout


@pytest.mark.slow
def test_kill_and_resume_is_as_if_nothing_had_happened(cli, start, tmp_path):
    assert cli(*DIGITS, *SMALL).returncode == 0
    undisturbed = result(tmp_path)
    os.rename(tmp_path / "outputs", tmp_path / "undisturbed")
    run = tmp_path / "outputs" / "adhoc"
    moments = [
        lambda: any(run.glob("*/checkpoints/last.pt")),  # while training
        lambda: any(run.glob("*/records/*.jsonl")),  # while attacking
    ]
    for moment in moments:
        process = start(*DIGITS, *SMALL)
        wait_for(moment, process)
        process.kill()
        process.wait()
        assert not any(run.glob("*/result.json"))
    done = cli(*DIGITS, *SMALL)
    assert done.returncode == 0, done.stderr
    resumed = result(tmp_path)
    assert resumed["metrics"] == undisturbed["metrics"]
    assert resumed["config_sha256"] == undisturbed["config_sha256"]
    examples = [
        next(p.glob("adhoc/*/examples.csv")).read_text() for p in (tmp_path / "undisturbed", tmp_path / "outputs")
    ]
    assert examples[0] == examples[1]
    curves = [next(p.glob("adhoc/*/metrics.jsonl")) for p in (tmp_path / "undisturbed", tmp_path / "outputs")]
    losses = [[json.loads(line)["loss"] for line in curve.read_text().splitlines()] for curve in curves]
    assert losses[0] == losses[1]


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 75), (signal.SIGUSR2, 75), (signal.SIGINT, 130)])
def test_a_signal_saves_and_leaves(signum, code, start, tmp_path):
    process = start(*DIGITS, "trainer.epochs=2000")
    wait_for(lambda: any((tmp_path / "outputs").glob("adhoc/*/checkpoints/last.pt")), process)
    process.send_signal(signum)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert "Traceback" not in err
    assert not any((tmp_path / "outputs").glob("adhoc/*/result.json"))


def test_two_jobs_on_one_directory(start, cli, tmp_path):
    process = start(*DIGITS, "trainer.epochs=2000")
    wait_for(lambda: any((tmp_path / "outputs").glob("adhoc/*/checkpoints/last.pt")), process)
    second = cli(*DIGITS, "trainer.epochs=2000")
    assert second.returncode == 2
    assert f"another process (pid {process.pid}" in second.stderr


def test_a_diverging_job_fails_with_a_sentence(cli):
    done = cli(*DIGITS, "trainer.optimizer.lr=1e8", "trainer.epochs=30")
    assert done.returncode == 1
    assert "diverged" in done.stderr
    assert "Traceback" not in done.stderr


def test_no_data_is_exit_code_3(cli, tmp_path):
    dead = "http://127.0.0.1:9"
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), dead)
    nowhere |= {"npm_config_registry": dead, "npm_config_fetch_retries": "0", "ROBUSTRUN_DATA": str(tmp_path / "data")}
    done = cli("task=svhn", "model=mnist_cnn", "trainer=standard", "certifier=accuracy", **nowhere)
    assert done.returncode == 3, done.stderr
    assert "svhn" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_two_processes_train_and_attack_like_one(tmp_path):
    arguments = [*DIGITS, "trainer.epochs=3", "trainer.batch_size=101", "certifier.steps=5", "certifier.restarts=2"]
    one = [sys.executable, "-m", "robustrun.cli"]
    two = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "robustrun.cli"]
    results = []
    for command in (one, two):
        outputs = tmp_path / str(len(results))
        environment = {**os.environ, "ROBUSTRUN_OUTPUTS": str(outputs), "OMP_NUM_THREADS": "1"}
        done = subprocess.run([*command, *arguments], env=environment, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("robust_accuracy") == 1
        results.append(json.loads(next(outputs.glob("adhoc/*/result.json")).read_text()))
    assert results[0]["metrics"] == pytest.approx(results[1]["metrics"], abs=1e-6)
    assert results[0]["counts"] == results[1]["counts"]
    assert [result["env"]["world_size"] for result in results] == [1, 2]


def test_the_page_of_all_options_has_every_key(cli):
    page = cli("list", "trainer", "--markdown").stdout
    assert "<code>trainer=pgd_cifar</code>" in page
    assert "steps:" in page
    assert "Over the keys of [trainer=standard](#trainer-standard):" in page
    assert '<details id="trainer-standard">' in page
    assert page.count("<details ") == page.count("</details>") > 50
