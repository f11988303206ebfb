"""kill -9 in the middle of a certification over HTTP: what was answered stays, nothing is asked or counted twice."""

import csv
import json
import math
import os
import subprocess
import sys
import threading
import time
from collections import Counter

import pytest
import torch
from torch import nn

from robustrun.certifiers.smoothing import Smoothing
from robustrun.models.denoisers import Denoiser
from robustrun.models.queried import Queried, Query
from robustrun.query import ClassifierServer
from robustrun.roles import Fitted
from robustrun.runtime import Run
from robustrun.tasks.images import Images

EXAMPLES, N0, N = 4, 10, 60
SMALL = {"sigma": 0.3, "n0": N0, "n": N, "alpha": 0.05, "examples": EXAMPLES, "together": 2, "radii": (0.1,)}


class Slow(ClassifierServer):
    """Answers so many images and no more until it is allowed to, and remembers what it was asked."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.asked, self.taken, self.allowed, self._more = Counter(), 0, math.inf, threading.Condition()

    def allow(self, count):
        """So many images from now on."""
        with self._more:
            self.allowed = self.taken + count
            self._more.notify_all()

    def classify(self, images):
        with self._more:
            assert self._more.wait_for(lambda: self.taken + len(images) <= self.allowed, timeout=120)
            self.taken += len(images)
        answers = super().classify(images)
        self.asked.update(images)
        return answers

    def settled(self):
        """What it was asked once it has answered what a killed process had sent."""
        before, now = None, Counter(self.asked)
        while before != now:
            time.sleep(0.5)
            before, now = now, Counter(self.asked)
        return now


def entries(log):
    """Answers in the log; a line that is being written at this moment is none."""
    lines = log.read_bytes().split(b"\n")[1:-1] if log.exists() else []
    return [json.loads(line) for line in lines]


def start(url, folder):
    overrides = [f"certifier.{key}={value}" for key, value in SMALL.items() if key not in ("radii", "sigma")]
    command = ["task=digits", "task.test_limit=10", "model=queried", "trainer=none", "certifier=smoothing"]
    command += [*overrides, "certifier.radii=[0.1]", "noise.sigma=0.3", "model.denoiser.name=identity"]
    command += [f"model.query.url={url}", "model.query.limits.concurrency=3", f"hydra.run.dir={folder}"]
    return subprocess.Popen(
        [sys.executable, "-m", "robustrun.cli", *command],
        cwd=folder.parent,
        env={**os.environ, "ROBUSTRUN_OUTPUTS": str(folder.parent)},
        stderr=subprocess.PIPE,
        text=True,
    )


def kill_after(process, log, count):
    deadline = time.monotonic() + 120
    while len(entries(log)) < count:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.kill()
    process.communicate()


@pytest.mark.slow
def test_no_vote_is_lost_or_counted_twice(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
    folder = tmp_path / "cut"
    log = folder / "queries" / "log.0.jsonl"
    with Slow(net, (1, 8, 8)) as server:
        kept = []
        for count in (30, 170):  # in the first pair of examples, then in the second
            server.allow(count - len(kept) + 60)  # requests are of several images
            kill_after(start(server.url, folder), log, count)
            server.allow(math.inf)
            before = server.settled()
            kept = entries(log)
            assert len(kept) < EXAMPLES * (N0 + N)
        last = start(server.url, folder)
        assert last.wait(timeout=120) == 0, last.stderr.read()
        last.stderr.close()
        asked_again = sum((server.asked - before).values())
        found = entries(log)
        with Run.create(tmp_path / "whole", device="cpu", threads=1) as run:
            task = Images(dataset="digits", test_limit=10)
            task.load(run)
            query = Query(url=server.url)
            model = Queried(task.spec, denoiser=Denoiser(name="identity"), query=query).eval()
            whole = Smoothing(**SMALL).certify(task, Fitted(model), run).examples

    assert found[: len(kept)] == kept, "what was answered before the kill stays as it is"
    assert len({(entry["image"], entry["draw"]) for entry in found}) == len(found) == EXAMPLES * (N0 + N)
    assert asked_again == len(found) - len(kept), "only what had no answer is asked"
    with open(folder / "examples.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for column in ("index", "predicted", "successes", "trials"):
        assert [int(row[column]) for row in rows] == whole[column].tolist(), column
    assert [float(row["radius"]) for row in rows] == pytest.approx(whole["radius"].tolist(), rel=1e-12)
    assert sum(int(row["trials"]) for row in rows) == EXAMPLES * N
