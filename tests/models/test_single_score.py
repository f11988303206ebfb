"""The paper's networks: sizes, initialisation, one score for two classes."""

import pytest
import torch

from robustrun.models.single_score import CNNClassifier, MLPClassifier
from robustrun.roles import ClassificationSpec


def _count(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("features", [8, 10, 11, 14])
def test_mlp(features):
    model = MLPClassifier(ClassificationSpec((features,), 2, box=None))
    assert _count(model) == 100 * features + 10_301
    assert not model.layers[2].bias.any()
    limit = (6 / (features + 100)) ** 0.5
    assert 0.9 * limit < model.layers[2].weight.abs().max() <= limit


def test_cnn():
    spec = ClassificationSpec((1, 28, 28), 2)
    model = CNNClassifier(spec)
    assert _count(model) == 426_571
    logits = model(torch.rand(3, 1, 28, 28))
    assert logits.shape == (3, 2)
    assert not logits[:, 0].any()
    assert CNNClassifier(ClassificationSpec((1, 28, 28), 10))(torch.rand(3, 1, 28, 28)).shape == (3, 10)
    assert any(isinstance(m, torch.nn.ReLU) for m in list(CNNClassifier(spec, activation=True).layers)[9:])
    with pytest.raises(ValueError, match="too small"):
        CNNClassifier(ClassificationSpec((1, 8, 8), 2))
