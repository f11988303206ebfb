"""The one place that imports torchvision."""

import importlib.util
import warnings
from pathlib import Path
from types import ModuleType

import torch

_declared: list[torch.library.Library] = []  # a Library takes its declarations with it when it is collected


def import_torchvision() -> ModuleType:
    """torchvision, also beside a torch without CUDA.

    Its released wheels are built for CUDA builds of torch. Beside another build their compiled part does not
    load, and the import then stops where it refers to two operators that this part would have declared.
    Declaring the two beforehand cures it; the data sets, models and transforms need neither.

    Raises:
        ModuleNotFoundError: torchvision is not installed.
    """
    spec = importlib.util.find_spec("torchvision")
    if spec is None:
        raise ModuleNotFoundError("torchvision is not installed (pip install torchvision)", name="torchvision")
    if not _declared and not _operators_load(Path(spec.submodule_search_locations[0])):
        library = torch.library.Library("torchvision", "FRAGMENT")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _declared.append(library)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that its compiled image codecs are missing: PIL reads our images
        import torchvision

    return torchvision


def _operators_load(package: Path) -> bool:
    """Whether torchvision's compiled operators fit this torch (loading them twice does no harm)."""
    for library in package.glob("_C*.so"):
        try:
            torch.ops.load_library(library)
        except OSError:
            return False
        return True
    return False
