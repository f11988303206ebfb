"""Augmentations of batches against what they do to one image at a time."""

import numpy as np
import pytest
import torch

from robustrun.data.augment import Colour, Cutout, Flip, Grey, Jitter, PadCrop, ResizedCrop, Rotate, augmentations
from robustrun.data.vision import import_torchvision
from robustrun.errors import ConfigError


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(64, 3, 10, 12, generator=torch.Generator().manual_seed(0))


def drawn(augmentation, images, seed=0):
    return augmentation.draw(len(images), images.shape[1:], torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("mode", "numpy_mode"), [("zero", "constant"), ("reflect", "reflect")])
def test_pad_crop_is_numpys(images, mode, numpy_mode):
    augmentation = PadCrop(3, mode)
    row, column = drawn(augmentation, images)
    out = augmentation(images, row, column)
    for image, top, left, got in zip(images.numpy(), row, column, out.numpy(), strict=True):
        padded = np.pad(image, ((0, 0), (3, 3), (3, 3)), mode=numpy_mode)
        assert np.array_equal(got, padded[:, top : top + 10, left : left + 12])
    assert set(row.tolist()) == set(column.tolist()) == set(range(7))


def test_pad_crop_in_the_middle_is_the_image(images):
    middle = torch.full((64,), 4)
    assert torch.equal(PadCrop(4, "reflect")(images, middle, middle), images)
    corner = PadCrop(4, "reflect")(images, 0 * middle, 0 * middle)
    assert torch.equal(corner[:, :, 0, 0], images[:, :, 4, 4])


def test_flip(images):
    (flipped,) = drawn(Flip(), images)
    out = Flip()(images, flipped)
    assert torch.equal(out[flipped], images[flipped].flip(-1))
    assert torch.equal(out[~flipped], images[~flipped])
    many = Flip().draw(10_000, (3, 8, 8), torch.Generator().manual_seed(0))[0]
    assert abs(many.float().mean() - 0.5) < 0.02


@pytest.mark.parametrize("size", [1, 4, 10])
def test_cutout_removes_one_whole_square(size):
    ones = torch.ones(500, 3, 10, 12)
    augmentation = Cutout(size)
    row, column = drawn(augmentation, ones)
    out = augmentation(ones, row, column)
    assert torch.equal((out == 0).sum((1, 2, 3)), torch.full((500,), 3 * size * size))
    for image, top, left in zip(out, row, column, strict=True):
        assert image[:, top : top + size, left : left + size].abs().max() == 0
    assert row.max() == 10 - size
    assert column.max() == 12 - size
    assert row.min() == column.min() == 0


def test_cutout_of_everything_and_of_too_much():
    ones = torch.ones(2, 1, 8, 8)
    augmentation = Cutout(8)
    assert augmentation(ones, *drawn(augmentation, ones)).abs().max() == 0
    with pytest.raises(ConfigError, match="cutout:9 does not fit into images of 8x8"):
        drawn(Cutout(9), ones)


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
def test_rotate_is_torchvisions(images, interpolation):
    functional = import_torchvision().transforms.functional
    mode = import_torchvision().transforms.InterpolationMode(interpolation)
    augmentation = Rotate(40.0, interpolation)
    (angle,) = drawn(augmentation, images)
    out = augmentation(images, angle)
    for image, radians, got in zip(images, angle, out, strict=True):
        # torchvision counts angles counter-clockwise
        expected = functional.rotate(image, radians.rad2deg().item(), mode)
        assert (expected - got).abs().gt(1e-3).float().mean() < 0.02  # ties of the nearest pixel
    assert angle.abs().max() <= np.deg2rad(40)
    assert angle.min() < 0 < angle.max()


def test_rotate_by_nothing_and_by_a_quarter():
    square = torch.rand(4, 3, 6, 6)
    assert torch.allclose(Rotate(10)(square, torch.zeros(4)), square)
    assert torch.allclose(Rotate(90)(square, torch.full((4,), torch.pi / 2)), square.rot90(1, (-2, -1)), atol=1e-5)


