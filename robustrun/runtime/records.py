"""One record an example, written while a long certification runs, so that it resumes where it stopped."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from robustrun.errors import ConfigError, DataError
from robustrun.runtime.distributed import Distributed


class ExampleLog:
    """Append-only records of examples, one line a batch, one file a rank.

    `done` are the examples already there; `append` adds a batch; `columns` reads all of it back. A line cut
    short by a kill is dropped, so a batch is there wholly or not at all, and no example is counted twice.

    Raises:
        DataError: a file of records is damaged.
    """

    def __init__(
        self,
        directory: Path,
        name: str = "examples",
        columns: Sequence[str] = (),
        *,
        distributed: Distributed | None = None,
    ) -> None:
        self.names = tuple(columns)
        self._distributed = distributed or Distributed()
        self._directory = Path(directory)
        self._directory.mkdir(parents=True, exist_ok=True)
        self._name = name
        self._own = self._directory / f"{name}.{self._distributed.rank}.jsonl"
        _drop_torn_line(self._own)
        self._distributed.barrier()
        self._done = {int(i) for record in self._read() for i in record["index"]}
        self._distributed.barrier()  # nobody appends before everybody has read

    @property
    def done(self) -> np.ndarray:
        """The numbers of the finished examples, sorted (int64)."""
        return np.array(sorted(self._done), dtype=np.int64)

    def remaining(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Those of `indices` that have no record yet, in their order."""
        return np.array([i for i in np.asarray(indices).tolist() if i not in self._done], dtype=np.int64)

    def append(self, index: Any, **columns: Any) -> None:
        """Add a batch's records: `index` (n,), and for each column an array (n, ...) or one value for all.

        Examples that have a record already are left out.

        Raises:
            ValueError: the columns are not those declared, or of another length.
        """
        index = np.atleast_1d(_array(index)).astype(np.int64)
        self.names = self.names or tuple(columns)
        if set(columns) != set(self.names):
            raise ValueError(f"records have the columns {sorted(self.names)}, not {sorted(columns)}")
        values = {name: _array(value) for name, value in columns.items()}
        for name, value in values.items():
            if value.ndim == 0:
                values[name] = np.repeat(value, len(index))
            elif len(value) != len(index):
                raise ValueError(f"column '{name}' has {len(value)} entries for {len(index)} examples")
        _, first = np.unique(index, return_index=True)
        new = [i for i in sorted(first) if int(index[i]) not in self._done]
        if not new:
            return
        record = {"index": index[new].tolist(), **{name: v[new].tolist() for name, v in values.items()}}
        with open(self._own, "ab") as file:
            file.write(json.dumps(record).encode() + b"\n")
        self._done.update(record["index"])

    def columns(self) -> dict[str, np.ndarray]:
        """All records of all ranks, sorted by example: {"index": (n,), column: (n, ...), ...}.

        Every rank must call it.
        """
        self._distributed.barrier()
        records = self._read()
        self._distributed.barrier()
        names = self.names or tuple(n for n in (records[0] if records else {}) if n != "index")
        index = np.array([i for record in records for i in record["index"]], dtype=np.int64)
        index, first = np.unique(index, return_index=True)
        result = {"index": index}
        try:
            for name in names:
                values = [value for record in records for value in record[name]]
                result[name] = np.asarray(values)[first] if values else np.empty(0)
        except (KeyError, ValueError):
            raise DataError(
                f"the records in {self._directory} do not agree: delete them and run the job again"
            ) from None
        return result

    def _read(self) -> list[dict[str, list]]:
        records = []
        for path in sorted(self._directory.glob(f"{self._name}.*.jsonl")):
            with open(path, "rb") as file:
                # Another rank may be writing its last line at this moment.
                records += [_record(line, path) for line in file if line.endswith(b"\n")]
        return records


def shard_indices(indices: Sequence[int] | np.ndarray, shard: str | None) -> np.ndarray:
    """The part of `indices` that shard "i/n" (i from 1 to n) works on: contiguous, equally many up to one.

    Raises:
        ConfigError: the shard is not of that form.
    """
    indices = np.asarray(indices, dtype=np.int64)
    if shard is None:
        return indices
    i, slash, n = str(shard).partition("/")
    if not (slash and i.isdecimal() and n.isdecimal() and 1 <= int(i) <= int(n)):
        raise ConfigError(f"shard={shard} is not understood: write i/n with 1 <= i <= n, for example 2/8")
    return indices[Distributed(rank=int(i) - 1, world_size=int(n)).slice(len(indices))]


def _record(line: bytes, path: Path) -> dict[str, list]:
    try:
        record = json.loads(line)
        if len({len(values) for values in record.values()}) == 1 and all(type(i) is int for i in record["index"]):
            return record
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    raise DataError(f"{path} is damaged: delete it, and its examples are judged again")


def _array(value: Any) -> np.ndarray:
    return value.detach().cpu().numpy() if hasattr(value, "detach") else np.asarray(value)


def _drop_torn_line(path: Path) -> None:
    if path.exists():
        with open(path, "r+b") as file:
            file.truncate(file.read().rfind(b"\n") + 1)
