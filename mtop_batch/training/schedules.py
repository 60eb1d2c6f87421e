"""Learning-rate schedules: pure functions of the step."""

from __future__ import annotations


def linear_warmup_decay(step: int, num_steps: int, warmup_fraction: float) -> float:
    """The factor on the learning rate: up linearly over the first steps, then down linearly to zero (section 6.1).

    Step `s` of `w` warm-up steps runs at `(s + 1) / w`, so that the first step moves the weights; step `s` after
    them at `(n - s) / (n - w)`, which is 1 right after the warm-up and would be 0 one step after the last.

    Args:
        step: In [0, num_steps).
        num_steps: n, the steps of the run.
        warmup_fraction: In [0, 1]; w is this share of the steps, rounded.

    Returns:
        The factor, in (0, 1].

    >>> [linear_warmup_decay(step, num_steps=6, warmup_fraction=0.34) for step in range(6)]
    [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
    """
    warmup_steps = round(warmup_fraction * num_steps)
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return (num_steps - step) / (num_steps - warmup_steps)
