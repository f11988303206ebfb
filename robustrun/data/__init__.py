"""Data sets: obtained once, verified, cached, and served in batches on the device.

`catalog` is light: importing it brings in neither torch nor numpy. Everything else is imported on first use.
"""

import importlib

from robustrun.data import catalog
from robustrun.data.catalog import data_root

_HOME = {
    "Arrays": "arrays",
    "Augmentation": "augment",
    "Batch": "device_loader",
    "Cityscapes": "cityscapes",
    "DeviceLoader": "device_loader",
    "Examples": "image_folder",
    "ImageFolder": "image_folder",
    "ImageFolderLoader": "image_folder",
    "Split": "arrays",
    "augmentations": "augment",
    "find_image_folder": "image_folder",
    "import_torchvision": "vision",
    "obtain": "obtaining",
    "verify": "obtaining",
}

__all__ = ["catalog", "data_root", *_HOME]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
