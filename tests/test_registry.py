import pytest

from robustrun.errors import ConfigError
from robustrun.registry import Registry, certifiers, models, nearest, tasks, trainers


def test_the_axes_know_their_implementations_without_being_told():
    assert "images" in tasks.names()
    assert "mnist_cnn" in models.names()
    assert {"adversarial", "free", "standard", "load", "none"} <= set(trainers.names())
    assert {"pgd", "accuracy"} <= set(certifiers.names())


def test_an_unknown_name_has_its_nearest_match():
    with pytest.raises(ConfigError, match=r"no model is registered as 'mnist_cn'; did you mean 'mnist_cnn'\?"):
        models["mnist_cn"]


def test_a_name_is_given_once():
    registry = Registry("model", "robustrun.models")
    registry.register("x")(dict)
    registry.register("x")(dict)  # the same again, after a reload for example
    with pytest.raises(ConfigError, match=r"registered as model 'x': builtins\.dict and builtins\.list"):
        registry.register("x")(list)


def test_nearest():
    assert nearest("epocs", ["epochs", "alpha"]) == "; did you mean 'epochs'?"
    assert nearest("zzz", ["epochs", "alpha"]) == ""
