"""Ridge regression on the labels, in closed form."""

import torch
from torch.nn.functional import one_hot

from robustrun.methods.smoothing import RidgeHat
from robustrun.numbers import NonNegative, Positive
from robustrun.registry import trainers
from robustrun.roles import ClassificationTask, Fitted, LinearClassifier, Trainer
from robustrun.runtime import Run


@trainers.register("least_squares")
class LeastSquares(Trainer):
    """Least squares on one-hot labels; two classes are cut at a score of one half, as in arXiv 2002.03018.

    The regularisation must not be chosen by the training labels, or certificates against changed labels are void.

    Args:
        intercept: an unpenalised intercept; without one, more noise or regularisation favours class 0.
        regularisation: lambda; null: `gamma` times the largest eigenvalue of the features' Gram matrix.
        gamma: that factor.
    """

    closed_form = True

    def __init__(self, *, intercept: bool = True, regularisation: NonNegative | None = None, gamma: Positive = 0.05):
        self.intercept, self.regularisation, self.gamma = intercept, regularisation, gamma

    def fit(self, task: ClassificationTask, model: LinearClassifier, run: Run) -> Fitted:
        features, labels = model.training_set(task, run)
        hat = RidgeHat.fit(features, intercept=self.intercept)
        strength = self.regularisation
        if strength is None:
            strength = hat.spectral_regularisation(self.gamma)
        targets = one_hot(labels, task.spec.classes).double()
        weight, bias = hat.coefficients(targets, strength)
        if task.spec.classes == 2:  # logits (0, score - 1/2)
            weight[:, 0], bias = 0.0, torch.stack([torch.zeros_like(bias[0]), bias[1] - 0.5])
        with torch.no_grad():
            model.weight.copy_(weight)
            model.bias.copy_(bias)
        model.eval()
        run.logger.info("least squares on %d x %d features, lambda = %.6g", *features.shape, strength)
        accuracy = (features @ weight + bias).argmax(1).eq(labels).double().mean()
        return Fitted(
            model,
            history=[{"train_accuracy": float(accuracy)}],
            extra={"intercept": int(self.intercept), "regularisation": float(strength)},
        )
