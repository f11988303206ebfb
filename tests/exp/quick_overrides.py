"""Overrides that make each quick experiment small enough for a test (under 15 seconds on one core)."""

QUICK = {
    "quick/fast_at": ["task.limit=600", "trainer.epochs=1", "certifier.examples=20", "certifier.steps=5"],
}
