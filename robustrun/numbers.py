"""Numbers as the field writes them: a finite float or a fraction such as 8/255."""

import math
from typing import Annotated, Any

from pydantic import BeforeValidator, Field


def parse_number(value: Any) -> float:
    """A finite float from a number or a string `a`, `a/b`; never from true/false, inf or nan.

    Raises:
        ValueError: the value is none of these.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"{value!r} is not a number")
    if isinstance(value, str):
        numerator, slash, denominator = value.partition("/")
        try:
            value = float(numerator) / float(denominator) if slash else float(numerator)
        except (ValueError, ZeroDivisionError):
            raise ValueError(f"{value!r} is neither a number nor a fraction such as 8/255") from None
    try:
        value = float(value)
    except OverflowError:  # a whole number beyond 1e308
        value = math.inf
    if not math.isfinite(value):
        raise ValueError(f"{value!r} is not a finite number")
    return value


Number = Annotated[float, BeforeValidator(parse_number)]
NonNegative = Annotated[float, BeforeValidator(parse_number), Field(ge=0)]
Positive = Annotated[float, BeforeValidator(parse_number), Field(gt=0)]
Probability = Annotated[float, BeforeValidator(parse_number), Field(ge=0, le=1)]
PositiveInt = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
