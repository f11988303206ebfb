"""Moving textures: drawn from formulas, or read from a folder of pictures or a film of the user's.

Source: Manek and Kolter (arXiv 2001.06116), who continue clips of fire and water.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from robustrun.data import Batch
from robustrun.data.device_loader import batch_slice
from robustrun.errors import ConfigError, DataError
from robustrun.methods.dynamics import TEXTURES
from robustrun.numbers import NonNegative, Positive, PositiveInt, Probability
from robustrun.registry import tasks
from robustrun.roles import Loader, Split, VideoSpec, VideoTask
from robustrun.runtime import Run

_PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")


class PairLoader:
    """Pairs of successive frames (k, k + 1), gathered from bytes on the device; shuffled by (seed, epoch)."""

    def __init__(self, frames: Tensor, pairs: Tensor, batch_size: int, run: Run, *, train: bool):
        self.frames, self.pairs, self.batch_size = frames, pairs, batch_size
        self._run, self._train = run, train
        self._share = (run.distributed.rank, run.distributed.world_size) if train else (0, 1)

    def __len__(self) -> int:
        return -(-len(self.pairs) // self.batch_size)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Batches of successive frames (B, C, H, W) from step `start` on."""
        order = self.pairs
        if self._train:
            order = order[torch.randperm(len(order), generator=self._run.generator("order", epoch, device="cpu"))]
        order = order.to(self.frames.device)
        for step in range(start, len(self)):
            chosen = order[batch_slice(step, self.batch_size, len(order), *self._share)]
            both = self.frames[torch.cat([chosen, chosen + 1])].float() / 255
            yield Batch(*both.chunk(2), chosen)


class _Clip(VideoTask):
    """Clips held in memory as bytes; the last part of each clip is held out, and no pair crosses a border."""

    def __init__(self, held_out: float):
        self.held_out = held_out

    def _take(self, clips: list[np.ndarray], source: str) -> None:
        """Clips (T_i, H, W, C) of one size."""
        if len({clip.shape[1:] for clip in clips}) > 1:
            raise DataError(f"{source}: the pictures differ in size; set task.height and task.width")
        train, test = [], []
        for clip in clips:
            cut = len(clip) - max(2, round(self.held_out * len(clip)))
            if cut < 2:
                raise DataError(f"{source}: a clip of {len(clip)} frames is too short to hold some out")
            train.append(torch.from_numpy(clip[:cut].transpose(0, 3, 1, 2).copy()))
            test.append(torch.from_numpy(clip[cut:].transpose(0, 3, 1, 2).copy()))
        self._frames = {"train": torch.cat(train), "test": torch.cat(test)}
        self._pairs = {"train": _pairs_within(train), "test": _pairs_within(test)}

    def frames(self, split: Split) -> Tensor:
        return self._frames[split]

    def loader(self, split: Split, batch_size: int, run: Run, *, train: bool = False) -> Loader:
        self._frames[split] = self._frames[split].to(run.device)
        return PairLoader(self._frames[split], self._pairs[split], batch_size, run, train=train)


def _pairs_within(clips: list[Tensor]) -> Tensor:
    """The numbers of all frames, in the joined clips, whose successor belongs to the same clip."""
    starts = np.cumsum([0, *(len(clip) for clip in clips)])
    return torch.cat([torch.arange(start, start + len(clip) - 1) for start, clip in zip(starts, clips, strict=False)])


@tasks.register("texture")
class Texture(_Clip):
    """A procedural texture.

    Args:
        texture: waves (quasi-periodic), fire, or a filmed two-link pendulum.
        frame_count, height, width: of the clip.
        held_out: the share of frames, from the end, that is held out.
    """

    def __init__(
        self,
        *,
        texture: Literal["waves", "fire", "pendulum"] = "waves",
        frame_count: PositiveInt = 500,
        height: PositiveInt = 32,
        width: PositiveInt = 32,
        held_out: Probability = 0.1,
    ):
        super().__init__(held_out)
        self.texture, self.shape = texture, (frame_count, height, width)
        self.spec = VideoSpec((3 if texture == "fire" else 1, height, width))

    def load(self, run: Run) -> None:
        self._take([TEXTURES[self.texture](*self.shape, run.seed_for("texture") % 2**32)], self.texture)


