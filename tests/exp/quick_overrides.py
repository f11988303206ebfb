"""Overrides that make each quick experiment small enough for a test (under 15 seconds on one core)."""

QUICK = {
    "quick/fast_at": ["task.limit=600", "trainer.epochs=1", "certifier.examples=20", "certifier.steps=5"],
    "quick/fast_at_alpha": ["task.limit=600", "trainer.epochs=1", "certifier.examples=20", "certifier.steps=5"],
    "quick/robust_overfitting": ["task.limit=100", "task.test_limit=50", "trainer.epochs=3", "certifier.steps=3"],
    "quick/stable_dynamics": [
        "trainer.epochs=10",
        "trainer.record_every=5",
        "certifier.starts=5",
        "certifier.steps=120",
        "certifier.far_steps=20",
        "certifier.attack_starts=100",
        "certifier.attack_steps=5",
        "certifier.film=12",
    ],
    "quick/stable_video": [
        "task.frame_count=60",
        "trainer.epochs=2",
        "trainer.record_every=1",
        "certifier.steps=40",
        "certifier.times=[10,40]",
        "certifier.film=12",
        "certifier.attack_starts=50",
        "certifier.attack_steps=3",
    ],
    "quick/stable_random": [
        "certifier.starts=5",
        "certifier.steps=40",
        "certifier.attack_starts=100",
        "certifier.attack_steps=5",
    ],
    "quick/ase": ["task.steps=600", "certifier.frames=10"],
    "quick/ase_platformer": ["task.steps=300", "certifier.frames=10"],
    "quick/virtual_sensor": [
        "task.train=1000",
        "task.valid=200",
        "task.test=200",
        "trainer.epochs=2",
        "certifier.examples=50",
        "certifier.attack_steps=5",
    ],
    "quick/ap_perf": ["task.limit=200", "trainer.epochs=1", "trainer.batch_size=50", "certifier.resamples=200"],
}
