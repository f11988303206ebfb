"""Any torch module of yours, by its import path, in place of a model of this project."""

import importlib
import inspect
from typing import Any

from torch import nn

from robustrun.errors import ConfigError
from robustrun.registry import models
from robustrun.roles import TaskSpec


@models.register("module")
def imported(spec: TaskSpec, *, target: str, arguments: dict[str, Any] = {}) -> nn.Module:  # noqa: B006
    """Call `target` ("package.module:Name" or "package.module.Name") with `arguments`.

    A callable that has a parameter `spec` is given the task's spec as well, so that it can read the number of
    classes and the normalisation from it. What it returns must accept and return what the task says.

    Raises:
        ConfigError: nothing can be imported under that path, or calling it fails, or it makes no nn.Module.
    """
    module_name, _, name = target.replace(":", ".").rpartition(".")
    try:
        factory = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"model.target={target}: {error}; write package.module:Name") from None
    wants_spec = "spec" in inspect.signature(factory).parameters
    try:
        module = factory(**arguments, **({"spec": spec} if wants_spec else {}))
    except TypeError as error:
        raise ConfigError(f"model.target={target} cannot be called with model.arguments: {error}") from None
    if not isinstance(module, nn.Module):
        raise ConfigError(f"model.target={target} made a {type(module).__name__}, not a torch.nn.Module")
    return module
