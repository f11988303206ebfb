"""What a certified sensor looks like: the band around the truth, errors over the quantity, how errors are spread."""

import numpy as np

from robustrun.roles import Figure

_LABELS = {"clean": "clean", "attacked": "under attack", "certified": "certified"}


def figures(columns: dict[str, np.ndarray], kinds: list[str], quantity: str) -> dict[str, Figure]:
    """Figures from the certifier's columns; `kinds` of "clean", "attacked", "certified", weakest first."""
    y = columns["target"]
    order = np.argsort(y, kind="stable")
    order = order[np.unique(np.linspace(0, len(y) - 1, 100).round().astype(int))]  # more bands hide one another
    rank, worst = np.arange(len(order), dtype=float), kinds[-1]
    lower, upper = columns[f"{worst}_lower"][order], columns[f"{worst}_upper"][order]
    axis = f"{quantity.split(' [')[0]}, fraction of its maximum"
    band = Figure(
        title=f"Predictions and their {'certified' if worst == 'certified' else 'attained'} range",
        xlabel="operating points in order of the quantity (up to 100)",
        ylabel=axis,
        series={"range": (rank, columns["predicted"][order], lower, upper), "truth": (rank, y[order])},
    )
    errors = Figure(
        title="Relative error over the quantity",
        xlabel=axis,
        ylabel="relative error",
        kind="scatter",
        # zero has no place on a logarithmic axis
        series={_LABELS[k]: (y, np.maximum(columns[f"{k}_error"], 1e-4)) for k in reversed(kinds)},
        yscale="log",
    )
    shares = (np.arange(len(y)) + 1) / len(y)
    spread = Figure(
        title="Operating points with at most this error",
        xlabel="relative error",
        ylabel="fraction of operating points",
        kind="step",
        series={_LABELS[k]: (np.maximum(np.sort(columns[f"{k}_error"]), 1e-4), shares) for k in kinds},
        xscale="log",
    )
    return {"band": band, "error_by_quantity": errors, "error_distribution": spread}
