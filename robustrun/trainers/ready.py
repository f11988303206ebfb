"""Trainers that train nothing: take a finished model, or the model as it is."""

from pathlib import Path

import torch
from torch import nn

from robustrun.errors import ConfigError, DataError
from robustrun.registry import trainers
from robustrun.roles import Fitted, Model, Task, Trainer
from robustrun.runtime import Run, load_file
from robustrun.saved import load_fitted

_WRAPPERS = ("module.", "_orig_mod.", "model.")  # what data-parallel and compiled models put before every name

_CONSTANTS = (("mu", "sigma"), ("mean", "std"), ("normalize.mean", "normalize.std"))  # of RobustBench's networks
_NEVER_USED = ("sub_block1.",)  # which wide networks after TRADES carry along


@trainers.register("none")
class NoTraining(Trainer):
    """The model as it was built: certify an untrained network, or one whose model loads its own weights."""

    def __init__(self):
        pass

    def fit(self, task: Task, model: Model, run: Run) -> Fitted:
        return Fitted(model)


@trainers.register("load")
class Load(Trainer):
    """A finished model from a run directory, or its weights from a file.

    Args:
        path: a run directory of this program (all its states and its history are taken), or a file that
            torch.save wrote: a state dict, or a dict that holds one under `key`; or a .safetensors file.
        key: where in such a dict the weights are; null looks under "state_dict", "model" and "model_state_dict".
    """

    closed_form = True  # if that is what is loaded

    def __init__(self, *, path: str, key: str | None = None):
        self.path = Path(path).expanduser()
        self.key = key

    def fit(self, task: Task, model: Model, run: Run) -> Fitted:
        if self.path.is_dir():
            fitted, _ = load_fitted(self.path, run.device)
            weights, states, history, extra = fitted.states["last"], fitted.states, fitted.history, fitted.extra
        else:
            weights, states, history, extra = self._fitting(self._weights(), model), {}, [], {}
        try:
            model.load_state_dict(weights)
        except (RuntimeError, KeyError) as error:
            reason = " ".join(str(error).split())[:300]
            raise ConfigError(f"{self.path} does not hold weights of this model: {reason}") from None
        if isinstance(model, nn.Module):
            model.eval()
        return Fitted(model, states, history, extra)

    def _fitting(self, weights: dict, model: Model) -> dict:
        """The weights without what public zoos keep beside them: constants of the normalisation, a block never used."""
        own = model.state_dict()
        weights = {name: value for name, value in weights.items() if name in own or not name.startswith(_NEVER_USED)}
        for mean_name, std_name in _CONSTANTS:
            if mean_name in weights and std_name in weights and mean_name not in own:
                mean, std = (weights.pop(name).flatten().double().cpu() for name in (mean_name, std_name))
                if not _normalises(model, mean, std):
                    raise ConfigError(
                        f"{self.path} normalises by mean {mean.tolist()} and deviation {std.tolist()}, this model "
                        "otherwise: wrap the network in a module that normalises as its file says (model=module)"
                    )
        return weights

    def _weights(self) -> dict:
        if not self.path.is_file():
            raise DataError(f"trainer.path={self.path}: there is no such run directory or file")
        if self.path.suffix == ".safetensors":
            from safetensors import SafetensorError
            from safetensors.torch import load_file as load_safetensors

            try:
                return load_safetensors(self.path)
            except (SafetensorError, ValueError) as error:
                raise DataError(f"trainer.path={self.path} is damaged: {str(error).splitlines()[0]}") from None
        content = load_file(self.path)
        for key in [self.key] if self.key else ["state_dict", "model", "model_state_dict"]:
            if isinstance(content.get(key), dict):
                content = content[key]
                break
        else:
            if self.key:
                raise ConfigError(f"{self.path} has no '{self.key}' (it has: {', '.join(map(str, content))[:300]})")
        if not all(isinstance(name, str) for name in content):
            raise DataError(f"{self.path} holds no state dict: not all of its keys are names")
        while content and any(all(name.startswith(prefix) for name in content) for prefix in _WRAPPERS):
            content = {name.partition(".")[2]: tensor for name, tensor in content.items()}
        return content


def _normalises(model: Model, mean: torch.Tensor, std: torch.Tensor) -> bool:
    """Does the model subtract this mean and divide by this deviation, to three digits?"""
    layer = getattr(model, "normalize", None)
    if not hasattr(layer, "scale"):
        return bool((mean.abs() < 1e-3).all() and ((std - 1).abs() < 1e-3).all())
    scale, shift = (buffer.flatten().double().cpu() for buffer in (layer.scale, layer.shift))
    return len(scale) == len(std) and bool(
        ((scale * std - 1).abs() < 2e-3).all() and ((shift + mean / std).abs() < 5e-3).all()
    )
