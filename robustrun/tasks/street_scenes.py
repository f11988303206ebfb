"""A label for every pixel of drawn street scenes, which are always there."""

from collections.abc import Sequence

import torch

from robustrun.data import DeviceLoader
from robustrun.data.street_scenes import CLASSES, IGNORE, street_scenes
from robustrun.numbers import NonNegativeInt, PositiveInt
from robustrun.registry import tasks
from robustrun.roles import Loader, SegmentationSpec, SegmentationTask, Split
from robustrun.runtime import Run
from robustrun.tasks.loading import surroundings


@tasks.register("street_scenes")
class StreetScenes(SegmentationTask):
    """Scenes of 64 x 128 pixels: sky, road, buildings, vehicles and thin poles. Nothing to download.

    Args:
        train, test: how many of each.
        scenes_seed: of the drawing; test scenes are never training scenes.
    """

    class_names = CLASSES

    def __init__(self, *, train: PositiveInt = 2000, test: PositiveInt = 200, scenes_seed: NonNegativeInt = 0):
        self._sizes, self._seed = {"train": train, "test": test}, scenes_seed
        self.spec = SegmentationSpec((3, 64, 128), len(CLASSES), (0.5,) * 3, (0.25,) * 3, IGNORE)

    def load(self, run: Run) -> None:
        self._scenes = {}
        for split, count in self._sizes.items():
            images, labels = street_scenes(count, 2 * self._seed + (split == "test"))
            self._scenes[split] = torch.from_numpy(images), torch.from_numpy(labels).long()

    def size(self, split: Split) -> int:
        return self._sizes.get(split, 0)

    def loader(
        self,
        split: Split,
        batch_size: int,
        run: Run,
        *,
        train: bool = False,
        indices: Sequence[int] | None = None,
    ) -> Loader:
        return DeviceLoader(
            *self._scenes[split],
            batch_size,
            indices=indices,
            channels_last=run.precision.channels_last,
            **surroundings(run, train),
        )
