"""Kill it anywhere: a job of any kind, killed at random moments and started again, ends as one never touched.

So does one that meets a full disk, a read-only directory, a clock that jumps, or another copy of itself. Moments are
drawn from the kind alone and counted in what the job does (see `tests.disasters`): they are the same in every run.
ROBUSTRUN_KILLS says how often each kind is killed (5), ROBUSTRUN_ACCIDENTS how often it meets a full disk and a
read-only one (1).
"""

import base64
import json
import os
import random
import shutil
import signal
import socket
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml
from PIL import Image

from robustrun.query.images import decode
from robustrun.runtime.checkpoints import load_file
from tests import disasters
from tests.disasters import Counts, Disaster
from tests.forked import Forked
from tests.kinds import JOBS, TABLE, arguments, findings

KILLS = int(os.environ.get("ROBUSTRUN_KILLS", "5"))
ACCIDENTS = int(os.environ.get("ROBUSTRUN_ACCIDENTS", "1"))
UNITS = ("changes", "bytes", "seconds")


class Service:
    """A classifier by mean brightness that can only be asked; remembers by whom (their key) it was asked what."""

    def __init__(self):
        self.asked: list[tuple[str, list[bytes]]] = []
        handler = type("Handler", (_Handler,), {"service": self})
        self.http = _Quiet(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"

    def __enter__(self):
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.http.shutdown()
        self.http.server_close()


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_):
        """Who asked was killed before the answer came."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_POST(self):
        content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        images = [base64.b64decode(text) for text in content["images"]]
        self.service.asked.append((self.headers["Authorization"], images))
        labels = [[[str(int(decode(image, 1).mean()) // 4 % 10), 1.0]] for image in images]
        body = json.dumps({"model": "1", "labels": labels}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class Jobs:
    """Starts jobs of one kind, with their outputs in folders below one."""

    def __init__(self, kind: str, folder: Path, url: str):
        self.kind, self.folder, self.url, self.started = kind, folder, url, 0
        (folder / "experiments" / "toy").mkdir(parents=True)
        (folder / "experiments" / "toy" / "tables.yaml").write_text(TABLE)

    def start(self, outputs: Path, disaster: Disaster = Disaster(), counts: Path | None = None) -> Forked:  # noqa: B008
        self.started += 1
        words, experiments = arguments(self.kind, self.url), str(self.folder / "experiments")
        where = None if counts is None else str(counts)
        environment = {"ROBUSTRUN_API_KEY": str(self.started), "XDG_CACHE_HOME": str(self.folder / "cache")}
        return Forked(disasters.run, words, str(outputs), disaster, where, experiments, env=environment)

    def finish(self, outputs: Path, disaster: Disaster = Disaster(), counts: Path | None = None) -> str:  # noqa: B008
        """What it printed."""
        code, out, said = self.start(outputs, disaster, counts).finish()
        assert code == 0, said
        assert "Traceback" not in said
        return out


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """kind -> (jobs of that kind, what one that nothing happens to finds, how much it does), each run once."""
    known = {}
    with Service() as service:

        def of(kind: str) -> tuple[Jobs, dict, Counts, Service]:
            if kind not in known:
                jobs = Jobs(kind, tmp_path_factory.mktemp("jobs"), service.url)
                outputs = jobs.folder / "undisturbed"
                jobs.finish(outputs, counts=jobs.folder / "counts")
                counts = Counts(**json.loads((jobs.folder / "counts").read_text()))
                known[kind] = jobs, findings(outputs), counts
            return *known[kind], service

        yield of


def assert_whole(outputs: Path) -> None:
    """Every file that is there was written whole, but for the ends of logs and for files under temporary names."""
    for path in outputs.rglob("*"):
        match "" if path.name.startswith(".") else path.suffix:
            case ".json":
                json.loads(path.read_text())
            case ".yaml":
                yaml.safe_load(path.read_text())
            case ".pt":
                load_file(path)
            case ".png":
                with Image.open(path) as image:
                    image.load()
            case ".csv":
                assert path.read_text().endswith("\n")
            case ".jsonl":
                [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]


@pytest.mark.slow
@pytest.mark.parametrize("kind", JOBS)
def test_a_killed_job_ends_as_an_undisturbed_one(kind, tmp_path, undisturbed):
    jobs, found, total, service = undisturbed(kind)
    outputs, moments, killed = tmp_path / "killed", random.Random(kind), 0
    service.asked.clear()
    while killed < KILLS:
        unit = UNITS[killed % len(UNITS)]
        moment = moments.uniform(0, 0.7) * getattr(total, unit)
        code, _, said = jobs.start(outputs, Disaster(kill_at=(unit, moment))).finish()
        if code == 0:  # it had less to do than that: the next moment is one of a new job
            assert findings(outputs) == found
            shutil.rmtree(outputs)
            service.asked.clear()
            continue
        assert code < 0, said
        killed += 1
        assert_whole(outputs)
    jobs.finish(outputs)
    assert findings(outputs) == found
    assert not [p for p in outputs.rglob("*.tmp") if _in_locked_directory(p)]
    _assert_paid_once(service)


def assert_said(said: str, sentence: str) -> None:
    """It ended with the sentence (one a job of a sweep), and not with python's own words."""
    ends = [line for line in said.splitlines() if line.startswith("robustrun: ")]
    assert sentence in ends[-1], said
    assert "Traceback" not in said
    assert "Error" not in said


