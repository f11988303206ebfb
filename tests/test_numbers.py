import contextlib
import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from robustrun.numbers import NonNegative, Number, Positive, Probability, parse_number


@pytest.mark.parametrize(("text", "value"), [("8/255", 8 / 255), ("3", 3.0), (2, 2.0), ("1e-3", 1e-3), (0.5, 0.5)])
def test_fractions_and_plain_numbers(text, value):
    assert parse_number(text) == value


@pytest.mark.parametrize(
    "bad", [True, False, "inf", "nan", math.inf, math.nan, "1/0", "a", "1/2/3", "", None, [1], "0x10"]
)
def test_what_is_no_number(bad):
    with pytest.raises(ValueError, match="number"):
        parse_number(bad)


@settings(deadline=None, max_examples=200)
@given(st.one_of(st.text(max_size=12), st.integers(), st.floats(), st.booleans(), st.none()))
def test_a_number_or_a_value_error(value):
    with contextlib.suppress(ValueError):
        assert math.isfinite(parse_number(value))


@given(st.integers(-1000, 1000), st.integers(1, 1000))
def test_a_fraction_hashes_as_its_value(a, b):
    adapter = TypeAdapter(Number)
    once = adapter.validate_json(json.dumps(f"{a}/{b}"), strict=True)
    assert adapter.validate_json(json.dumps(once), strict=True) == once == a / b


@pytest.mark.parametrize(
    ("kind", "bad"), [(Positive, 0), (NonNegative, "-1/255"), (Probability, 1.5), (Probability, "-0.1")]
)
def test_bounds(kind, bad):
    with pytest.raises(ValidationError):
        TypeAdapter(kind).validate_json(json.dumps(bad), strict=True)
