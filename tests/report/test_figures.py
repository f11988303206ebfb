"""Figures are drawn whole, however many curves they have."""

import numpy as np
import pytest

from robustrun.report.figures import draw
from robustrun.roles import Figure


@pytest.mark.parametrize("label", ["row {}", "a row whose name says much about it, number {}, and its curve"])
@pytest.mark.parametrize("count", [1, 8, 30])
def test_many_curves_leave_room_for_the_axes(tmp_path, count, label):
    x = np.linspace(0, 1, 5)
    series = {label.format(i): (x, x**i) for i in range(count)}
    draw(Figure("curves", "x", "y", series), tmp_path / "curves.png")  # a collapsed axis warns, which is an error here
    assert (tmp_path / "curves.png").stat().st_size > 5000
