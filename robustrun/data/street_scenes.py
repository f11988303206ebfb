"""Drawn street scenes with a class a pixel: large and thin things, for trying segmentation out without a download."""

import colorsys

import numpy as np

CLASSES = ("sky", "road", "building", "vehicle", "pole")
IGNORE = 255
_SKY, _ROAD, _BUILDING, _VEHICLE, _POLE = range(5)


def street_scenes(count: int, seed: int, height: int = 64, width: int = 128) -> tuple[np.ndarray, np.ndarray]:
    """`count` scenes: images (count, 3, height, width) uint8 and classes (count, height, width) uint8.

    A scene depends on the seed and its own number alone. Pixels around an object, and beside the road, are ignored.
    """
    scenes = [_Scene(np.random.default_rng((seed, i)), height, width).drawn() for i in range(count)]
    images, labels = zip(*scenes, strict=True)
    return np.stack(images), np.stack(labels)


class _Scene:
    def __init__(self, rng: np.random.Generator, height: int, width: int):
        self.rng, self.height, self.width = rng, height, width
        self.y, self.x = np.mgrid[:height, :width]
        self.image = np.zeros((height, width, 3))
        self.labels = np.full((height, width), IGNORE, np.uint8)
        self.horizon = int(height * rng.uniform(0.35, 0.55))

    def drawn(self) -> tuple[np.ndarray, np.ndarray]:
        self._ground()
        for _ in range(self.rng.integers(1, 5)):
            self._building()
        for _ in range(self.rng.integers(1, 4)):
            self._vehicle()
        for _ in range(self.rng.integers(1, 4)):
            self._pole()
        lit = self.image * self.rng.uniform(0.7, 1.3) + self.rng.normal(0, 0.03, self.image.shape)
        return (255 * lit.clip(0, 1)).round().astype(np.uint8).transpose(2, 0, 1), self.labels

    def _ground(self) -> None:
        above = self.y < self.horizon
        height = (self.y / self.horizon).clip(0, 1)[..., None]
        self.image[:] = np.array([0.35, 0.55, 0.9]) * (1 - height) + np.array([0.8, 0.85, 0.95]) * height
        self.labels[above] = _SKY
        self.image[~above] = self.rng.uniform([0.2, 0.35, 0.1], [0.4, 0.55, 0.3])  # the verge, which is no class
        depth = (self.y - self.horizon) / (self.height - self.horizon)
        centre = self.width * self.rng.uniform(0.4, 0.6)
        half = self.width * (0.15 + (self.rng.uniform(0.45, 0.65) - 0.15) * depth)
        road = ~above & (np.abs(self.x - centre) <= half)
        self.image[road] = self.rng.uniform(0.3, 0.5) + self.rng.normal(0, 0.05, (road.sum(), 1))
        self.labels[road] = _ROAD

    def _building(self) -> None:
        left, wide = self.rng.integers(-10, self.width - 10), self.rng.integers(14, 40)
        top = int(self.horizon * self.rng.uniform(0.1, 0.8))
        box = (self.x >= left) & (self.x < left + wide) & (self.y >= top) & (self.y < self.horizon)
        wall = self._colour(saturation=(0.1, 0.5), value=(0.4, 0.9))
        windows = (((self.x - left) % 5 >= 3) & ((self.y - top) % 5 >= 3))[..., None]
        self._paint(box, np.where(windows, 0.35 * wall, wall), _BUILDING)

    def _vehicle(self) -> None:
        bottom = self.rng.integers(self.horizon + 6, self.height)
        size = 0.15 + 0.5 * (bottom - self.horizon) / (self.height - self.horizon)
        high, wide = max(4, int(22 * size)), max(7, int(40 * size))
        left = self.rng.integers(self.width // 8, max(self.width * 7 // 8 - wide, self.width // 8 + 1))
        box = (self.x >= left) & (self.x < left + wide) & (self.y >= bottom - high) & (self.y < bottom)
        colour = np.broadcast_to(self._colour(saturation=(0.8, 1.0), value=(0.6, 1.0)), self.image.shape).copy()
        radius = max(1.5, high / 5)
        for wheel in (left + wide * 0.22, left + wide * 0.78):
            colour[(self.x - wheel) ** 2 + (self.y - bottom + radius) ** 2 <= radius**2] = 0.08
        self._paint(box, colour, _VEHICLE)

    def _pole(self) -> None:
        left, wide = self.rng.integers(2, self.width - 4), self.rng.integers(1, 4)
        top = int(self.horizon * self.rng.uniform(0.1, 0.6))
        foot = self.rng.integers(self.horizon + 3, self.height)
        bar = (self.x >= left) & (self.x < left + wide) & (self.y >= top) & (self.y < foot)
        self._paint(bar, np.full(3, self.rng.uniform(0.1, 0.25)), _POLE)

    def _colour(self, saturation: tuple[float, float], value: tuple[float, float]) -> np.ndarray:
        return np.array(colorsys.hsv_to_rgb(self.rng.random(), self.rng.uniform(*saturation), self.rng.uniform(*value)))

    def _paint(self, mask: np.ndarray, colour: np.ndarray, label: int) -> None:
        """Draw an object; the ring of one pixel around it is of no class."""
        self.image[mask] = np.broadcast_to(colour, self.image.shape)[mask]
        padded = np.pad(mask, 1)
        near = padded[2:, 1:-1] | padded[:-2, 1:-1] | padded[1:-1, 2:] | padded[1:-1, :-2]
        self.labels[near & ~mask] = IGNORE
        self.labels[mask] = label