@pytest.mark.slow
@pytest.mark.parametrize("kind", JOBS)
def test_a_full_disk_is_said_and_with_room_again_the_job_goes_on(kind, tmp_path, undisturbed):
    jobs, found, total, _ = undisturbed(kind)
    outputs, moments = tmp_path / "full", random.Random(kind)
    for _ in range(ACCIDENTS):
        code, _, said = jobs.start(outputs, Disaster(full_after=int(moments.uniform(0, 0.6) * total.bytes))).finish()
        assert_whole(outputs)
        if code == 0:  # there was room enough for what was left to do
            assert findings(outputs) == found
        else:
            assert code == 1, said
            assert_said(said, "the disk is full")
    jobs.finish(outputs)
    assert findings(outputs) == found


@pytest.mark.slow
@pytest.mark.parametrize("kind", JOBS)
def test_a_file_system_that_turns_read_only_is_said(kind, tmp_path, undisturbed):
    jobs, found, total, _ = undisturbed(kind)
    outputs, moments = tmp_path / "refused", random.Random(kind)
    code, _, said = jobs.start(outputs, Disaster(read_only_after=0)).finish()
    assert code == 2, said
    assert_said(said, "Read-only file system): choose another place with paths.outputs= or $ROBUSTRUN_OUTPUTS")
    for _ in range(ACCIDENTS):
        moment = int(moments.uniform(0.05, 0.6) * total.changes)
        code, _, said = jobs.start(outputs, Disaster(read_only_after=moment)).finish()
        assert_whole(outputs)
        if code == 0:
            assert findings(outputs) == found
        else:
            assert code in (1, 2), said
            assert_said(said, "Read-only file system")
    jobs.finish(outputs)
    assert findings(outputs) == found


@pytest.mark.slow
@pytest.mark.parametrize("kind", JOBS)
def test_a_clock_that_jumps_by_days_changes_nothing(kind, tmp_path, undisturbed):
    jobs, found, total, _ = undisturbed(kind)
    outputs, moments = tmp_path / "jumping", random.Random(kind)
    kill_at = "changes", moments.uniform(0.2, 0.8) * total.changes
    code, _, said = jobs.start(outputs, Disaster(clock=1, kill_at=kill_at)).finish()
    assert code < 0, said
    jobs.finish(outputs, Disaster(clock=2))
    assert findings(outputs) == found


@pytest.mark.slow
@pytest.mark.parametrize("kind", JOBS)
def test_of_two_copies_one_runs_and_the_other_says_so(kind, tmp_path, undisturbed):
    jobs, found, *_ = undisturbed(kind)
    outputs = tmp_path / "both"
    first = jobs.start(outputs, Disaster(stop_when_owner=True))
    first.wait_until_stopped()
    code, _, said = jobs.start(outputs).finish()
    assert code == 2, said
    (sentence,) = [line for line in said.splitlines() if "another process" in line]
    assert_said(sentence, f"another process (pid {first.pid} on host {socket.gethostname()}) is running this job in ")
    first.send_signal(signal.SIGCONT)
    code, _, said = first.finish()
    assert code == 0, said
    assert findings(outputs) == found


@pytest.mark.slow
@pytest.mark.parametrize("kind", JOBS)
def test_two_copies_started_at_once_spoil_nothing(kind, tmp_path, undisturbed):
    jobs, found, *_ = undisturbed(kind)
    outputs = tmp_path / "both"
    for copy in [jobs.start(outputs), jobs.start(outputs)]:
        code, _, said = copy.finish()
        assert code in (0, 2), said
        if code == 2:  # each of a sweep's copies may find the other one at work
            assert_said(said, "is running this job in")
    jobs.finish(outputs)
    assert findings(outputs) == found


def _in_locked_directory(leftover: Path) -> bool:
    """Whether the next process had to remove what the killed one was writing: directories are claimed unlocked."""
    return "comparisons" not in leftover.parts and not leftover.name.startswith("..job.")


def _assert_paid_once(service: Service) -> None:
    """Asked again is at most what was in flight: the last request of a process that was killed."""
    askers = dict.fromkeys(asker for asker, _ in service.asked)
    answered: Counter[bytes] = Counter()
    for asker in askers:
        requests = [images for who, images in service.asked if who == asker]
        again = Counter(image for images in requests for image in images) & answered
        assert not again, f"{len(again)} images were asked again"
        answered.update(image for images in requests[:-1] for image in images)
