"""Batches from the device-resident loader against torchvision's transforms, image by image.

    python scripts/bench/data.py [--examples 5000] [--batch-size 128] [--device cuda]

Prints images a second, and the ratio to a torch DataLoader in the same process that does the same to one image
at a time (PIL, no workers: one core against one core).
"""

import argparse
from collections.abc import Callable, Iterable

import torch
from _measure import fastest

from robustrun.data import DeviceLoader, augmentations, import_torchvision, obtain

CASES: dict[str, tuple[list[str], Callable[[object], list]]] = {
    "as it is": ([], lambda t: []),
    "crop, flip": (["pad_crop:4", "flip"], lambda t: [t.RandomCrop(32, 4), t.RandomHorizontalFlip()]),
    "reflect crop, flip": (
        ["pad_crop:4:reflect", "flip"],
        lambda t: [t.RandomCrop(32, 4, padding_mode="reflect"), t.RandomHorizontalFlip()],
    ),
    "rotation": (["rotate:15"], lambda t: [t.RandomRotation(15)]),
    "colour jitter": (["jitter:0.1"], lambda t: [t.ColorJitter(0.1, 0.1, 0.1)]),
}


def seconds(epoch: Callable[[], Iterable], rounds: int) -> float:
    """Of the fastest of some passes."""

    def drain() -> None:
        for _batch in epoch():
            pass

    return fastest(drain, rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=5000)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()

    transforms = import_torchvision().transforms
    split = obtain("cifar10").train
    images, labels = split.images[: options.examples], split.labels[: options.examples]
    pictures = [transforms.functional.to_pil_image(image) for image in images]

    class OneByOne(torch.utils.data.Dataset):
        def __init__(self, steps: list) -> None:
            self.transform = transforms.Compose([*steps, transforms.ToTensor()])

        def __len__(self) -> int:
            return len(pictures)

        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            return self.transform(pictures[index]), int(labels[index])

    print(f"CIFAR-10, batches of {options.batch_size}, {options.device}, {torch.get_num_threads()} threads")
    print(f"{'':<20}{'images/s':>12}{'torchvision':>13}{'ratio':>8}")
    for name, (names, steps) in CASES.items():
        loader = DeviceLoader(
            images.to(options.device),
            labels.to(options.device),
            options.batch_size,
            device=options.device,
            seed_for=lambda *key: hash(key) % 2**63,
            shuffle=True,
            augment=augmentations(names),
        )
        plain = torch.utils.data.DataLoader(OneByOne(steps(transforms)), options.batch_size, shuffle=True)
        ours = seconds(lambda loader=loader: loader.epoch(0), rounds=3)
        theirs = seconds(lambda plain=plain: plain, rounds=1)
        print(
            f"{name:<20}{len(images) / ours:>12,.0f}{len(images) / theirs:>13,.0f}{theirs / ours:>8.1f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
