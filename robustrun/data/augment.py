"""Augmentations of whole batches, vectorised, on the device that holds the batch.

Each is split in two: `draw` makes the random numbers of many examples at once (on the CPU, so that they are
the same on every device), and calling it applies a batch's share of them. Images are float (B, C, H, W) in
[0, 1].
"""

import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from robustrun.errors import ConfigError


class Augmentation(Protocol):
    """What the loaders ask of an augmentation."""

    def draw(self, count: int, shape: Sequence[int], generator: Generator) -> tuple[Tensor, ...]:
        """Random numbers for `count` examples of `shape` (C, H, W): tensors with one row an example."""
        ...

    def __call__(self, images: Tensor, *draws: Tensor) -> Tensor:
        """The augmented images, given their rows of what `draw` returned."""
        ...


@dataclass(frozen=True)
class PadCrop:
    """Pad by `padding` on every side, with zeros or by reflection, then crop to the old size anywhere.

    Reflection mirrors without repeating the edge pixel. Offset (padding, padding) returns the image itself.

    Raises:
        ValueError: the padding is below 1, or the mode unknown.
    """

    padding: int = 4
    mode: Literal["zero", "reflect"] = "zero"

    def __post_init__(self) -> None:
        if self.padding < 1 or self.mode not in ("zero", "reflect"):
            raise ValueError("pad_crop takes a padding of at least 1 pixel, and zero or reflect")

    def draw(self, count: int, shape: Sequence[int], generator: Generator) -> tuple[Tensor, ...]:
        high = 2 * self.padding + 1
        return tuple(torch.randint(high, (count,), generator=generator) for _ in ("row", "column"))

    def __call__(self, images: Tensor, row: Tensor, column: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        padded = F.pad(images, [self.padding] * 4, mode="constant" if self.mode == "zero" else "reflect")
        windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # a view: (B, C, rows, columns, H, W)
        return windows[torch.arange(len(images), device=images.device), :, row, column]


@dataclass(frozen=True)
class Flip:
    """Mirror left and right with probability one half."""

    def draw(self, count: int, shape: Sequence[int], generator: Generator) -> tuple[Tensor, ...]:
        return (torch.randint(2, (count,), generator=generator, dtype=torch.uint8).bool(),)

    def __call__(self, images: Tensor, flipped: Tensor) -> Tensor:
        return torch.where(flipped[:, None, None, None], images.flip(-1), images)


@dataclass(frozen=True)
class Cutout:
    """Set a square of `size` pixels to zero, anywhere fully inside (after DeVries and Taylor 2017).

    Raises:
        ValueError: the size is below 1.
        ConfigError: on drawing, the square does not fit into the images.
    """

    size: int = 8

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError("cutout takes a size of at least 1 pixel")

    def draw(self, count: int, shape: Sequence[int], generator: Generator) -> tuple[Tensor, ...]:
        if self.size > min(shape[-2:]):
            raise ConfigError(f"cutout:{self.size} does not fit into images of {shape[-2]}x{shape[-1]} pixels")
        return tuple(torch.randint(extent - self.size + 1, (count,), generator=generator) for extent in shape[-2:])

    def __call__(self, images: Tensor, row: Tensor, column: Tensor) -> Tensor:
        def inside(first: Tensor, extent: int) -> Tensor:
            position = torch.arange(extent, device=images.device) - first[:, None]
            return (position >= 0) & (position < self.size)

        height, width = images.shape[-2:]
        hole = inside(row, height)[:, None, :, None] & inside(column, width)[:, None, None, :]
        return images.masked_fill(hole, 0.0)


@dataclass(frozen=True)
class Rotate:
    """Rotate about the centre by an angle uniform in [-degrees, degrees]; what comes from outside is zero.

    The nearest pixel is taken, or with "bilinear" the four around are interpolated.

    Raises:
        ValueError: the degrees are not in (0, 180], or the interpolation is unknown.
    """

    degrees: float = 15.0
    interpolation: Literal["nearest", "bilinear"] = "nearest"

    def __post_init__(self) -> None:
        if not 0 < self.degrees <= 180 or self.interpolation not in ("nearest", "bilinear"):
            raise ValueError("rotate takes degrees in (0, 180], and nearest or bilinear")

    def draw(self, count: int, shape: Sequence[int], generator: Generator) -> tuple[Tensor, ...]:
        return ((2 * torch.rand(count, generator=generator) - 1) * math.radians(self.degrees),)

    def __call__(self, images: Tensor, angle: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
        # coordinates run from -1 to 1 whatever the extent, hence the aspect ratio
        rows = [
            torch.stack((cos, -sin * height / width, zero), -1),
            torch.stack((sin * width / height, cos, zero), -1),
        ]
        grid = F.affine_grid(torch.stack(rows, -2).to(images.dtype), list(images.shape), align_corners=False)
        return F.grid_sample(images, grid, mode=self.interpolation, padding_mode="zeros", align_corners=False)


@dataclass(frozen=True)
class Jitter:
    """Scale brightness, contrast and saturation, in this order, by factors uniform in 1 +- `strength`.

    Contrast is about the image's mean grey, saturation about each pixel's grey (ITU-R 601 luma).

    Raises:
        ValueError: the strength is not in (0, 1].
    """

    strength: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.strength <= 1:
            raise ValueError("jitter takes a strength in (0, 1]")

    def draw(self, count: int, shape: Sequence[int], generator: Generator) -> tuple[Tensor, ...]:
        return (1 + self.strength * (2 * torch.rand(count, 3, generator=generator) - 1),)

    def __call__(self, images: Tensor, factors: Tensor) -> Tensor:
        brightness, contrast, saturation = factors.to(images.dtype)[:, :, None, None, None].unbind(1)
        images = (images * brightness).clamp(0, 1)
        mean = _grey(images).mean(dim=(1, 2, 3), keepdim=True)
        images = (mean + contrast * (images - mean)).clamp(0, 1)
        grey = _grey(images)
        return (grey + saturation * (images - grey)).clamp(0, 1)


@dataclass(frozen=True)
class ResizedCrop:
    """A crop of `scale` to all of the area, with an aspect ratio of 3/4 to 4/3, resized bilinearly to the old size.

    After Szegedy et al. (2015); a crop that is wider or higher than the image is cut to it.

    Raises:
        ValueError: the scale is not in (0, 1].
    """

    scale: float = 0.2

    def __post_init__(self) -> None:
        if not 0 < self.scale <= 1:
            raise ValueError("resized_crop takes a scale in (0, 1]")

    def draw(self, count: int, shape: Sequence[int], generator: Generator) -> tuple[Tensor, ...]:
        return (torch.rand(count, 4, generator=generator),)

    def __call__(self, images: Tensor, chance: Tensor) -> Tensor:
        area = self.scale + (1 - self.scale) * chance[:, 0]
        ratio = (math.log(4 / 3) * (2 * chance[:, 1] - 1)).exp()
        extent = torch.stack([(area * ratio).sqrt(), (area / ratio).sqrt()], 1).clamp(max=1.0)  # width, height
        centre = (1 - extent) * (2 * chance[:, 2:] - 1)
        theta = torch.cat([torch.diag_embed(extent), centre[..., None]], -1).to(images.dtype)
        grid = F.affine_grid(theta, list(images.shape), align_corners=False)
        return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


@dataclass(frozen=True)
class Colour:
    """With probability `share`: brightness, contrast and saturation by 1 +- 0.4, then the hue by up to a tenth.

    The jitter of Chen et al. (ICML 2020) for small images. The hue turns in the plane of chroma of YIQ.

    Raises:
        ValueError: the share is not in (0, 1].
    """

    share: float = 0.8

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError("colour takes a probability in (0, 1]")

    def draw(self, count: int, shape: Sequence[int], generator: Generator) -> tuple[Tensor, ...]:
        (factors,) = Jitter(0.4).draw(count, shape, generator)
        angle = 0.2 * math.pi * (2 * torch.rand(count, generator=generator) - 1)
        return factors, angle, torch.rand(count, generator=generator) < self.share

    def __call__(self, images: Tensor, factors: Tensor, angle: Tensor, chosen: Tensor) -> Tensor:
        changed = Jitter(0.4)(images, factors)
        if images.shape[1] == 3:
            to = torch.tensor(_YIQ, dtype=images.dtype, device=images.device)
            cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
            turn = torch.stack(
                [torch.stack(row, -1) for row in ((zero + 1, zero, zero), (zero, cos, -sin), (zero, sin, cos))], -2
            )
            matrix = torch.linalg.inv(to) @ turn.to(images.dtype) @ to
            changed = torch.einsum("bij,bjhw->bihw", matrix, changed).clamp(0, 1)
        return torch.where(chosen[:, None, None, None], changed, images)


@dataclass(frozen=True)
class Grey:
    """No colour, with probability `share`.

    Raises:
        ValueError: the share is not in (0, 1].
    """

    share: float = 0.2

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError("grey takes a probability in (0, 1]")

    def draw(self, count: int, shape: Sequence[int], generator: Generator) -> tuple[Tensor, ...]:
        return (torch.rand(count, generator=generator) < self.share,)

    def __call__(self, images: Tensor, chosen: Tensor) -> Tensor:
        return torch.where(chosen[:, None, None, None], _grey(images).expand_as(images), images)


_YIQ = ((0.299, 0.587, 0.114), (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))  # of RGB; rows Y, I, Q


def _grey(images: Tensor) -> Tensor:
    """(B, 1, H, W); images of other than three channels count as grey already."""
    if images.shape[1] != 3:
        return images.mean(1, keepdim=True)
    luma = torch.tensor([0.299, 0.587, 0.114], dtype=images.dtype, device=images.device)
    return torch.einsum("bchw,c->bhw", images, luma)[:, None]


# The first field takes a number, the second a word; None where there is no such field.
_NAMES: dict[str, tuple[type, type | None]] = {
    "pad_crop": (PadCrop, int),
    "flip": (Flip, None),
    "cutout": (Cutout, int),
    "rotate": (Rotate, float),
    "jitter": (Jitter, float),
    "resized_crop": (ResizedCrop, float),
    "colour": (Colour, float),
    "grey": (Grey, float),
}


def augmentations(names: Sequence[str]) -> tuple[Augmentation, ...]:
    """Augmentations by their names in a config, with values after colons: `pad_crop:4:reflect`, `flip`.

    Raises:
        ConfigError: an unknown name or a value that does not fit.
    """
    return tuple(_parse(name) for name in names)


def _parse(text: str) -> Augmentation:
    name, *values = text.split(":")
    if name not in _NAMES:
        near = difflib.get_close_matches(name, _NAMES, n=1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise ConfigError(f"there is no augmentation '{name}': {hint}there are {', '.join(_NAMES)}")
    kind, number = _NAMES[name]
    names = [field.name for field in fields(kind)]
    given: dict[str, object] = {}
    try:
        for value in values:
            word = value.isalpha()
            if len(names) <= word or names[word] in given:
                raise ValueError(f"it has no place for '{value}'")
            given[names[word]] = value if word else number(value)
        return kind(**given)
    except ValueError as error:
        raise ConfigError(f"augmentation '{text}': {error}") from error
