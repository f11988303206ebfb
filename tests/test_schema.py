from typing import Literal

import pytest
from pydantic import BaseModel

from robustrun.errors import ConfigError
from robustrun.numbers import Number, PositiveInt
from robustrun.registry import parameters
from robustrun.schema import plain, validate


class Inner(BaseModel):
    model_config = {"extra": "forbid", "frozen": True}
    rate: Number = 0.1


class Base:
    def __init__(self, *, epochs: PositiveInt = 3, inner: Inner = Inner()):  # noqa: B008
        self.epochs, self.inner = epochs, inner


class Child(Base):
    def __init__(self, injected, *, kind: Literal["a", "b"], knots: tuple[tuple[Number, Number], ...] = (), **common):
        super().__init__(**common)


def test_keys_are_the_keyword_only_parameters_of_the_whole_chain():
    assert set(parameters(Child)) == {"epochs", "inner", "kind", "knots"}


def test_defaults_are_filled_in_and_values_converted():
    values = validate(Child, {"kind": "a", "knots": [[0, "1/2"]], "inner": {"rate": "8/255"}}, "trainer")
    assert values["epochs"] == 3
    assert values["knots"] == ((0.0, 0.5),)
    assert values["inner"].rate == 8 / 255
    assert plain(Child, values) == {"epochs": 3, "inner": {"rate": 8 / 255}, "kind": "a", "knots": [[0.0, 0.5]]}


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"kind": "c"}, r"""x\.kind="c": input should be 'a' or 'b'"""),
        ({}, r"x\.kind must be given"),
        ({"kind": "a", "epoch": 2}, r"unknown key x\.epoch; did you mean 'epochs'\? \(Child takes: epochs, inner"),
        ({"kind": "a", "epochs": "ten"}, r'x\.epochs="ten": .*integer'),
        ({"kind": "a", "epochs": True}, r"x\.epochs=true"),
        ({"kind": "a", "epochs": 0}, r"x\.epochs=0: .*greater than or equal to 1"),
        ({"kind": "a", "epochs": 2.5}, r"x\.epochs=2\.5"),
        ({"kind": "a", "inner": {"rate": "ten"}}, r"x\.inner\.rate=\"ten\": 'ten' is neither a number nor a fraction"),
        ({"kind": "a", "inner": {"rte": 1}}, r"x\.inner\.rte"),
    ],
)
def test_one_sentence_for_each_mistake(values, sentence):
    with pytest.raises(ConfigError, match=sentence) as caught:
        validate(Child, values, "x")
    assert "\n" not in str(caught.value)


def test_an_interpolated_value_names_its_source():
    with pytest.raises(ConfigError, match=r"it reads \$\{threat\.epsilon\}"):
        validate(Child, {"kind": "a", "epochs": -1}, "x", raw={"epochs": "${threat.epsilon}"})
