"""Moving textures drawn from formulas: test videos whose true dynamics are known."""

import math

import numpy as np
import torch

from robustrun.methods.dynamics.integrate import integrator, rollout
from robustrun.methods.dynamics.pendulum import NLinkPendulum

_WAVES = 6


def _to_bytes(intensity: np.ndarray) -> np.ndarray:
    return np.round(255 * np.clip(intensity, 0.0, 1.0)).astype(np.uint8)


def waves(frames: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """Six travelling plane waves on a torus: quasi-periodic, uint8 (frames, height, width, 1).

    Wave i has an integer wave vector k_i in {-3 ... 3}^2 without 0, amplitude 1 / |k_i|, a random phase and the
    angular frequency 0.25 sqrt(|k_i|) a frame; the sum is squashed to [0, 1] by tanh.
    """
    rng = np.random.default_rng(seed)
    grid = np.array([(i, j) for i in range(-3, 4) for j in range(-3, 4) if (i, j) != (0, 0)])
    vectors = grid[rng.choice(len(grid), _WAVES, replace=False)]
    norms = np.linalg.norm(vectors, axis=1)
    phases = rng.uniform(0, 2 * math.pi, _WAVES)
    y, x = np.meshgrid(np.arange(height) / height, np.arange(width) / width, indexing="ij")
    space = 2 * math.pi * (vectors[:, 0, None, None] * x + vectors[:, 1, None, None] * y)
    time = 0.25 * np.sqrt(norms) * np.arange(frames)[:, None]
    # cos(space - time) as two products of small arrays, so that nothing of size waves x frames x pixels is made.
    even, odd = np.cos(time - phases) / norms, np.sin(time - phases) / norms
    surface = np.tensordot(even, np.cos(space), 1) + np.tensordot(odd, np.sin(space), 1)
    return _to_bytes(0.5 + 0.5 * np.tanh(1.5 * surface / surface.std()))[..., None]


def fire(frames: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """Rising flames from four octaves of value noise, brightest at the bottom: uint8 (frames, height, width, 3)."""
    lattice = np.random.default_rng(seed).random((64, 64, 64)).astype(np.float32)
    y = np.arange(height, dtype=np.float32)
    x = 4 * np.arange(width, dtype=np.float32) / width
    video = np.empty((frames, height, width, 3), np.uint8)
    for t in range(frames):  # a frame at a time: the octaves of a whole clip would not fit in memory
        rise, depth = 4 * y / height + 0.06 * t, 0.02 * t
        noise = sum(_value_noise(lattice, f * x, f * rise, f * depth) / f for f in (1, 2, 4, 8))
        intensity = np.clip(1.6 * (y / height)[:, None] * noise, 0, 1)
        video[t] = _to_bytes(np.stack([3 * intensity, 3 * intensity - 1, 3 * intensity - 2], 2))
    return video


def _value_noise(lattice: np.ndarray, x: np.ndarray, y: np.ndarray, z: float) -> np.ndarray:
    """Smoothly interpolated periodic noise at the grid of y and x in the plane z, (len(y), len(x))."""

    def corners(coordinate: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        cell = np.floor(coordinate).astype(np.int64)
        fraction = coordinate - cell
        return cell % 64, (cell + 1) % 64, fraction * fraction * (3 - 2 * fraction)

    (x0, x1, wx), (y0, y1, wy), (z0, z1, wz) = corners(x), corners(y), corners(np.asarray(z))
    plane = lattice[:, :, z0] * (1 - wz) + lattice[:, :, z1] * wz
    rows = plane[y0] * (1 - wy)[:, None] + plane[y1] * wy[:, None]
    return rows[:, x0] * (1 - wx) + rows[:, x1] * wx


def pendulum_video(frames: int, height: int, width: int, seed: int = 0, *, links: int = 2) -> np.ndarray:
    """A swinging pendulum, its masses drawn as anti-aliased discs: uint8 (frames, height, width, 1), 1/30 s a frame."""
    pendulum = NLinkPendulum(links, damping=0.05)
    start = np.random.default_rng(seed).uniform(-1.0, 1.0, (1, 2 * links))
    states = rollout(integrator(pendulum.field, 1 / 30, substeps=4), torch.from_numpy(start), frames - 1)[:, 0]
    places = pendulum.positions(states[:, :links]).numpy()
    scale = 0.42 * min(height, width) / sum(pendulum.lengths)
    centre = np.array([width / 2, height / 2])
    y, x = np.meshgrid(np.arange(height) + 0.5, np.arange(width) + 0.5, indexing="ij")
    radius = max(1.5, 0.06 * min(height, width))
    video = np.zeros((frames, height, width))
    for link in range(links):
        px, py = (centre + scale * places[:, link]).T[..., None, None]
        video = np.maximum(video, np.clip(radius + 0.5 - np.hypot(x - px, y - py), 0, 1))
    return _to_bytes(video)[..., None]


TEXTURES = {"waves": waves, "fire": fire, "pendulum": pendulum_video}
