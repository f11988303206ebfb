"""Long continuations of a clip: do the latent states stay bounded, and does the picture keep moving?

Source: Manek and Kolter (arXiv 2001.06116).
"""

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from robustrun.certifiers.dynamics_figures import Film
from robustrun.certifiers.stability import in_double
from robustrun.methods.dynamics import LatentVideo
from robustrun.methods.lyapunov import SafeStep, StableDynamics, attack_decrease, radial_starts
from robustrun.numbers import NonNegativeInt, PositiveInt
from robustrun.registry import certifiers
from robustrun.roles import Certifier, Figure, Fitted, Report, VideoTask
from robustrun.runtime import Run


@certifiers.register("video_stability")
class VideoStability(Certifier):
    """Encode one frame, iterate the latent dynamics in float64, decode.

    Args:
        state: which state of the fitted model.
        steps: frames that are generated.
        times: numbers of frames at which the size and motion of the continuation are reported.
        start: the latent state is the "mean" of the first frame's, or a "sample".
        step: "model" is the model's own; "safe" makes V never rise by contracting each Runge-Kutta substep.
        film: how many frames of the continuation are kept as a GIF, from its start; 0: none.
        attack_starts, attack_steps: an adversary maximises the violation of the decrease from so many states.
    """

    def __init__(
        self,
        *,
        state: str = "last",
        steps: PositiveInt = 3000,
        times: list[PositiveInt] = [300, 1000, 3000],  # noqa: B006
        start: Literal["mean", "sample"] = "mean",
        step: Literal["model", "safe"] = "model",
        film: NonNegativeInt = 240,
        attack_starts: PositiveInt = 2000,
        attack_steps: NonNegativeInt = 30,
    ):
        self.state, self.steps, self.times, self.start, self.step = state, steps, times, start, step
        self.film, self.attack_starts, self.attack_steps = film, attack_starts, attack_steps

    def certify(self, task: VideoTask, fitted: Fitted[LatentVideo], run: Run) -> Report:
        model = fitted.at(self.state)
        metrics = _next_frame_error(task, model, run)
        encoded, moments = _encode(task, model, run)
        trajectory = self._continue(model, moments, run)
        norms = torch.linalg.vector_norm(trajectory, dim=1)
        largest = torch.linalg.vector_norm(encoded, dim=1).max()
        relative = torch.nan_to_num(norms / largest, nan=float("inf"))
        frames = _decode(model, trajectory, sorted({*range(self.film), *self._neighbours()}))
        metrics |= self._continuation_metrics(relative, frames, task)
        if isinstance(model.latent, StableDynamics):
            generator = run.generator("attack", device="cpu")
            dimension = trajectory.shape[1]
            points = radial_starts(self.attack_starts, dimension, generator, dtype=torch.float64).to(run.device)
            attack = attack_decrease(in_double(model.latent).decrease, points, steps=self.attack_steps)
            metrics["attack_violation"] = attack.violation
        shown = {
            "norm": Figure(
                "Size of the latent state",
                "frame",
                "|z| / largest of the clip",
                {"continuation": (np.arange(len(norms)), relative.clamp(max=1e30).cpu().numpy())},
                yscale="log",
            ),
            "latent": _latent_paths(encoded, trajectory[: max(self.film, 2)]),
        }
        files = {}
        if self.film:
            film = Film(np.stack([frames[k] for k in range(min(self.film, self.steps))]), task.spec.dt, "Continuation")
            files["figures/continuation.gif"] = film.gif()
            shown["continuation"] = film.contact_sheet()
        return Report(metrics, figures=shown, files=files, counts={"frames": self.steps})

    @torch.no_grad()
    def _continue(self, model: LatentVideo, moments: tuple[Tensor, Tensor], run: Run) -> Tensor:
        """Latent states (1 + steps, d) in float64, from the first frame's."""
        mean, log_variance = (moment[:1].double() for moment in moments)
        z = mean
        if self.start == "sample":
            noise = torch.randn(z.shape, generator=run.generator("start", device="cpu"), dtype=z.dtype)
            z = mean + (0.5 * log_variance).exp() * noise.to(z.device)
        double = in_double(model)
        advance = double.advance()
        if self.step == "safe" and isinstance(double.latent, StableDynamics):
            safe = SafeStep(double.latent, 0.5)
            advance = lambda z: safe(safe(z))  # noqa: E731
        states = [z]
        with run.progress(self.steps, "continuing", "frame") as progress:
            for _ in range(self.steps):
                states.append(advance(states[-1]))
                progress.advance()
        return torch.cat(states)

    def _neighbours(self) -> list[int]:
        """Frames on both sides of each reported time, for the motion there; the last time has one to its left."""
        return [k for time in self.times if time <= self.steps for k in (time - 1, time)]

    def _continuation_metrics(
        self, relative: Tensor, frames: dict[int, np.ndarray], task: VideoTask
    ) -> dict[str, float]:
        clip = task.frames("train").float()
        motion = float(clip.diff(dim=0).square().mean())
        metrics = {"largest_norm": float(relative.max())}
        for time in self.times:
            if time <= self.steps:
                change = np.square(frames[time].astype(float) - frames[time - 1].astype(float)).mean()
                metrics[f"norm_{time}"] = float(relative[time])
                metrics[f"motion_{time}"] = change / motion  # 0: the picture is frozen
        beyond = (relative > 3).nonzero()
        metrics["frames_until_3x"] = float(beyond[0, 0]) if len(beyond) else float(self.steps)
        return metrics


