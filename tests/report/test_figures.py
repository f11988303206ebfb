"""Figures are drawn whole, however many curves they have."""

import numpy as np
import pytest

from robustrun.report import figures
from robustrun.report.figures import draw
from robustrun.roles import Figure


@pytest.mark.parametrize("label", ["row {}", "a row whose name says much about it, number {}, and its curve"])
@pytest.mark.parametrize("count", [1, 8, 30])
def test_many_curves_leave_room_for_the_axes(tmp_path, count, label):
    x = np.linspace(0, 1, 5)
    series = {label.format(i): (x, x**i) for i in range(count)}
    draw(Figure("curves", "x", "y", series), tmp_path / "curves.png")  # a collapsed axis warns, which is an error here
    assert (tmp_path / "curves.png").stat().st_size > 5000


def test_a_picture_is_there_whole_or_not_at_all_and_its_data_before_it(tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    def cut_short(figure, file):
        file.write(b"half a picture")
        raise Killed

    monkeypatch.setattr(figures, "draw", cut_short)
    with pytest.raises(Killed):
        figures.write({"curves": Figure("curves", "x", "y", {"a": (np.arange(3), np.arange(3))})}, tmp_path / "figures")
    assert [path.name for path in (tmp_path / "figures").iterdir() if path.suffix != ".json"] == ["curves.csv"]
