"""Where the configuration tree and the papers' tables lie, in a checkout and in an installed wheel alike."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def _shipped(name: str) -> Path:
    # A wheel carries the tree inside the package; an editable install uses the repository's own.
    inside = _PACKAGE / f"_{name}"
    return inside if inside.is_dir() else _PACKAGE.parent / name


def conf_dir() -> Path:
    """The directory of everything that can be composed."""
    return _shipped("conf")


def experiments_dir() -> Path:
    """The directory with one folder a paper: README.md, tables.yaml, results/."""
    return _shipped("experiments")
