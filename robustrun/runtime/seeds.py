"""Randomness without hidden state: every draw is named, and depends on (seed, name) alone.

A job that is killed and resumed, or that asks for one more draw in between, sees the same numbers elsewhere.
Global generators (python, numpy, torch) are seeded too, and saved in checkpoints, for code that draws from
them without asking, such as dropout.
"""

import hashlib
import json
import operator
import random
from typing import Any

import numpy as np
import torch


def _canonical(part: Any) -> Any:
    """`part` as something whose JSON text is the same everywhere; 1, "1", 1.0 and true stay different."""
    if part is None or isinstance(part, (bool, str)):
        return part
    if isinstance(part, (float, np.floating)):
        return {"float": float(part).hex()}
    if isinstance(part, (tuple, list)):
        return [_canonical(item) for item in part]
    try:
        return operator.index(part)
    except TypeError:
        raise TypeError(f"a seed is named by strings and numbers, not by {part!r}") from None


def derive_seed(seed: int, *key: Any) -> int:
    """A 63-bit seed for the draw named `key` (strings, numbers, tuples of them), unrelated to all others."""
    text = json.dumps([_canonical(part) for part in (seed, *key)], separators=(",", ":"))
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def seed_globals(seed: int) -> None:
    """Seed python's, numpy's and torch's global generators."""
    random.seed(derive_seed(seed, "python"))
    np.random.seed(derive_seed(seed, "numpy") % 2**32)  # noqa: NPY002 - the global one is what others draw from
    torch.manual_seed(derive_seed(seed, "torch"))


def global_state() -> dict[str, Any]:
    """The state of the global generators, in tensors and builtins."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002
    return {
        "python": {"version": version, "words": torch.tensor(words, dtype=torch.int64), "gauss": gauss},
        "numpy": {
            "name": name,
            "keys": torch.from_numpy(np.asarray(keys).astype(np.int64)),
            "position": int(position),
            "has_gauss": int(has_gauss),
            "cached": float(cached),
        },
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_global_state(state: dict[str, Any]) -> None:
    """Undo everything drawn since `global_state()` returned `state`."""
    python, numpy = state["python"], state["numpy"]
    random.setstate((python["version"], tuple(python["words"].tolist()), python["gauss"]))
    keys = numpy["keys"].numpy().astype(np.uint32)
    np.random.set_state(  # noqa: NPY002
        (numpy["name"], keys, numpy["position"], numpy["has_gauss"], numpy["cached"])
    )
    torch.set_rng_state(state["torch"].cpu())
    if len(state["cuda"]) == torch.cuda.device_count() and torch.cuda.is_available():
        torch.cuda.set_rng_state_all([s.cpu() for s in state["cuda"]])
