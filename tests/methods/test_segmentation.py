"""Segmentation's figures against counting pixel by pixel; looks at whole images against a model that is linear."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from robustrun.methods.segmentation import (
    confusion_matrix,
    intersection_over_union,
    pixel_cross_entropy,
    recall,
    segment,
)

CLASSES, IGNORE = 5, 255


def maps(seed, count=3, size=32):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (count, size, size), generator=generator)
    predicted = torch.where(torch.rand(labels.shape, generator=generator) < 0.5, labels, 1)
    labels[torch.rand(labels.shape, generator=generator) < 0.2] = IGNORE
    return predicted, labels


@pytest.mark.parametrize("seed", range(3))
def test_the_confusion_matrix_by_brute_force(seed):
    predicted, labels = maps(seed)
    expected = torch.zeros(3, CLASSES, CLASSES, dtype=torch.int64)
    for image, row, column in itertools.product(range(3), range(32), range(32)):
        if labels[image, row, column] != IGNORE:
            expected[image, labels[image, row, column], predicted[image, row, column]] += 1
    found = confusion_matrix(predicted, labels, CLASSES, IGNORE)
    assert found.dtype == torch.int64
    assert torch.equal(found, expected)


@pytest.mark.parametrize("seed", range(3))
def test_intersection_over_union_by_brute_force(seed):
    predicted, labels = maps(seed)
    found = intersection_over_union(confusion_matrix(predicted, labels, CLASSES, IGNORE).sum(0))
    counted = labels != IGNORE
    for label in range(CLASSES):
        here, there = counted & (labels == label), counted & (predicted == label)
        assert found[label] == (here & there).sum().double() / (here | there).sum()
        recalled = recall(confusion_matrix(predicted, labels, CLASSES, IGNORE).sum(0))[label]
        assert recalled == (here & there).sum().double() / here.sum()


def test_a_class_that_never_occurs_and_an_image_without_labels():
    labels = torch.full((1, 4, 4), IGNORE)
    confusion = confusion_matrix(torch.zeros_like(labels), labels, CLASSES, IGNORE)
    assert confusion.sum() == 0
    assert intersection_over_union(confusion).tolist() == [[0.0] * CLASSES]
    logits = torch.randn(1, CLASSES, 4, 4, requires_grad=True)
    for weights in (None, torch.rand(CLASSES)):
        loss = pixel_cross_entropy(logits, labels, weights=weights, ignore_index=IGNORE)
        loss.backward()
        assert loss == 0
        assert logits.grad.abs().max() == 0


def test_weighted_cross_entropy_is_the_weighted_mean():
    _, labels = maps(0)
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(3, CLASSES, 32, 32, dtype=torch.float64, generator=generator)
    weights = torch.rand(CLASSES, dtype=torch.float64, generator=generator)
    log_probabilities = logits.log_softmax(1)
    total = scale = 0.0
    for image, row, column in itertools.product(range(3), range(32), range(32)):
        label = labels[image, row, column]
        if label != IGNORE:
            total -= weights[label] * log_probabilities[image, label, row, column]
            scale += weights[label]
    found = pixel_cross_entropy(logits, labels, weights=weights, ignore_index=IGNORE)
    assert abs(found - total / scale) < 1e-10
    plain = pixel_cross_entropy(logits, labels, ignore_index=IGNORE)
    assert abs(plain - F.cross_entropy(logits, labels, ignore_index=IGNORE)) < 1e-10
    assert not torch.isclose(found, plain)


def pointwise(images):
    """A network that looks at each pixel alone: nothing that looks at parts may change it."""
    weight = torch.tensor([[1.0, -2.0, 0.5], [0.3, 0.1, -0.4]])
    return torch.einsum("kc,bchw->bkhw", weight, images)


def test_one_look_gives_the_logits():
    images = torch.rand(2, 3, 32, 64)
    assert torch.equal(segment(pointwise, images), pointwise(images))


@pytest.mark.parametrize("window", [(16, 16), (10, 30), (32, 20), (100, 100), (31, 63), (1, 7)])
@pytest.mark.parametrize("flip", [False, True])
def test_windows_and_mirrors_of_a_pointwise_network_change_nothing(window, flip):
    images = torch.rand(2, 3, 32, 64)
    found = segment(pointwise, images, window=window, flip=flip)
    assert torch.allclose(found, pointwise(images).softmax(1), atol=1e-6)


def test_windows_overlap_by_a_third_and_reach_every_pixel():
    seen = torch.zeros(40, 100, dtype=torch.int64)
    places = torch.arange(4000.0).view(1, 1, 40, 100)

    def look(part):
        assert part.shape[-2:] == (20, 30)
        seen.view(-1)[part.flatten().long()] += 1
        return torch.cat((part, -part), 1)

    segment(look, places, window=(20, 30))
    assert seen.min() >= 1
    assert seen[20, 50] >= 2


def test_scales_are_averaged_as_probabilities():
    images = torch.rand(1, 3, 64, 96)
    sizes = []

    def look(part):
        sizes.append(tuple(part.shape[-2:]))
        return pointwise(part)

    found = segment(look, images, scales=(0.5, 1.0, 1.5), flip=True)
    assert sizes == [(32, 64), (32, 64), (64, 96), (64, 96), (96, 128), (96, 128)], "multiples of 32, both ways round"
    assert found.shape == (1, 2, 64, 96)
    assert torch.allclose(found.sum(1), torch.ones(1, 64, 96), atol=1e-5)
    parts = [segment(pointwise, images, scales=(scale,), flip=True) for scale in (0.5, 1.0, 1.5)]
    parts[1] = segment(pointwise, images, flip=True)
    assert torch.allclose(found, sum(parts) / 3, atol=1e-6)
