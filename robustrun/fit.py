"""Which implementations fit together: read off their annotations, before any data is read.

A trainer's `fit(task: ClassificationTask, model: nn.Module, run)` says that it works on classification tasks and on
modules; a model's `__init__(spec: ClassificationSpec, *, ...)` what it can be built for; a certifier's
`certify(task: ClassificationTask, fitted: Fitted[LinearClassifier], run)` what it can judge.
"""

import types
import typing
from collections.abc import Callable
from functools import cache
from typing import Any, Union, get_args, get_origin, get_type_hints

from robustrun.roles import Certifier, Fitted, Task, Trainer


def _classes(annotation: Any) -> tuple[type, ...]:
    """The classes an annotation admits; (object,) if it says nothing."""
    if annotation is Any or annotation is None or isinstance(annotation, typing.TypeVar):
        return (object,)
    if get_origin(annotation) in (Union, types.UnionType):
        return tuple(c for part in get_args(annotation) for c in _classes(part))
    origin = get_origin(annotation) or annotation
    return (origin,) if isinstance(origin, type) else (object,)


def _admits(admitted: tuple[type, ...], offered: tuple[type, ...]) -> bool:
    # A protocol (roles.Model) or object admits everything: structure cannot be checked on a class.
    return any(
        a is object or getattr(a, "_is_protocol", False) or any(issubclass(o, a) and _asked_for(o, a) for o in offered)
        for a in admitted
    )


def _asked_for(offered: type, admitted: type) -> bool:
    """Whether a class that is not what its bases promise (`particular`) is meant, and not only one of these bases."""
    kind = next((c for c in offered.__mro__ if "particular" in vars(c)), None)
    return kind is None or issubclass(admitted, kind)


def _parameter(function: Callable[..., Any], position: int) -> Any:
    code = function.__code__
    names = code.co_varnames[: code.co_argcount]
    return get_type_hints(function).get(names[position], Any)


def task_type(task: type[Task]) -> tuple[type, ...]:
    """The class of a task, as the other axes name theirs."""
    return (task,)


@cache
def spec_type(task: type[Task]) -> tuple[type, ...]:
    return _classes(get_type_hints(task).get("spec", Any))


@cache
def model_type(model: Callable[..., Any]) -> tuple[type, ...]:
    """The class of the models that a class or factory makes."""
    return (model,) if isinstance(model, type) else _classes(get_type_hints(model).get("return", Any))


@cache
def model_wants(model: Callable[..., Any]) -> tuple[type, ...]:
    """The specs a model can be built for."""
    return _classes(_parameter(model.__init__, 1) if isinstance(model, type) else _parameter(model, 0))


@cache
def trainer_wants(trainer: type[Trainer]) -> tuple[tuple[type, ...], tuple[type, ...]]:
    """The tasks and the models a trainer works on."""
    return _classes(_parameter(trainer.fit, 1)), _classes(_parameter(trainer.fit, 2))


@cache
def certifier_wants(certifier: type[Certifier]) -> tuple[tuple[type, ...], tuple[type, ...]]:
    """The tasks and the models a certifier works on."""
    fitted = _parameter(certifier.certify, 2)
    arguments = get_args(fitted) if get_origin(fitted) is Fitted else ()
    return _classes(_parameter(certifier.certify, 1)), _classes(arguments[0] if arguments else Any)


def _names(classes: tuple[type, ...]) -> str:
    return " or ".join(sorted({c.__name__ for c in classes}))


def _kind(classes: tuple[type, ...]) -> str:
    """The role a class plays (ClassificationTask), rather than its own name."""
    for base in classes[0].__mro__[1:] if classes else ():
        if base.__module__.startswith("robustrun.roles."):
            return base.__name__
    return _names(classes)


def misfit(
    task: type[Task], model: Callable[..., Any], trainer: type[Trainer], certifier: type[Certifier]
) -> tuple[str, str, str] | None:
    """The first two axes that do not fit: (axis to blame, the other axis, why), or None if all fit."""
    if not _admits(model_wants(model), spec_type(task)):
        why = f"it is built for a {_names(model_wants(model))}, and the task gives a {_names(spec_type(task))}"
        return "model", "task", why
    for axis, (tasks, models) in (
        ("trainer", trainer_wants(trainer)),
        ("certifier", certifier_wants(certifier)),
    ):
        if not _admits(tasks, task_type(task)):
            return axis, "task", f"it works on a {_names(tasks)}, and the task is a {_kind((task,))}"
        if not _admits(models, model_type(model)):
            return (
                axis,
                "model",
                f"it works on a {_names(models)}, and the model is a {_kind(model_type(model))}",
            )
    if trainer.differentiates_twice and not all(getattr(c, "differentiable_twice", True) for c in model_type(model)):
        return "trainer", "model", "it differentiates gradients, and this model's are a solver's, which cannot be"
    if certifier.closed_form and not trainer.closed_form:
        return "trainer", "certifier", "this speaks of least squares in closed form, and the trainer fits otherwise"
    return None
