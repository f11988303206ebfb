"""Imported by the server that `tests.forked` forks from: all that a job of any kind imports, so that none has to."""

# ruff: noqa: F401

import encodings.cp437

import matplotlib.backends.backend_agg
import PIL.Image
import requests
import rich._emoji_codes
import torch
import torch.profiler._cupti_monitor
import torch.utils.serialization.config

from robustrun import cli, job, launch, plan
from robustrun.compose import Composer
from robustrun.registry import AXES
from robustrun.report import overlay, summary, terminal
from robustrun.verbs import table
from tests.kinds import JOBS, arguments

torch.set_num_threads(1)
PIL.Image.init()
for _axis in AXES.values():
    _axis.names()
_composer = Composer.create()
for _kind in JOBS:  # the grammars of overrides and interpolations are slow the first time
    if _overrides := [word for word in arguments(_kind, "http://nowhere") if "=" in word]:
        plan.plan(_composer, _composer.expand(_overrides))
