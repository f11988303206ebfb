"""The scikit-learn classifier behaves as one, and trains for its metric."""

import pickle

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, make_classification
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from robustrun.methods.adversarial_prediction import AdversarialPredictionClassifier, f2


def test_fits_predicts_clones_and_pickles():
    X, y = (a[:300] for a in load_breast_cancer(return_X_y=True))
    names = np.array(["malignant", "benign"])[y]
    model = AdversarialPredictionClassifier("f1", epochs=4, batch_size=100).fit(X, names)
    assert (model.predict(X) == names).mean() > 0.9
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.decision_function(X), model.decision_function(X))
    np.testing.assert_array_equal(clone(model).fit(X, names).decision_function(X), model.decision_function(X))
    metric_object = AdversarialPredictionClassifier(f2(), hidden=(), epochs=2, batch_size=50)
    assert cross_val_score(make_pipeline(StandardScaler(), metric_object), X, y, cv=2).mean() > 0.85


def test_f2_training_finds_more_positives():
    X, y = make_classification(300, 8, weights=[0.85], flip_y=0.15, class_sep=0.6, random_state=0)
    recalls = [
        AdversarialPredictionClassifier(metric, hidden=(), epochs=6).fit(X, y).predict(X)[y == 1].mean()
        for metric in ("accuracy", "f_beta(3)")
    ]
    assert recalls[1] > recalls[0] + 0.1


def test_two_classes_only():
    X, y = make_classification(60, 5, n_classes=3, n_informative=4, n_redundant=0, random_state=0)
    with pytest.raises(ValueError, match="binary"):
        AdversarialPredictionClassifier().fit(X, y)
