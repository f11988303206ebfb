"""A label for every pixel of photographs of streets."""

from robustrun.data import Cityscapes, find_image_folder
from robustrun.data.cityscapes import CLASSES, IGNORE, WEIGHTS
from robustrun.numbers import Number, Positive, PositiveInt
from robustrun.registry import tasks
from robustrun.roles import SegmentationSpec, SegmentationTask
from robustrun.runtime import Run
from robustrun.tasks.image_folder import Streamed


@tasks.register("cityscapes")
class CityscapesTask(Streamed, SegmentationTask):
    """Cityscapes with its 19 classes, streamed from disk; the test split is the official validation split.

    Training images are cut out at random (see `robustrun.data.Cityscapes`) and the short last batch is left out;
    test images come whole.

    Args:
        folder: a name of the catalogue ("cityscapes"), or a path with leftImg8bit/ and gtFine/.
        crop: (height, width) in pixels.
        scales: the smallest and the largest size that is cut from, drawn uniformly from the tenths between.
        mean, std: per channel, applied inside the model.
        weighted: the classes count in the training loss by the paper's weights (arXiv 2006.08656).
        limit, test_limit: use only so many examples, spread evenly over the split.
        workers: processes that decode; null for one a core, at most 16.
    """

    class_names = CLASSES

    def __init__(
        self,
        *,
        folder: str = "cityscapes",
        crop: tuple[PositiveInt, PositiveInt] = (512, 1024),
        scales: tuple[Positive, Positive] = (0.5, 2.1),
        mean: tuple[Number, Number, Number] = (0.485, 0.456, 0.406),
        std: tuple[Positive, Positive, Positive] = (0.229, 0.224, 0.225),
        weighted: bool = True,
        limit: PositiveInt | None = None,
        test_limit: PositiveInt | None = None,
        workers: int | None = None,
    ):
        if scales[0] > scales[1]:
            raise ValueError(f"the smallest of the scales, {scales[0]}, is above the largest, {scales[1]}")
        super().__init__(limit, test_limit, workers, drop_last=True)
        self.class_weights = WEIGHTS if weighted else ()
        self._folder, self._crop, self._scales = folder, crop, scales
        self._mean, self._std = mean, std

    def load(self, run: Run) -> None:
        folder = find_image_folder(self._folder)
        images = {
            (split, cut): Cityscapes(folder, split, crop=self._crop if cut else None, scales=self._scales)
            for split, cut in (("train", True), ("train", False), ("test", False))
        }
        shape = images["test", False].shape
        self.spec = SegmentationSpec(shape, len(CLASSES), self._mean, self._std, IGNORE)
        self._take(images)
