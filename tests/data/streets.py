"""A small tree in the layout of Cityscapes."""

from pathlib import Path

import numpy as np
from PIL import Image

from robustrun.data.cityscapes import LABEL_IDS

HEIGHT, WIDTH = 32, 64


def make_tree(folder: Path, train: int = 5, test: int = 3) -> Path:
    """Blocks of 8 pixels of one label each, 0 and 33 and all others among them; red is ten times the class."""
    generator = np.random.default_rng(0)
    for split, city, count in (("train", "aachen", train), ("val", "bonn", test)):
        for kind in ("leftImg8bit", "gtFine"):
            (folder / kind / split / city).mkdir(parents=True)
        for i in range(count):
            blocks = generator.choice([0, 1, 34, 255, *LABEL_IDS * 2], (HEIGHT // 8, WIDTH // 8))
            labels = blocks.repeat(8, 0).repeat(8, 1).astype(np.uint8)
            classes = {label: index for index, label in enumerate(LABEL_IDS)}
            red = np.vectorize(lambda label, classes=classes: 10 * classes.get(label, 0))(labels)
            green = np.broadcast_to(np.arange(WIDTH) * 2 + 20, labels.shape)
            image = np.stack((red, green, np.full(labels.shape, 50)), 2).astype(np.uint8)
            name = f"{city}_{i:06d}"
            Image.fromarray(image).save(folder / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png")
            Image.fromarray(labels).save(folder / "gtFine" / split / city / f"{name}_gtFine_labelIds.png")
    return folder