def test_jitter_is_torchvisions(images):
    functional = import_torchvision().transforms.functional
    augmentation = Jitter(0.4)
    (factors,) = drawn(augmentation, images)
    out = augmentation(images, factors)
    for image, (brightness, contrast, saturation), got in zip(images, factors.tolist(), out, strict=True):
        expected = functional.adjust_brightness(image, brightness)
        expected = functional.adjust_contrast(expected, contrast)
        expected = functional.adjust_saturation(expected, saturation)
        assert torch.allclose(got, expected, atol=2e-4)  # torchvision's grey has three digits
    assert factors.min() > 0.6
    assert factors.max() < 1.4


def test_resized_crop_of_everything_is_the_image_and_of_a_quarter_is_one():
    square = torch.rand(5, 3, 8, 8)
    middle = torch.full((5, 4), 0.5)
    assert torch.allclose(ResizedCrop(1.0)(square, middle), square, atol=1e-5)
    corner = torch.tensor([[0.0, 0.5, 0.0, 0.0]]).expand(5, -1)  # the least area, square, top left
    doubled = torch.nn.functional.interpolate(square[..., :4, :4], size=8, mode="bilinear", align_corners=False)
    inside = (ResizedCrop(0.25)(square, corner) - doubled)[..., 1:-1, 1:-1]
    assert inside[..., :-1, :-1].abs().max() < 1e-5


def test_colour_turns_hues_and_leaves_grey_alone(images):
    factors, angle, _ = drawn(Colour(), images)
    still, everyone = torch.ones_like(factors), torch.ones(64, dtype=torch.bool)
    grey = images.mean(1, keepdim=True).expand_as(images)
    assert torch.allclose(Colour()(grey, still, angle, everyone), grey, atol=1e-3)
    assert torch.allclose(Colour()(images, still, 0 * angle, everyone), images, atol=1e-5)
    turned = Colour()(images / 2 + 0.25, still, angle, everyone)
    assert (turned - images / 2 - 0.25).abs().max() > 0.05
    luma = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
    assert torch.allclose((turned * luma).sum(1), ((images / 2 + 0.25) * luma).sum(1), atol=5e-3)
    assert torch.equal(Colour()(images, factors, angle, ~everyone), images)
    assert 0 < drawn(Colour(0.5), images)[2].float().mean() < 1


def test_grey_has_equal_channels(images):
    (chosen,) = drawn(Grey(0.5), images)
    out = Grey(0.5)(images, chosen)
    spread = (out.amax(1) - out.amin(1)).amax((1, 2))
    assert torch.equal(spread == 0, chosen)
    assert torch.equal(out[~chosen], images[~chosen])


def test_the_input_is_left_alone(images):
    before = images.clone()
    for augmentation in augmentations(
        ["pad_crop", "flip", "cutout:4", "rotate", "jitter", "resized_crop", "colour", "grey"]
    ):
        augmentation(images, *drawn(augmentation, images))
        assert torch.equal(images, before)


def test_names():
    assert augmentations(["pad_crop", "flip"]) == (PadCrop(4, "zero"), Flip())
    assert augmentations(["pad_crop:reflect"]) == (PadCrop(4, "reflect"),)
    assert augmentations(["pad_crop:2:reflect", "cutout:16"]) == (PadCrop(2, "reflect"), Cutout(16))
    assert augmentations(["rotate:7.5:bilinear", "jitter:0.1"]) == (Rotate(7.5, "bilinear"), Jitter(0.1))


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("pad_corp", r"no augmentation 'pad_corp': did you mean 'pad_crop'\?"),
        ("pad_crop:0", "padding of at least 1"),
        ("pad_crop:wrap", "zero or reflect"),
        ("pad_crop:4:4", "no place for '4'"),
        ("pad_crop:4.5", "4.5"),
        ("flip:2", "no place for '2'"),
        ("resized_crop:0", r"scale in \(0, 1\]"),
        ("grey:2", r"probability in \(0, 1\]"),
        ("cutout:", "invalid literal"),
        ("cutout:-3", "at least 1"),
        ("cutout:big", "no place for 'big'"),
        ("rotate:200", "degrees"),
        ("rotate:nan", "degrees|nan"),
        ("jitter:2", "strength"),
    ],
)
def test_names_that_mean_nothing(name, complaint):
    with pytest.raises(ConfigError, match=complaint):
        augmentations([name])
