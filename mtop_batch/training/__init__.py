"""Training without an engine: `loop.fit` trains, `warm_start` prepares, `evaluation` judges."""
