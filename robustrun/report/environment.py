"""What a run ran on: versions, device, commit. Nothing personal, no environment variables."""

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

_PACKAGES = ("robustrun", "torch", "torchvision", "numpy", "scipy", "hydra-core", "cvxpy", "gymnasium")


def versions() -> dict[str, str]:
    """Installed versions of the packages that can change a number."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def git_state(directory: Path | None = None) -> dict[str, Any]:
    """Commit and whether tracked files differ from it; empty outside a checkout of robustrun."""
    root = directory or Path(__file__).resolve().parent
    try:
        command = ["git", "-C", str(root), "rev-parse", "HEAD"]
        commit = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
        command = ["git", "-C", str(root), "status", "--porcelain", "--untracked-files=no"]
        status = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"git_commit": commit, "git_dirty": bool(status.strip())}


def device_name(device: torch.device) -> str:
    """The device in words a reader of a table knows."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {os.cpu_count()} cores, {torch.get_num_threads()} threads"


def describe(device: torch.device, precision: str, world_size: int) -> dict[str, Any]:
    """The `env` of result.json."""
    return {
        "versions": versions(),
        "platform": platform.platform(terse=True),
        "device": device_name(device),
        "precision": precision,
        "world_size": world_size,
        **git_state(),
    }
