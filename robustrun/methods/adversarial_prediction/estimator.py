"""A scikit-learn classifier that trains for a metric."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import unique_labels
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import nn

from robustrun.methods.adversarial_prediction.loss import AdversarialPredictionLoss
from robustrun.methods.adversarial_prediction.metric import Metric


class AdversarialPredictionClassifier(ClassifierMixin, BaseEstimator):
    """Binary classifier trained with `AdversarialPredictionLoss` by SGD on standardised features.

    Args:
        metric: what to train for: text such as "f_beta(2)", or a `Metric`.
        hidden: widths of the hidden layers; empty for a linear model.
        epochs, batch_size, learning_rate, weight_decay: of plain SGD on fixed mini-batches in random order.
        random_state: seed of initialisation and order.

    The second of the two sorted classes is the positive one.
    """

    def __init__(
        self,
        metric: Metric | str = "f1",
        *,
        hidden: tuple[int, ...] = (100, 100),
        epochs: int = 30,
        batch_size: int = 25,
        learning_rate: float = 3e-3,
        weight_decay: float = 0.0,
        random_state: int = 0,
    ):
        self.metric = metric
        self.hidden = hidden
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: ArrayLike) -> AdversarialPredictionClassifier:
        """Fit on features (samples, features) and two classes of labels.

        Raises:
            ValueError: there are not exactly two classes.
        """
        X, y = validate_data(self, X, y)
        self.classes_ = unique_labels(y)
        if len(self.classes_) != 2:
            raise ValueError(f"Only binary classification is supported. The target has {len(self.classes_)} classes.")
        self.mean_, self.scale_ = X.mean(0), X.std(0)
        self.scale_[self.scale_ == 0] = 1.0
        inputs, labels = self._inputs(X), torch.from_numpy((y == self.classes_[1]).astype(np.float32))
        generator = torch.Generator().manual_seed(self.random_state)
        self.network_ = _network(X.shape[1], tuple(self.hidden), generator)
        loss_of = AdversarialPredictionLoss(self.metric)
        optimiser = torch.optim.SGD(self.network_.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay)
        batches = torch.randperm(len(labels), generator=generator).split(self.batch_size)
        for _ in range(self.epochs):
            for number in torch.randperm(len(batches), generator=generator).tolist():
                rows = batches[number]
                optimiser.zero_grad()
                loss_of(self.network_(inputs[rows]).flatten(), labels[rows]).backward()
                optimiser.step()
        return self

    def decision_function(self, X: ArrayLike) -> NDArray[np.float64]:
        """Scores (samples,); positive where >= 0."""
        check_is_fitted(self)
        X = validate_data(self, X, reset=False)
        with torch.no_grad():
            return self.network_(self._inputs(X)).flatten().double().numpy()

    def predict(self, X: ArrayLike) -> NDArray:
        """Classes (samples,)."""
        return self.classes_[(self.decision_function(X) >= 0).astype(int)]

    def _inputs(self, X: NDArray) -> torch.Tensor:
        return torch.from_numpy(((X - self.mean_) / self.scale_).astype(np.float32))

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_class = False
        return tags


def _network(inputs: int, hidden: tuple[int, ...], generator: torch.Generator) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in hidden:
        layers += [nn.Linear(inputs, width), nn.ReLU()]
        inputs = width
    layers.append(nn.Linear(inputs, 1))
    for layer in layers[::2]:
        nn.init.xavier_uniform_(layer.weight, generator=generator)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(*layers)
