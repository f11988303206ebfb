"""Configuration values checked against signatures: types and bounds by pydantic, errors in one sentence."""

import json
from collections.abc import Callable, Mapping
from functools import cache
from inspect import Parameter
from typing import Any, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from robustrun.errors import ConfigError
from robustrun.registry import constructors, nearest, parameters


@cache
def schema(implementation: Callable[..., Any]) -> type[BaseModel]:
    """A pydantic model with one field a keyword-only parameter of `implementation`."""
    hints: dict[str, Any] = {}
    for function in constructors(implementation):
        hints |= get_type_hints(function, include_extras=True)
    fields = {
        name: (hints.get(name, Any), ... if p.default is Parameter.empty else p.default)
        for name, p in parameters(implementation).items()
    }
    config = ConfigDict(extra="forbid", protected_namespaces=(), validate_default=True)
    return create_model(implementation.__name__, __config__=config, **fields)


def validate(
    implementation: Callable[..., Any], values: Mapping[str, Any], where: str, raw: Any = None
) -> dict[str, Any]:
    """The values, converted and checked; defaults filled in.

    Args:
        implementation: whose keyword-only parameters the values are for.
        values: plain builtins (interpolations resolved).
        where: what to call this node in an error, e.g. "trainer".
        raw: the node before interpolations were resolved, to say in an error where a value came from.

    Raises:
        ConfigError: an unknown key, a wrong type, a value out of bounds: one sentence.
    """
    model = schema(implementation)
    try:
        # JSON with strict=True is what a reader of YAML expects: a list may become a tuple and 1 may become 1.0,
        # but true never becomes 1, nor "3" the number 3.
        checked = model.model_validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        raise ConfigError(_sentence(error, model, where, raw)) from None
    return {name: getattr(checked, name) for name in model.model_fields}


def plain(implementation: Callable[..., Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Validated values as JSON builtins, for hashing and for writing down."""
    return schema(implementation).model_construct(**values).model_dump(mode="json", warnings=False)


def _sentence(error: ValidationError, model: type[BaseModel], where: str, raw: Any) -> str:
    first = error.errors(include_url=False)[0]
    location = [str(part) for part in first["loc"] if not str(part).startswith("function-")]
    key = ".".join([where, *location])
    if first["type"] == "extra_forbidden" and len(location) == 1:
        known = sorted(model.model_fields)
        keys = ", ".join(known) or "no keys at all"
        return f"unknown key {key}{nearest(location[0], known)} ({model.__name__} takes: {keys})"
    if first["type"] == "missing":
        return f"{key} must be given"
    message = first["msg"].removeprefix("Value error, ")
    for part in location:
        raw = raw.get(part) if isinstance(raw, Mapping) else None
    source = f" (it reads {raw})" if isinstance(raw, str) and "${" in raw else ""
    return f"{key}={json.dumps(first['input'])}: {message[0].lower()}{message[1:]}{source}"
