import pytest
import torch

from robustrun.runtime import progress as module
from robustrun.runtime.progress import Display


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 1000.0

        def monotonic(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def test_plain_lines_now_and_then(clock, caplog):
    caplog.set_level("INFO", logger="robustrun")
    with Display().progress(100, "certifying", "example") as bar:
        for _ in range(100):
            clock.now += 1.0
            bar.advance(radius=torch.tensor(0.25))
    messages = [record.message for record in caplog.records]
    assert messages[0] == "certifying: 5/100 example, 1 example/s, 1:35 left, radius 0.25"
    assert [m.split("/")[0].split()[-1] for m in messages] == ["5", "35", "65", "95", "100"]
    assert messages[-1] == "certifying: 100/100 example, 1 example/s, 1:40, radius 0.25"


def test_short_work_says_nothing(clock, caplog):
    caplog.set_level("INFO", logger="robustrun")
    with Display().progress(3, "evaluating") as bar:
        for _ in range(3):
            clock.now += 1.0
            bar.advance()
    assert caplog.records == []


def test_a_resumed_job_counts_its_rate_from_where_it_resumed(clock, caplog):
    caplog.set_level("INFO", logger="robustrun")
    with Display().progress(1000, "training", "step", done=900) as bar:
        clock.now += 10
        bar.update(920)
    assert caplog.records[0].message == "training: 920/1000 step, 2 step/s, 0:40 left"


def test_other_ranks_are_silent(clock, caplog):
    caplog.set_level("INFO", logger="robustrun")
    with Display(silent=True).progress(10, "training") as bar:
        clock.now += 100
        bar.advance(5)
    assert caplog.records == []


def test_fields_are_not_read_unless_shown(clock):
    class Costly:
        def item(self):
            raise AssertionError("the device was waited for")

    with Display().progress(10, "training") as bar:
        for _ in range(10):
            bar.advance(loss=Costly())


def test_bars_on_a_terminal_can_be_nested(monkeypatch, capsys):
    monkeypatch.setattr(Display, "terminal", True)
    monkeypatch.setenv("FORCE_COLOR", "1")
    display = Display()
    with display.progress(2, "training") as outer:
        with display.progress(4, "evaluating") as inner:
            assert inner._rich is outer._rich
            inner.advance(4, error=0.25)
        outer.advance(2, loss=0.5)
    assert display._rich is None
    shown = capsys.readouterr().err
    assert "training" in shown
    assert "2/2" in shown
    assert "loss 0.5" in shown


def test_an_open_bar_is_taken_off_the_screen(monkeypatch):
    monkeypatch.setattr(Display, "terminal", True)
    display = Display()
    display.progress(2, "training").__enter__()
    live = display._rich
    display.close()
    assert not live.live.is_started
