"""Pictures of explorations: curves with bands, maps of visits and of the safe set, paths, and a film."""

import io
from dataclasses import dataclass

import numpy as np

from robustrun.methods.safe_exploration import Scene
from robustrun.roles import Figure, MDPTask


@dataclass(frozen=True)
class Decisions:
    """What the trials did: states, actions and successors (T, steps); `entered` (T, S, A), when pairs became safe."""

    states: np.ndarray
    actions: np.ndarray
    successors: np.ndarray
    entered: np.ndarray


def band(title: str, ylabel: str, counts: np.ndarray, every: int) -> Figure:
    """Mean over trials of cumulative `counts` (T, steps), within their smallest and largest."""
    shown = counts[:, every - 1 :: every]
    x = np.arange(1, shown.shape[1] + 1) * every / 1000
    series = {"mean, least and most of the trials": (x, shown.mean(axis=0), shown.min(axis=0), shown.max(axis=0))}
    return Figure(title, "decisions / 1000", ylabel, series)


def growth(entered: np.ndarray, steps: int) -> np.ndarray:
    """(T, steps) pairs in the safe set after every decision."""
    times = entered.reshape(len(entered), -1)
    joined = np.stack([np.bincount(t[t >= 0], minlength=steps + 1) for t in times])
    return np.cumsum(joined, axis=1)[:, 1:]


def visits(decisions: Decisions, task: MDPTask) -> Figure:
    """How often each cell was decided in, over all trials."""
    counts = np.bincount(decisions.states.ravel(), minlength=task.mdp.n_states)
    picture = task.scene.picture(counts)

    def draw(canvas) -> None:
        from matplotlib.colors import LogNorm

        axes = canvas.add_subplot(title="Decisions taken in each place")
        aspect = _background(axes, task.scene)
        shown = np.ma.masked_where(~(picture > 0), picture)
        image = axes.imshow(shown, cmap="viridis", norm=LogNorm(1, max(2, counts.max())), aspect=aspect)
        axes.set_axis_off()
        canvas.colorbar(image, ax=axes, orientation=_along(picture), shrink=0.7)

    return Figure("Visits", kind="custom", draw=draw)


def safe_map(decisions: Decisions, task: MDPTask) -> Figure:
    """When each place got its first safe action, in the first trial."""
    entered = decisions.entered[0]
    when = np.where(entered < 0, np.inf, entered).min(axis=1)
    when[task.mdp.goal] = np.inf  # goals belong to the set from the first planning call on
    picture = -task.scene.picture(-when)
    picture[~np.isfinite(picture)] = np.nan

    def draw(canvas) -> None:
        axes = canvas.add_subplot(title="Decisions until the first safe action in each place (first trial)")
        aspect = _background(axes, task.scene)
        image = axes.imshow(np.ma.masked_invalid(picture), cmap="plasma_r", aspect=aspect)
        axes.set_axis_off()
        canvas.colorbar(image, ax=axes, orientation=_along(picture), shrink=0.7)

    return Figure("Safe set", kind="custom", draw=draw)


def _background(axes, scene: Scene) -> float:
    """Draw the scene; the aspect that it was drawn with: long rows are drawn higher than they are."""
    rows, columns = scene.background.shape[:2]
    aspect = max(1.0, columns / rows / 4)
    axes.imshow(scene.background, aspect=aspect)
    return aspect


def _along(picture: np.ndarray) -> str:
    return "horizontal" if picture.shape[1] > 2 * picture.shape[0] else "vertical"


def paths(decisions: Decisions, task: MDPTask, limit: int = 80) -> Figure:
    """Paths of the first trial's episodes, evenly chosen: red if they failed, green if they reached the goal."""
    states, successors = decisions.states[0], decisions.successors[0]
    ends = np.flatnonzero(task.mdp.terminal[successors])
    starts = np.append(0, ends[:-1] + 1) if len(ends) else np.zeros(0, dtype=int)
    chosen = np.unique(np.linspace(0, len(ends) - 1, min(limit, len(ends))).round().astype(int))
    failed = np.flatnonzero(task.mdp.unsafe[successors[ends]]) if len(ends) else chosen
    chosen = np.union1d(chosen, failed[:: max(1, len(failed) // limit)])

    def draw(canvas) -> None:
        axes = canvas.add_subplot(title="Paths of the first trial: green to the goal, red to a failure, grey neither")
        _background(axes, task.scene)
        tail = int(ends[-1]) + 1 if len(ends) else 0
        _line(axes, task.scene, states[tail : tail + 2000], "0.4", 0.3)
        for episode in chosen:
            path = np.append(states[starts[episode] : ends[episode] + 1], successors[ends[episode]])
            fails = task.mdp.unsafe[path[-1]]
            _line(axes, task.scene, path, "red" if fails else "green", 0.6 if fails else 0.25)
        axes.set_axis_off()

    return Figure("Paths", kind="custom", draw=draw)


def _line(axes, scene: Scene, path: np.ndarray, colour: str, alpha: float) -> None:
    rows, columns = scene.cells[path].T
    axes.plot(columns, rows, color=colour, alpha=alpha, linewidth=0.7)


def film(decisions: Decisions, task: MDPTask, frames: int) -> bytes:
    """A GIF of the first trial: places turn green as their actions become safe, and the agent walks about.

    Frames lie closer together while the safe set still grows.
    """
    from PIL import Image

    entered, steps = decisions.entered[0], decisions.states.shape[1]
    grown = max(int(entered.max()), 1)
    times = np.unique(
        np.concatenate([np.linspace(0, grown, 3 * frames // 4), np.linspace(grown, steps - 1, frames // 4)]).astype(int)
    )
    scale = max(4, min(16, 900 // task.scene.background.shape[1]))
    pictures = []
    for time in times[times < steps]:
        safe = (entered >= 0) & (entered <= time)
        share = 0.4 * safe.any(axis=1) + 0.6 * safe.mean(axis=1)
        frame = task.scene.frame(int(decisions.states[0, time]), tint=share, scale=scale)
        pictures.append(Image.fromarray(frame))
    buffer = io.BytesIO()
    pictures[0].save(buffer, "GIF", save_all=True, append_images=pictures[1:], duration=120, loop=0)
    return buffer.getvalue()
