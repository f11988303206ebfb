"""What says what may be claimed of a fitted model: a report of figures, records of examples and pictures."""

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from robustrun.roles.tasks import Task
from robustrun.roles.trainers import Fitted
from robustrun.runtime import Run


@dataclass
class Figure:
    """A figure as data: drawn as PNG/PDF, written as CSV, and drawn again on the HTML page.

    `series` maps a label to (x, y) or (x, y, low, high) arrays of one length. `kind` "image" takes `image` (H, W[, 3])
    instead. `draw(canvas)`, if given, makes the picture; with the kind "custom" it alone can, and the series are data.
    """

    title: str
    xlabel: str = ""
    ylabel: str = ""
    series: dict[str, tuple[np.ndarray, ...]] = field(default_factory=dict)
    kind: Literal["line", "step", "scatter", "image", "custom"] = "line"
    image: np.ndarray | None = None
    draw: Any = None  # Callable[[matplotlib.figure.Figure], None]
    xscale: Literal["linear", "log"] = "linear"
    yscale: Literal["linear", "log"] = "linear"


@dataclass
class Report:
    """What may be claimed: flat metrics (name -> number), one record an example, figures, counts.

    `examples` maps a column to an array with one entry an example; the column "index" is required in it.
    """

    metrics: dict[str, float]
    examples: dict[str, np.ndarray] | None = None
    figures: dict[str, Figure] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)  # further artefacts: relative path -> content


class Certifier:
    """Says what may be claimed of a fitted model: `Certifier(*, <config>).certify(task, fitted, run)`.

    Raises:
        ConfigError: options exclude each other.
    """

    closed_form = False  # speaks of least-squares fits alone

    def check(self, task: Task) -> None:
        """Look whether the loaded task suits the options; called before anything is trained.

        Raises:
            ConfigError: it does not.
        """

    def certify(self, task: Task, fitted: Fitted, run: Run) -> Report:
        """Judge the fitted model on the task.

        Raises:
            ConfigError: the options do not suit the task or the model.
            Stopped: a signal asked the job to leave; what was judged is kept for resuming.
        """
        raise NotImplementedError
