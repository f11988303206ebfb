"""What can be composed, read off the configuration trees without importing anything heavy."""

import html
import re
from collections.abc import Iterable
from pathlib import Path

from robustrun.errors import ConfigError
from robustrun.paths import conf_dir
from robustrun.registry import nearest, plugin_conf_dirs

GROUPS = {
    "exp": "named experiments: robustrun +exp=NAME",
    "task": "what is to be solved",
    "model": "what is fitted",
    "trainer": "how it is fitted",
    "certifier": "what may be claimed of it",
    "threat": "perturbations that are allowed (shared by trainer and certifier)",
    "noise": "smoothing noise (shared)",
    "metric": "the metric that is trained for (shared)",
    "solver": "fixed-point solvers (shared)",
    "runtime": "device, precision, threads",
    "tracker": "where the curves go",
    "hydra/launcher": "where jobs run: robustrun -m ... hydra/launcher=NAME",
}

# What Hydra and its plugins bring along, beside the files of our own.
HYDRAS = {
    "hydra/launcher": {
        "basic": "one job after another in this process (the default)",
        "joblib": "a pool of processes on this machine: hydra.launcher.n_jobs at a time",
        "ray": "a small Ray cluster on this machine (pip install hydra-ray-launcher)",
    },
}


def options(group: str, config_dir: Path | None = None) -> dict[str, str]:
    """Option -> its one-line description (the first comment of its file).

    Raises:
        ConfigError: there is no such group.
    """
    return HYDRAS.get(group, {}) | {name: describe(file) for name, file in files(group, config_dir).items()}


def files(group: str, config_dir: Path | None = None) -> dict[str, Path]:
    """Option -> its file.

    Raises:
        ConfigError: there is no such group.
    """
    if group not in GROUPS:
        raise ConfigError(f"there is no group '{group}'{nearest(group, GROUPS)} (groups: {', '.join(GROUPS)})")
    found: dict[str, Path] = {}
    for root in (conf_dir(), *plugin_conf_dirs(), *([config_dir] if config_dir else [])):
        for file in sorted((root / group).rglob("*.yaml")):
            found[file.relative_to(root / group).with_suffix("").as_posix()] = file
    return found


def markdown(groups: Iterable[str]) -> str:
    """A page of the groups' options, each with its file, whose comments say what the keys mean.

    A recipe's file has only what it changes; it points to the option that it builds on.
    """
    parts = ["# What can be composed", "", "Written by `robustrun list --markdown`; a click shows an option's keys."]
    for group in groups:
        parts += ["", f"## {group}", "", GROUPS[group], ""]
        held = files(group)
        for name, description in options(group).items():
            typed = f"+exp={name}" if group == "exp" else f"{group}={name}"
            head = f"<code>{typed}</code> {html.escape(description)}"
            if name in held:
                below = [f"[{group}={base}](#{_anchor(group, base)})" for base in bases(held[name]) if base in held]
                above = [f"Over the keys of {', '.join(below)}:", ""] if below else []
                keys = ["```yaml", held[name].read_text().rstrip(), "```"]
                opening = f'<details id="{_anchor(group, name)}"><summary>{head}</summary>'
                parts += [opening, "", *above, *keys, "", "</details>"]
            else:
                parts += [f"<p>{head}</p>"]
    return "\n".join(parts)


def _anchor(group: str, option: str) -> str:
    return re.sub(r"[^\w]+", "-", f"{group}-{option}")


def bases(file: Path) -> list[str]:
    """The options of its group that a recipe builds on, as its `defaults: [base, _self_]` names them."""
    found = re.search(r"^defaults: \[(.*)\]", file.read_text(), re.MULTILINE)
    return [name for name in re.findall(r"[\w-]+", found[1]) if name != "_self_"] if found else []


def describe(file: Path) -> str:
    """The first comment line of a config file; Hydra's `@package` line is not one."""
    for line in file.read_text().splitlines():
        if line.startswith("#") and not line.lstrip("# ").startswith("@package"):
            return line.lstrip("# ").rstrip()
        if line.strip() and not line.startswith("#"):
            _, _, comment = line.partition(" #")
            return comment.strip()
    return ""
