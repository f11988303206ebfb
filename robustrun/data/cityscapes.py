"""Cityscapes in torchvision's layout: photographs of streets and a label for every pixel, read from disk as needed."""

from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from robustrun.errors import DataError

CLASSES = (
    "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation", "terrain",
    "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
)  # fmt: skip
WEIGHTS = (  # of the classes in the training loss (arXiv 2006.08656)
    0.8373, 0.918, 0.866, 1.0345, 1.0166, 0.9969, 0.9754, 1.0489, 0.8786, 1.0023,
    0.9539, 0.9843, 1.1116, 0.9037, 1.0865, 1.0955, 1.0865, 1.1529, 1.0507,
)  # fmt: skip
LABEL_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)  # in the files, of each class
IGNORE = 255  # all other labels

_SPLITS = {"train": "train", "test": "val"}  # the labels of the official test split are not public
_CLASS_OF = np.full(256, IGNORE, dtype=np.uint8)
_CLASS_OF[list(LABEL_IDS)] = np.arange(len(LABEL_IDS))


class Cityscapes:
    """The examples of one split: an image (3, H, W) and its labels (H, W), both uint8, whole or as a random crop.

    A crop is cut at random from the image in a random size: one of the tenths between the two `scales`, on the
    right and at the bottom filled up with black that counts nowhere, and mirrored half the time.

    Raises:
        DataError: the folder holds no images of the split, or one without its labels.
    """

    def __init__(
        self,
        folder: Path,
        split: Literal["train", "test"],
        *,
        crop: tuple[int, int] | None = None,
        scales: tuple[float, float] = (0.5, 2.1),
    ):
        self._crop = crop
        first, last = (round(10 * scale) for scale in scales)
        self._tenths = range(first, last + 1)
        images = folder / "leftImg8bit" / _SPLITS[split]
        self.images = sorted(images.glob("*/*_leftImg8bit.png"))
        if not self.images:
            raise DataError(f"{images} holds no <city>/*_leftImg8bit.png")
        self.labels = [folder / "gtFine" / _SPLITS[split] / p.parent.name / _label_name(p) for p in self.images]
        missing = next((path for path in self.labels if not path.is_file()), None)
        if missing is not None:
            raise DataError(f"{missing} is missing: the image of that name has no labels")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(3, H, W) of the first image, and of all."""
        return tuple(_read(self.images[0], "RGB").transpose(2, 0, 1).shape)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor, int]:
        """The example `index`, cut with the random numbers of `seed`, whichever process does it."""
        index, seed = key
        image = torch.from_numpy(_read(self.images[index], "RGB")).permute(2, 0, 1)
        labels = torch.from_numpy(_CLASS_OF[_read(self.labels[index], None)])
        if labels.shape != image.shape[1:]:
            raise DataError(f"{self.labels[index]} is of another size than its image")
        if self._crop is not None:
            image, labels = self._cut(image, labels, torch.Generator().manual_seed(seed))
        return image.contiguous(), labels.contiguous(), index

    def _cut(self, image: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        def draw(count: int) -> int:
            return int(torch.randint(count, (), generator=generator))

        scale, longer = self._tenths[draw(len(self._tenths))] / 10, max(labels.shape)
        size = [int(side * int(longer * scale + 0.5) / longer + 0.5) for side in labels.shape]
        # Bilinear without smoothing; the nearest label.
        image = F.interpolate(image[None], size, mode="bilinear", align_corners=False)[0]
        labels = F.interpolate(labels[None, None], size, mode="nearest")[0, 0]
        height, width = self._crop
        missing = (0, max(0, width - size[1]), 0, max(0, height - size[0]))
        image, labels = F.pad(image, missing), F.pad(labels, missing, value=IGNORE)
        top, left = (draw(have - want + 1) for have, want in zip(labels.shape, self._crop, strict=True))
        here = (..., slice(top, top + height), slice(left, left + width))
        image, labels = image[here], labels[here]
        return (image.flip(-1), labels.flip(-1)) if draw(2) else (image, labels)


def _label_name(image: Path) -> str:
    return image.name.replace("_leftImg8bit.png", "_gtFine_labelIds.png")


def _read(path: Path, mode: str | None) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(path) as image:
            return np.array(image.convert(mode) if mode else image)
    except Exception as error:  # decoders raise whatever they like
        raise DataError(f"{path} cannot be read: {error}") from error
