"""`robustrun doctor`: what works on this machine, and what to do about what does not."""

import importlib.util
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from rich.table import Table

from robustrun.report.terminal import console


def examine() -> int:
    """Print one line a capability; exit code 1 if something that every job needs is missing."""
    table = Table(title="robustrun doctor", title_justify="left", show_header=False, box=None)
    sound = True
    for mark, what, detail in _findings():
        table.add_row({"ok": "[green]ok[/]", "--": "[yellow]--[/]", "NO": "[red]NO[/]"}[mark], what, detail)
        sound = sound and mark != "NO"
    console().print(table)
    return 0 if sound else 1


def _findings() -> Iterator[tuple[str, str, str]]:
    yield from _versions()
    yield from _device()
    yield from _places()
    yield from _data()
    yield from _cluster()
    yield from _trackers()


def _versions() -> Iterator[tuple[str, str, str]]:
    from robustrun.report.environment import versions

    found = versions()
    yield "ok", "python", f"{found.pop('python')} ({sys.executable})"
    yield "ok", "packages", ", ".join(f"{name} {version}" for name, version in found.items())
    try:
        from robustrun.data.vision import import_torchvision

        import_torchvision()
    except Exception as error:
        yield "NO", "torchvision", f"cannot be imported: {error}"


def _device() -> Iterator[tuple[str, str, str]]:
    import torch

    for index in range(torch.cuda.device_count()):
        memory = torch.cuda.get_device_properties(index).total_memory / 2**30
        yield "ok", f"cuda:{index}", f"{torch.cuda.get_device_name(index)}, {memory:.0f} GiB"
    if not torch.cuda.is_available():
        built = "this torch is a CPU build" if torch.version.cuda is None else "no device is visible"
        yield "--", "gpu", f"none ({built}); jobs run on the CPU"
    yield "ok", "cpu", f"{os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads"


def _places() -> Iterator[tuple[str, str, str]]:
    from robustrun.data.catalog import data_root

    outputs = Path(os.environ.get("ROBUSTRUN_OUTPUTS", "outputs")).absolute()
    for what, path, variable in (
        ("outputs", outputs, "ROBUSTRUN_OUTPUTS"),
        ("data", data_root(), "ROBUSTRUN_DATA"),
    ):
        existing = next(p for p in (path, *path.parents) if p.exists())
        free = shutil.disk_usage(existing).free / 2**30
        writable = os.access(existing, os.W_OK)
        mark = "ok" if writable and free > 1 else "NO"
        note = "" if writable else f", not writable: set ${variable}"
        yield mark, what, f"{path} ({free:.0f} GiB free{note})"


def _data() -> Iterator[tuple[str, str, str]]:
    from robustrun.data import catalog

    present = [entry.name for entry in catalog.DATASETS.values() if entry.present()]
    absent = [entry.name for entry in catalog.DATASETS.values() if not entry.present()]
    yield (
        "ok",
        "data sets",
        f"here: {', '.join(present) or 'none'}; obtained when first used: {', '.join(absent)}",
    )
    npm = shutil.which("npm")
    hint = npm or "not installed (only needed where the official data hosts do not answer)"
    yield ("ok" if npm else "--"), "npm", hint


def _cluster() -> Iterator[tuple[str, str, str]]:
    sbatch = shutil.which("sbatch")
    yield (
        ("ok" if sbatch else "--"),
        "slurm",
        sbatch or "no sbatch on the PATH; hydra/launcher=slurm needs one",
    )
    for module, extra in (("submitit", "slurm"), ("hydra_plugins.hydra_submitit_launcher", "slurm")):
        if not _importable(module):
            yield "--", module.rpartition(".")[2], f"not installed: pip install 'robustrun[{extra}]'"


def _trackers() -> Iterator[tuple[str, str, str]]:
    key = "logged in by WANDB_API_KEY" if os.environ.get("WANDB_API_KEY") else "offline unless you are logged in"
    yield ("ok" if _importable("wandb") else "--"), "wandb", key
    if not _importable("tensorboard"):
        yield "--", "tensorboard", "not installed: pip install 'robustrun[tensorboard]'"


def _importable(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False
