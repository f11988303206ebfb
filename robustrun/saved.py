"""Finished models on disk: `load(run_dir)` gives one back, ready to use, with no axis imported by hand."""

from pathlib import Path
from typing import Any

import torch
import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn

from robustrun.errors import ConfigError, DataError
from robustrun.registry import models
from robustrun.roles import Fitted, TaskSpec
from robustrun.runtime import Checkpoints
from robustrun.schema import validate


def save(fitted: Fitted, spec: TaskSpec, checkpoints: Checkpoints) -> None:
    """Write a fitted model's states: last.pt (complete) and one file for each further state."""
    states = {"last": fitted.model.state_dict(), **fitted.states}
    for name, state in states.items():
        if name != "last":
            checkpoints.save(name, {"model": state, "spec": spec.state()})
    payload = {
        "model": states["last"],
        "spec": spec.state(),
        "history": fitted.history,
        "extra": fitted.extra,
        "states": sorted(states),
        "finished": True,
    }
    checkpoints.save("last", payload)


def restore(model: Any, checkpoints: Checkpoints) -> Fitted | None:
    """The fitted model of a job whose training is finished; None if it is not.

    Raises:
        DataError: a checkpoint is damaged or belongs to another model.
    """
    if "last" not in checkpoints:
        return None
    last = checkpoints.load("last")
    if not last.get("finished"):
        return None
    states = {"last": last["model"]}
    states |= {name: checkpoints.load(name)["model"] for name in last["states"] if name != "last"}
    try:
        model.load_state_dict(states["last"])
    except (RuntimeError, KeyError) as error:
        where = checkpoints.path("last")
        raise DataError(f"{where} does not belong to this model: {str(error).splitlines()[0]}") from None
    return Fitted(model, states, last["history"], last["extra"])


def load_fitted(run_dir: str | Path, device: str | torch.device = "cpu") -> tuple[Fitted, TaskSpec]:
    """A finished job's model with its states and history, and the spec it was built for.

    Raises:
        DataError: there is no finished training in the directory, or it is damaged.
    """
    run_dir = Path(run_dir)
    config_file = run_dir / "config.yaml"
    if not config_file.is_file():
        raise DataError(f"{run_dir} is not a run directory: there is no config.yaml in it")
    node = _model_node(config_file)
    checkpoints = Checkpoints(run_dir / "checkpoints")
    if "last" not in checkpoints:
        raise DataError(f"{run_dir} holds no model: there is no checkpoints/last.pt in it")
    spec = TaskSpec.from_state(checkpoints.load("last")["spec"])
    implementation = models[node.pop("name")]
    model = implementation(spec, **validate(implementation, node, f"{config_file}: model"))
    if isinstance(model, nn.Module):
        model.to(device)
    fitted = restore(model, checkpoints)
    if fitted is None:
        raise DataError(f"the training in {run_dir} is not finished: type its command again to complete it")
    return fitted, spec


def _model_node(config_file: Path) -> dict[str, Any]:
    """The model's part of a run's config, its interpolations resolved when it was written."""
    try:
        node = OmegaConf.to_container(OmegaConf.load(config_file))["model"]
        if isinstance(node, dict) and isinstance(node.get("name"), str):
            return node
        reason = "no model is named in it"
    except (yaml.YAMLError, OmegaConfBaseException, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        reason = " ".join(str(error).split())[:120]
    raise DataError(f"{config_file} is damaged ({reason}): rerun=true repeats the job")


def load(run_dir: str | Path, state: str = "last", device: str | torch.device = "cpu") -> Any:
    """The finished model of a run directory, in evaluation mode.

    Args:
        run_dir: a run directory (with config.yaml and checkpoints/).
        state: "last", or another state that the trainer kept, e.g. "best".
        device: where to put it.

    Raises:
        DataError: there is no finished training in the directory, or it is damaged.
        ConfigError: there is no such state.
    """
    fitted, _ = load_fitted(run_dir, device)
    try:
        return fitted.at(state)
    except KeyError as error:
        raise ConfigError(f"{run_dir}: {error.args[0]}") from None
