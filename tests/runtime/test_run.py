import copy
import logging
import os
import random
import shutil
import signal
import threading

import pytest
import torch
from torch import nn

from robustrun.errors import ConfigError, Stopped
from robustrun.methods.attacks import pgd
from robustrun.runtime import Run
from robustrun.runtime.precision import choose_device, choose_precision

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


def surroundings():
    handlers = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)]
    logger = logging.getLogger("robustrun")
    numerics = torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark, torch.get_num_threads()
    return handlers, logger.level, logger.propagate, list(logger.handlers), numerics


def test_everything_is_undone(tmp_path):
    before = surroundings()
    with Run.create(tmp_path, threads=1, deterministic=True) as run:
        assert run.dir == tmp_path
        assert torch.get_num_threads() == 1
        assert torch.are_deterministic_algorithms_enabled()
        assert surroundings() != before
    assert surroundings() == before
    assert not torch.are_deterministic_algorithms_enabled()
    with Run.create(tmp_path):  # and the lock is free again
        pass


def test_everything_is_undone_after_a_failure(tmp_path):
    before = surroundings()
    with pytest.raises(ZeroDivisionError), Run.create(tmp_path):
        raise ZeroDivisionError
    with (
        pytest.raises(ConfigError, match="tracker=fancy is not known"),
        Run.create(tmp_path, tracker="fancy"),
    ):
        pass
    assert surroundings() == before
    with Run.create(tmp_path):
        pass


def test_the_same_seed_seeds_the_global_generators(tmp_path):
    seen = []
    for seed in (1, 1, 2):
        with Run.create(tmp_path, seed=seed):
            seen.append((random.random(), torch.rand(1).item()))
    assert seen[0] == seen[1] != seen[2]


def test_log_goes_to_the_file_and_to_stderr(tmp_path, capfd):
    with Run.create(tmp_path) as run:
        run.logger.info("obtained %d examples", 7)
    assert "obtained 7 examples" in (tmp_path / "log.txt").read_text()
    assert capfd.readouterr().err == "obtained 7 examples\n"


def test_directory_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    expected = r"cannot write to the run directory .*file/run.*paths\.outputs="
    with pytest.raises(ConfigError, match=expected), Run.create(tmp_path / "file" / "run"):
        pass


def test_what_a_killed_process_was_writing_is_removed(tmp_path):
    (tmp_path / "figures").mkdir()
    leftovers = [tmp_path / ".result.json.7.tmp", tmp_path / "figures" / ".curve.png.7.tmp", tmp_path / ".writable-7"]
    for leftover in leftovers:
        leftover.write_text("half of i")
    with Run.create(tmp_path, device="cpu"):
        assert not any(leftover.exists() for leftover in leftovers)


def test_directory_in_use(tmp_path):
    expected = f"another process \\(pid {os.getpid()} on host"
    with Run.create(tmp_path), pytest.raises(ConfigError, match=expected), Run.create(tmp_path):
        pass


def test_in_a_thread_there_are_no_handlers_but_everything_else_works(tmp_path):
    seen = []

    def work():
        with Run.create(tmp_path) as run:
            seen.append(run.stop.requested)

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]
    assert signal.getsignal(signal.SIGTERM) is before


def test_leaving_at_a_safe_point(tmp_path):
    saved = []
    with Run.create(tmp_path) as run:
        run.leave_if_asked(lambda: saved.append("too early"))
        os.kill(os.getpid(), signal.SIGUSR1)
        with pytest.raises(Stopped, match="stopped on SIGUSR1"):
            run.leave_if_asked(lambda: saved.append("in time"))
    assert saved == ["in time"]


def test_advancing_a_progress_bar_is_a_safe_point(tmp_path):
    with Run.create(tmp_path) as run, run.progress(10, "certifying") as bar:
        bar.advance()
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Stopped):
            bar.advance()
        run.stop.deferred = True  # within a training loop the evaluation goes on: the loop saves first
        bar.advance()
        assert bar.done == 3


def test_clear_forgets_an_earlier_attempt(tmp_path):
    with Run.create(tmp_path) as run:
        run.checkpoints.save("last", {"a": 1})
        run.tracker.log({"loss": 1.0}, step=0)
        run.example_log(columns=["radius"]).append([1], radius=[0.5])
        run.clear()
        assert "last" not in run.checkpoints
        assert run.example_log(columns=["radius"]).done.size == 0
        run.tracker.log({"loss": 2.0}, step=0)
    assert (tmp_path / "metrics.jsonl").read_text().count("\n") == 1


@no_gpu
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_gpu_asked_for_where_there_is_none(tmp_path, device):
    expected = f"runtime.device={device}, but no GPU is visible .*device=auto"
    with pytest.raises(ConfigError, match=expected), Run.create(tmp_path / "run", device=device):
        pass
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "meta", ""])
def test_what_is_not_a_device(device):
    with pytest.raises(ConfigError, match="is not a device: use auto"):
        choose_device(device)


@pytest.mark.parametrize("name", ["tf32", "float16", "double"])
def test_precision_that_a_cpu_has_not(name):
    with pytest.raises(ConfigError, match=f"runtime.precision={name}"):
        choose_precision(name, torch.device("cpu"))


def test_precision_of_the_cpu():
    exact = choose_precision("auto", torch.device("cpu"))
    assert (exact.name, exact.dtype, exact.channels_last) == ("float32", torch.float32, False)
    assert choose_precision("float32", torch.device("cpu"), channels_last=True).channels_last
    half = choose_precision("bfloat16", torch.device("cpu"))
    assert half.channels_last
    layer, inputs = nn.Linear(4, 4), torch.ones(2, 4)
    with exact.autocast():
        assert layer(inputs).dtype is torch.float32
    with half.autocast():
        assert layer(inputs).dtype is torch.bfloat16
    assert not half.scaler.is_enabled()


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))

    def forward(self, x):
        return self.layers(x)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's compiler imports what torch has deprecated
def test_compiled_networks_are_the_same_networks():
    precision = choose_precision("auto", torch.device("cpu"), compile=True)
    plain = Small()
    compiled = precision.place(copy.deepcopy(plain), torch.device("cpu"))
    assert type(compiled) is Small
    assert list(compiled.state_dict()) == list(plain.state_dict())
    inputs, targets = torch.full((5, 6), 0.5), torch.tensor([0, 1, 2, 0, 1])
    attack = {"epsilon": 0.2, "alpha": 0.1, "steps": 3, "start": "zero"}
    found = [pgd(network, inputs, targets, **attack).delta for network in (plain, compiled)]
    torch.testing.assert_close(*found)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0


def test_compiling_needs_a_compiler(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ConfigError, match=r"runtime\.compile=true needs a C\+\+ compiler on a CPU: install g\+\+"):
        choose_precision("auto", torch.device("cpu"), compile=True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_precision_of_the_gpu(tmp_path):
    with Run.create(tmp_path) as run:
        assert run.device.type == "cuda"
        assert run.precision.channels_last
        conv = run.precision.place(nn.Conv2d(3, 8, 3), run.device)
        assert conv.weight.is_contiguous(memory_format=torch.channels_last)
        with run.precision.autocast():
            assert conv(torch.ones(2, 3, 8, 8, device=run.device)).dtype is run.precision.dtype
        assert torch.backends.cuda.matmul.allow_tf32