@tasks.register("film")
class Film(_Clip):
    """A film of the user's: a folder of pictures, a GIF, or a video file.

    Args:
        path: the folder or file. The pictures of a folder, and of each folder in it, are a clip, in the order of the
            numbers in their names.
        start, duration: the part of a video file to use, in seconds; all of the rest if null.
        fps: frames a second to keep of a video file; all if null.
        height, width: to scale to; as it is if null.
        grey: keep brightness alone.
        held_out: the share of each clip's frames, from the end, that is held out.
    """

    def __init__(
        self,
        *,
        path: str,
        start: NonNegative = 0.0,
        duration: Positive | None = None,
        fps: Positive | None = None,
        height: PositiveInt | None = None,
        width: PositiveInt | None = None,
        grey: bool = False,
        held_out: Probability = 0.1,
    ):
        super().__init__(held_out)
        if (height is None) != (width is None):
            raise ConfigError("task.height and task.width go together")
        self.path, self.start, self.duration, self.fps = Path(path).expanduser(), start, duration, fps
        self.size, self.mode = (width, height) if width else None, "L" if grey else "RGB"

    spec: VideoSpec

    def load(self, run: Run) -> None:
        if self.path.is_dir():
            folders = [self.path, *sorted(p for p in self.path.iterdir() if p.is_dir())]
            clips = [clip for folder in folders if (clip := self._pictures(folder)) is not None]
        elif self.path.is_file():
            clips = [self._video()]
        else:
            raise DataError(f"task.path={self.path}: there is no such folder or file")
        if not clips:
            raise DataError(f"task.path={self.path} holds no pictures ({', '.join(_PICTURES)})")
        self._take(clips, str(self.path))
        self.spec = VideoSpec((clips[0].shape[3], *clips[0].shape[1:3]), dt=1 / (self.fps or 30))

    def _pictures(self, folder: Path) -> np.ndarray | None:
        from PIL import Image

        paths = [p for p in folder.iterdir() if p.suffix.lower() in _PICTURES]
        paths.sort(key=lambda p: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", p.name)])
        try:
            frames = []
            for path in paths:
                with Image.open(path) as picture:
                    frames.append(self._convert(picture))
        except Exception as error:  # decoders raise whatever they like
            raise DataError(f"{folder} holds a picture that cannot be read: {error}") from None
        if len({frame.shape for frame in frames}) > 1:
            raise DataError(f"{folder}: the pictures differ in size; set task.height and task.width")
        return np.stack(frames) if frames else None

    def _video(self) -> np.ndarray:
        from PIL import Image

        if self.path.suffix.lower() == ".gif":
            from PIL import ImageSequence

            try:
                with Image.open(self.path) as picture:
                    return np.stack([self._convert(frame) for frame in ImageSequence.Iterator(picture)])
            except Exception as error:
                raise DataError(f"{self.path} cannot be read: {error}") from None
        try:
            import imageio.v3 as imageio
        except ImportError:
            raise ConfigError(
                "reading a video file needs imageio and a decoder: pip install 'robustrun[video]', "
                "or give a folder of pictures"
            ) from None
        try:
            rate = float(imageio.immeta(self.path).get("fps", 30.0))
            keep = self.fps or rate
            frames, taken = [], 0
            for number, frame in enumerate(imageio.imiter(self.path)):
                time = number / rate - self.start
                if self.duration is not None and time >= self.duration:
                    break
                if time >= 0 and time * keep >= taken - 1e-6:
                    frames.append(self._convert(Image.fromarray(frame)))
                    taken += 1
        except Exception as error:  # decoders raise whatever they like
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise DataError(f"{self.path} cannot be read as a video: {reason}") from None
        if not frames:
            raise DataError(f"{self.path} has no frames after {self.start} s")
        return np.stack(frames)

    def _convert(self, picture) -> np.ndarray:
        """(H, W, C) uint8."""
        picture = picture.convert(self.mode)
        array = np.asarray(picture.resize(self.size) if self.size else picture)
        return array if array.ndim == 3 else array[..., None]
