"""The figures of label-flip certificates: accuracy against flips, and the margin that flips require."""

from collections.abc import Sequence

import numpy as np

from robustrun.methods.smoothing import kl_thresholds, np_thresholds
from robustrun.roles import Figure


def curve(correct: np.ndarray, radius: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(flips, certified accuracy) at every number of flips where it falls, for drawing as steps."""
    held = np.sort(np.where(correct, radius, -1))
    at = np.unique(np.concatenate([[0], held[held >= 0], held[held >= 0] + 1]))
    return at, 1 - np.searchsorted(held, at, side="left") / len(held)


def flips_figure(title: str, series: dict[str, tuple[np.ndarray, np.ndarray]], n: int, constant: float) -> Figure:
    """Curves against the number of flips, with the share of the training set on top."""
    last = max(float(x[y > 0.005].max(initial=1)) for x, y in series.values())

    def draw(canvas) -> None:
        axes = canvas.add_subplot()
        for label, (x, y) in series.items():
            axes.step(x, y, where="post", label=label)
        axes.axhline(constant, color="grey", linestyle=":", linewidth=1, label="constant classifier")
        axes.set(xlabel="changed training labels", ylabel="accuracy", ylim=(0, 1.02), xlim=(0, 1.05 * last))
        axes.set_title(title, fontsize=11)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
        top = axes.secondary_xaxis("top", functions=(lambda r: 100 * r / n, lambda p: p * n / 100))
        top.set_xlabel(f"% of {n:,} training labels", fontsize=8)

    return Figure(title, "changed training labels", "accuracy", series, kind="step", draw=draw)


def margin_figure(noise: Sequence[float], classes: int, largest: int = 100) -> Figure:
    """How few noisy labellings may answer otherwise if r flips are to be certified: one minus the required vote."""
    series = {}
    for q in noise:
        bounds = {"KL": kl_thresholds(q, largest, classes=classes), "NP": np_thresholds(q, largest, classes=classes)}
        for name, thresholds in bounds.items():
            others = thresholds.exp().numpy()
            series[f"{name}, q = {q:g}"] = np.arange(1, len(others) + 1), np.maximum(others, np.finfo(float).tiny)
    return Figure("Required margin", "changed training labels", "votes for other classes", series, yscale="log")
