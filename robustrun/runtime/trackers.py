"""Where figures go while a job runs: always to metrics.jsonl, and to wandb or tensorboard if asked."""

import json
import logging
import math
import netrc
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from robustrun.errors import ConfigError

logger = logging.getLogger("robustrun")

NAMES = ("local", "wandb", "tensorboard")
WANDB_TIMEOUT = 30.0  # seconds until its service is taken to be away


class Tracker(Protocol):
    """Takes figures. Its state is kept in checkpoints, so that a resumed job logs nothing twice."""

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Figures of a step."""
        ...

    def summary(self, metrics: Mapping[str, float]) -> None:
        """Figures of the finished job."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint: what was logged after it is forgotten."""
        ...

    def restart(self) -> None:
        """Forget what an earlier attempt logged."""
        ...

    def close(self) -> None:
        """Write what is left, and let go."""
        ...


class NullTracker:
    """Logs nothing (the ranks beside the main one)."""

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        pass

    def summary(self, metrics: Mapping[str, float]) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        pass

    def restart(self) -> None:
        pass

    def close(self) -> None:
        pass


class LocalTracker(NullTracker):
    """A line of JSON a `log` in metrics.jsonl; on resume, what was logged after the checkpoint is dropped."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._file = open(self.path, "a+b")  # noqa: SIM115 - closed by close()
        self._file.seek(0)
        whole = self._file.read().rfind(b"\n") + 1  # a line cut short by a kill
        self._file.truncate(whole)
        self._file.seek(0, os.SEEK_END)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        values = {name: _number(value) for name, value in metrics.items()}
        line = json.dumps({"step": int(step), "time": round(time.time(), 3), **values}, allow_nan=False)
        self._file.write(line.encode() + b"\n")
        self._file.flush()

    def state_dict(self) -> dict[str, Any]:
        return {"bytes": self._file.tell()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state["bytes"] < self._file.seek(0, os.SEEK_END):
            self._file.truncate(state["bytes"])
        self._file.seek(0, os.SEEK_END)

    def restart(self) -> None:
        self._file.truncate(0)
        self._file.seek(0)

    def close(self) -> None:
        self._file.close()


class WandbTracker(NullTracker):
    """Weights & Biases: offline unless the user is logged in, and no obstacle when its service is away."""

    def __init__(
        self,
        directory: Path,
        *,
        project: str,
        run_id: str | None,
        name: str | None,
        config: Mapping[str, Any],
    ) -> None:
        try:
            import wandb
        except ImportError:
            raise ConfigError("tracker=wandb needs the package: pip install wandb") from None
        options = {
            "project": project,
            "id": run_id,
            "name": name,
            "config": dict(config),
            "dir": str(directory),
            "resume": "allow" if run_id else None,
        }
        mode = os.environ.get("WANDB_MODE") or ("online" if _wandb_login() else "offline")
        settings = wandb.Settings(silent=True, init_timeout=WANDB_TIMEOUT)
        try:
            self._run = wandb.init(**options, mode=mode, settings=settings)
        except Exception as error:  # no network, a proxy, an expired key: training must not depend on it
            if mode != "online":
                raise
            logger.warning("wandb does not answer (%s): logging offline, `wandb sync` sends it later", error)
            wandb.teardown()  # its service still holds the run's id
            self._run = wandb.init(**options, mode="offline", settings=settings)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self._run.log({name: float(value) for name, value in metrics.items()}, step=step)

    def summary(self, metrics: Mapping[str, float]) -> None:
        self._run.summary.update({name: float(value) for name, value in metrics.items()})

    def close(self) -> None:
        self._run.finish()


class TensorboardTracker(NullTracker):
    """Event files for TensorBoard in the run directory's tensorboard/."""

    def __init__(self, directory: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise ConfigError(
                "tracker=tensorboard needs a package that is missing: pip install robustrun[tensorboard]"
            ) from None
        self._make_writer = lambda **options: SummaryWriter(str(directory), **options)
        self._writer: Any = None
        self._next_step = 0

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self._writer = self._writer or self._make_writer()
        for name, value in metrics.items():
            self._writer.add_scalar(name, float(value), step)
        self._next_step = max(self._next_step, step + 1)

    def summary(self, metrics: Mapping[str, float]) -> None:
        self.log({f"final/{name}": value for name, value in metrics.items()}, max(self._next_step - 1, 0))

    def state_dict(self) -> dict[str, Any]:
        return {"next_step": self._next_step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.close()
        self._next_step = state["next_step"]
        self._writer = self._make_writer(purge_step=self._next_step)

    def restart(self) -> None:
        self.load_state_dict({"next_step": 0})

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._writer = None


class _Together:
    """Several trackers as one."""

    def __init__(self, trackers: Mapping[str, Tracker]) -> None:
        self._trackers = dict(trackers)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        for tracker in self._trackers.values():
            tracker.log(metrics, step)

    def summary(self, metrics: Mapping[str, float]) -> None:
        for tracker in self._trackers.values():
            tracker.summary(metrics)

    def state_dict(self) -> dict[str, Any]:
        return {name: tracker.state_dict() for name, tracker in self._trackers.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, tracker in self._trackers.items():
            if name in state:  # a tracker added since the checkpoint starts from here
                tracker.load_state_dict(state[name])

    def restart(self) -> None:
        for tracker in self._trackers.values():
            tracker.restart()

    def close(self) -> None:
        for tracker in self._trackers.values():
            tracker.close()


def make_tracker(
    names: str | Sequence[str],
    directory: Path,
    *,
    project: str = "robustrun",
    run_id: str | None = None,
    name: str | None = None,
    config: Mapping[str, Any] | None = None,
) -> Tracker:
    """The trackers named ("local", "wandb", "tensorboard"; a list, or one string with commas); local always.

    Raises:
        ConfigError: an unknown name, or its package is missing.
    """
    wanted = [part.strip() for part in names.split(",")] if isinstance(names, str) else list(names)
    for wanted_name in wanted:
        if wanted_name not in NAMES:
            raise ConfigError(f"tracker={wanted_name} is not known: use {', '.join(NAMES)}")
    trackers: dict[str, Tracker] = {"local": LocalTracker(directory / "metrics.jsonl")}
    try:
        if "tensorboard" in wanted:
            trackers["tensorboard"] = TensorboardTracker(directory / "tensorboard")
        if "wandb" in wanted:
            trackers["wandb"] = WandbTracker(directory, project=project, run_id=run_id, name=name, config=config or {})
    except BaseException:
        _Together(trackers).close()
        raise
    return _Together(trackers)


def _wandb_login() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        hosts = netrc.netrc().hosts
    except (OSError, netrc.NetrcParseError):
        return False
    return any("wandb" in host for host in hosts)


def _number(value: Any) -> float | int | str | bool | None:
    """A figure as JSON has it: NaN and infinities, for which JSON has no word, become null."""
    if isinstance(value, (bool, int, str)) or value is None:
        return value
    value = float(value)
    return value if math.isfinite(value) else None