@torch.no_grad()
def _next_frame_error(task: VideoTask, model: LatentVideo, run: Run) -> dict[str, float]:
    """Squared error of the next frame, summed over pixels, on held-out pairs; and of repeating the frame."""
    totals, count = torch.zeros(2, dtype=torch.float64, device=run.device), 0
    for batch in task.loader("test", 64, run).epoch(0):
        z, _ = model.encode(batch.inputs)
        predicted = model.decode(model.advance()(z))
        pairs = ((predicted, batch.targets), (batch.inputs, batch.targets))
        totals += torch.stack([(a - b).square().sum().double() for a, b in pairs])
        count += len(batch.inputs)
    predicted, repeated = (totals / count).tolist()
    return {"next_frame_error": predicted, "repeated_frame_error": repeated}


@torch.no_grad()
def _encode(task: VideoTask, model: LatentVideo, run: Run) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Means of the training clip's latent states (T, d) in float64, and both moments of its last frame.

    The continuation starts where the training clip ends.
    """
    means = []
    frames = task.frames("train")
    for part in frames.split(256):
        mean, log_variance = model.encode(part.to(run.device).float() / 255)
        means.append(mean)
    return torch.cat(means).double(), (mean[-1:], log_variance[-1:])


@torch.no_grad()
def _decode(model: LatentVideo, trajectory: Tensor, numbers: list[int]) -> dict[int, np.ndarray]:
    """Frames (H, W[, 3]) uint8 by number; a state beyond float32 decodes to what the largest number does."""
    chosen = torch.tensor([k for k in numbers if k < len(trajectory)], device=trajectory.device)
    frames = {}
    for part in chosen.split(128):
        z = torch.nan_to_num(trajectory[part].float(), nan=0.0, posinf=1e18, neginf=-1e18).clamp(-1e18, 1e18)
        images = torch.nan_to_num(model.decode(z), nan=0.5)
        pictures = (255 * images).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        frames.update(zip(part.tolist(), pictures[..., 0] if pictures.shape[-1] == 1 else pictures, strict=True))
    return frames


def _latent_paths(encoded: Tensor, trajectory: Tensor) -> Figure:
    """The clip's latent states and the continuation's, on the plane of the clip's two principal components."""
    centre = encoded.mean(0)
    _, _, axes = torch.linalg.svd(encoded - centre, full_matrices=False)
    series = {}
    for label, states in (("clip", encoded), ("continuation", trajectory)):
        plane = torch.nan_to_num((states - centre) @ axes[:2].T).clamp(-1e9, 1e9).cpu().numpy()
        series[label] = (plane[:, 0], plane[:, -1])
    return Figure("Latent states", "first principal component", "second principal component", series, kind="scatter")
