"""robustrun: experiments in certified and robust machine learning, and their mathematics.

`robustrun.load(run_dir)` gives a finished model back; `robustrun.methods` is the mathematics on its own.
"""

from typing import Any

__all__ = ["load"]


def __getattr__(name: str) -> Any:
    # Lazily, so that the command line starts without importing torch.
    if name == "load":
        from robustrun.saved import load

        return load
    raise AttributeError(f"module 'robustrun' has no attribute '{name}'")
