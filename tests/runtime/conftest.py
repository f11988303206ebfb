import pytest

from robustrun.runtime import Run


@pytest.fixture
def run(tmp_path):
    with Run.create(tmp_path / "run", seed=1, device="cpu") as run:
        yield run
