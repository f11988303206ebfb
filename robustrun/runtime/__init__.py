"""A job's surroundings: directory, device, seeds, processes, signals, checkpoints, progress, trackers."""

from robustrun.runtime.checkpoints import Checkpoints, load_file
from robustrun.runtime.distributed import Distributed
from robustrun.runtime.loop import TrainingLoop
from robustrun.runtime.precision import Precision
from robustrun.runtime.progress import Progress
from robustrun.runtime.records import ExampleLog, shard_indices
from robustrun.runtime.run import Run
from robustrun.runtime.signals import StopFlag
from robustrun.runtime.trackers import Tracker, make_tracker

__all__ = [
    "Checkpoints",
    "Distributed",
    "ExampleLog",
    "Precision",
    "Progress",
    "Run",
    "StopFlag",
    "Tracker",
    "TrainingLoop",
    "load_file",
    "make_tracker",
    "shard_indices",
]
