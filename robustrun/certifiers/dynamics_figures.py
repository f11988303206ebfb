"""What the certifiers of dynamics show: errors and V over time, phase portraits, films."""

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from robustrun.methods.dynamics import StateMap, VectorField
from robustrun.methods.lyapunov import Lyapunov, StableDynamics
from robustrun.roles import DynamicsSpec, Figure, PendulumSpec


def _quantiles(values: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """The 10 and 90 percent quantiles over the second dimension."""
    finite = torch.nan_to_num(values, nan=math.inf).cpu().numpy()
    return np.quantile(finite, 0.1, axis=1, method="lower"), np.quantile(finite, 0.9, axis=1, method="lower")


def error_over_time(errors: Tensor, rest: Tensor, dt: float) -> Figure:
    """Mean squared error over the starts with its 10 to 90 percent band, beside that of predicting rest."""
    time = dt * np.arange(1, len(errors))
    low, high = _quantiles(errors[1:])
    series = {
        "model: mean (band: 10-90 %)": (time, errors[1:].mean(1).cpu().numpy(), low, high),
        "model: median": (time, errors[1:].median(1).values.cpu().numpy()),
        "at rest": (time, rest[1:].mean(1).cpu().numpy()),
    }
    return Figure("Error along roll-outs", "seconds", "squared error", series, yscale="log")


def lyapunov_over_time(values: Tensor, rate: float, dt: float) -> Figure:
    """V relative to its start, beside the bound exp(-rate t)."""
    keep = values[0] > 0
    ratio = (values[:, keep] / values[0, keep]).clamp(min=1e-30)
    time = dt * np.arange(len(values))
    low, high = _quantiles(ratio)
    series = {
        "V(x(t)) / V(x(0)): mean (band: 10-90 %)": (time, ratio.mean(1).cpu().numpy(), low, high),
        "largest": (time, ratio.amax(1).cpu().numpy()),
        "bound": (time, np.exp(-rate * time)),
    }
    return Figure("The Lyapunov function along roll-outs", "seconds", "relative V", series, yscale="log")


@torch.no_grad()
def phase_portrait(
    model: VectorField | StateMap,
    lyapunov: Lyapunov | None,
    truth: Callable[[Tensor], Tensor | None],
    states: Tensor,
    span: float | None = None,
    points: int = 25,
) -> Figure:
    """Fields over the plane: the true one (or the nominal one), the learned one with roll-outs, and V's level sets."""
    span = span or 1.2 * float(states[0].abs().amax())
    axis = torch.linspace(-span, span, points, dtype=states.dtype, device=states.device)
    grid = torch.cartesian_prod(axis, axis)

    def motion(x: Tensor) -> Tensor:
        return model(x) - x if isinstance(model, StateMap) else model(x)

    def on_grid(values: Tensor) -> np.ndarray:
        return values.reshape(points, points, *values.shape[1:]).transpose(0, 1).cpu().numpy()

    panels: list[tuple[str, np.ndarray]] = []
    true = truth(grid)
    if true is not None:
        panels.append(("true field", on_grid(true)))
    elif isinstance(model, StableDynamics):
        panels.append(("nominal field", on_grid(model.free(grid))))
    learned = "learned field" if true is not None else "stable field" if lyapunov is not None else "free field"
    panels.append((learned, on_grid(motion(grid))))
    fine = torch.linspace(-span, span, 4 * points, dtype=states.dtype, device=states.device)
    level = None if lyapunov is None else lyapunov(torch.cartesian_prod(fine, fine))
    level = None if level is None else level.reshape(len(fine), -1).T.cpu().numpy()
    paths = states[:: max(1, len(states) // 400), :12].cpu().numpy()

    def draw(canvas) -> None:
        canvas.set_size_inches(4 * (len(panels) + (level is not None)), 4.2)
        axes = canvas.subplots(1, len(panels) + (level is not None), squeeze=False)[0]
        places = axis.cpu().numpy()
        for ax, (title, field) in zip(axes, panels, strict=False):
            speed = np.hypot(field[..., 0], field[..., 1])
            ax.streamplot(places, places, field[..., 0], field[..., 1], color=speed, cmap="viridis", density=1.1)
            ax.set_title(title)
        for k in range(paths.shape[1]):
            axes[len(panels) - 1].plot(paths[:, k, 0], paths[:, k, 1], color="tab:red", linewidth=0.8)
        if level is not None:
            ticks = fine.cpu().numpy()
            shown = axes[-1].contour(ticks, ticks, level, levels=np.quantile(level, np.linspace(0.02, 0.98, 14)))
            axes[-1].set_title("level sets of V")
            shown.set_linewidth(1.0)
        for ax in axes:
            ax.set(xlim=(-span, span), ylim=(-span, span), xlabel="$x_1$", ylabel="$x_2$")

    series = {}
    for title, field in panels:
        series[f"{title}, first component"] = (np.arange(points**2), field[..., 0].ravel())
        series[f"{title}, second component"] = (np.arange(points**2), field[..., 1].ravel())
    return Figure("Vector fields", "$x_1$", "$x_2$", series, kind="custom", draw=draw)


@dataclass
class Film:
    """Frames (T, H, W[, 3]) uint8, `seconds` apart when played."""

    frames: np.ndarray
    seconds: float
    title: str = "Roll-out"

    def gif(self) -> bytes:
        """An endlessly repeating GIF."""
        from PIL import Image

        pictures = [Image.fromarray(frame) for frame in self.frames]
        buffer = io.BytesIO()
        duration = max(20, round(1000 * self.seconds))
        pictures[0].save(
            buffer, "GIF", save_all=True, append_images=pictures[1:], duration=duration, loop=0, optimize=False
        )
        return buffer.getvalue()

    def contact_sheet(self, columns: int = 6, rows: int = 2) -> Figure:
        """Frames spread evenly over the film, left to right and down."""
        chosen = self.frames[np.linspace(0, len(self.frames) - 1, columns * rows).round().astype(int)]
        padded = np.pad(chosen, ((0, 0), (2, 2), (2, 2)) + ((0, 0),) * (chosen.ndim - 3), constant_values=255)
        sheet = np.concatenate(
            [np.concatenate(padded[r * columns : (r + 1) * columns], axis=1) for r in range(rows)], axis=0
        )
        return Figure(self.title, kind="image", image=sheet if sheet.ndim == 3 else np.repeat(sheet[..., None], 3, 2))


def pendulum_film(truth: Tensor | None, states: Tensor, spec: DynamicsSpec, frames: int, side: int = 160) -> Film:
    """One swinging chain: the truth in grey beneath the prediction in red."""
    from PIL import Image, ImageDraw

    links = spec.angles
    lengths = np.asarray(spec.lengths if isinstance(spec, PendulumSpec) else [1 / links] * links)
    chosen = np.linspace(0, len(states) - 1, min(frames, len(states))).round().astype(int)
    scale, middle = 0.45 * side / lengths.sum(), side / 2

    def chain(state: np.ndarray) -> Sequence[tuple[float, float]]:
        angles = np.nan_to_num(state[:links], nan=0.0, posinf=0.0, neginf=0.0)
        x, y = np.cumsum(lengths * np.sin(angles)), np.cumsum(lengths * np.cos(angles))
        return [(middle, middle), *zip((middle + scale * x).tolist(), (middle + scale * y).tolist(), strict=True)]

    pictures = []
    for k in chosen:
        picture = Image.new("RGB", (2 * side, 2 * side), "white")  # drawn twice as large, then smoothed
        pen = ImageDraw.Draw(picture)
        layers = [(states[k, 0], (205, 40, 40))]
        if truth is not None and k < len(truth):
            layers.insert(0, (truth[k, 0], (150, 150, 150)))
        for state, colour in layers:
            places = [(2 * x, 2 * y) for x, y in chain(state.cpu().numpy())]
            pen.line(places, fill=colour, width=4)
            for x, y in places[1:]:
                pen.ellipse((x - 7, y - 7, x + 7, y + 7), fill=colour)
        pictures.append(np.asarray(picture.resize((side, side), Image.Resampling.LANCZOS)))
    seconds = spec.dt * (len(states) - 1) / max(1, len(chosen) - 1)
    return Film(np.stack(pictures), seconds, "Roll-out: truth in grey, model in red")
