"""The catalogue answers at once, and says where a set lies."""

import subprocess
import sys

import pytest

from robustrun.data import catalog
from robustrun.errors import ConfigError


def test_the_catalogue_brings_in_nothing_heavy():
    code = (
        "import sys; from robustrun.data import catalog; catalog.find('mnist').present();"
        "print([m for m in ('torch', 'numpy', 'torchvision', 'sklearn', 'PIL') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("entry", catalog.DATASETS.values(), ids=lambda entry: entry.name)
def test_entries_are_whole(entry):
    assert entry.licence
    assert entry.homepage
    assert set(entry.sizes) == {"train", "test"}
    assert entry.sources or entry.by_hand
    assert {source.partition(":")[0] for source in entry.sources} <= {
        "layout", "folder", "scikit-learn", "torchvision", "npm", "debian",
    }  # fmt: skip
    assert all("@" in source for source in entry.sources if source.startswith("npm:")), "npm packages are pinned"


def test_root(monkeypatch, tmp_path):
    monkeypatch.setenv("ROBUSTRUN_DATA", str(tmp_path))
    assert catalog.data_root() == tmp_path
    monkeypatch.delenv("ROBUSTRUN_DATA")
    assert catalog.data_root().name == "robustrun"


def test_present(add_toy, mnist_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    entry = add_toy("layout:MNIST")
    assert entry.present(tmp_path / "root") is None
    mnist_folder(tmp_path / "root")
    assert entry.present(tmp_path / "root") == tmp_path / "root" / "MNIST" / "raw"


def test_unknown_name():
    with pytest.raises(ConfigError, match=r"no data set 'mnits': did you mean 'mnist'\?"):
        catalog.find("mnits")
