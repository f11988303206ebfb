"""Launchers that are not ours: jobs find their names and directories in whatever process they are started."""

import pytest


@pytest.mark.slow
def test_a_pool_of_processes(cli, tmp_path):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    job = ("task=digits", "model=mnist_cnn", "trainer=standard", "certifier=accuracy", "trainer.epochs=1")
    done = cli("-m", *job, "seed=0,1", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "outputs" / "adhoc").glob("*/result.json"))) == 2
