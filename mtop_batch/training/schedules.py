"""How learning rates and the sampling of tasks change over a run: pure functions of the step.

Besides the paper's warm-up and decay, the schedules of "Exceeding the Limits of Visual-Linguistic Multi-Task Learning"
(large-scale multi-task learning), sections 4.1 and 4.3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mtop_batch.config.train import AlphaDecay, RateKind

FloatArray = npt.NDArray[np.float64]

_LEAST_RATIO = 0.01
_DEMON = 0.9


@dataclass(frozen=True)
class RateSchedule:
    """How learning rates go over a run, after the warm-up.

    Args:
        kind: "linear": down linearly to zero (section 6.1 of the MTOP paper). "constant": as they are. "steps": times
            `factor` at each of `drops`; their warm-up begins at `factor`. "frozen": the backbone stays as it is for
            `frozen_fraction`, and then all rates are times `factor`.
        drops: Shares of the run; the published ones are epochs 8 and 12 of 15.
        frozen_fraction: Share of the run; the published one is 4 epochs of 15.
        factor: In (0, 1].
    """

    kind: RateKind = "linear"
    drops: tuple[float, ...] = (0.533, 0.8)
    frozen_fraction: float = 0.267
    factor: float = 0.1


class RateFactors(NamedTuple):
    """What the peak learning rates are multiplied with in a step; a backbone at 0 does not move."""

    backbone: float
    heads: float


def rate_factors(schedule: RateSchedule, step: int, num_steps: int, warmup_fraction: float) -> RateFactors:
    """The factors of a step.

    Args:
        schedule: Which way they go.
        step: In [0, num_steps).
        num_steps: The steps of the run.
        warmup_fraction: Share of the steps in which rates rise linearly, as in `linear_warmup_decay`.

    >>> [rate_factors(RateSchedule("frozen"), step, 4, 0.0) for step in (0, 3)]
    [RateFactors(backbone=0.0, heads=1.0), RateFactors(backbone=0.1, heads=0.1)]
    """
    if schedule.kind == "linear":
        factor = linear_warmup_decay(step, num_steps, warmup_fraction)
        return RateFactors(factor, factor)
    warmup_steps = round(warmup_fraction * num_steps)
    factor = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
    if schedule.kind == "frozen":
        if step < round(schedule.frozen_fraction * num_steps):
            return RateFactors(0.0, factor)
        factor *= schedule.factor
    elif schedule.kind == "steps":
        factor = schedule.factor + (1 - schedule.factor) * factor
        factor *= schedule.factor ** sum(step >= round(drop * num_steps) for drop in schedule.drops)
    return RateFactors(factor, factor)


def alphas(start: float, end: float, decay: AlphaDecay, num_steps: int) -> FloatArray:
    """(num_steps,) The exponent of the tasks' sampling rates (`sampling.task_rates`) at every step, from start to end.

    With p the share of the run that is done, in [0, 1], and f the weight of `start` against `end`:

    * linear: f = 1 - p
    * exponential: start * (end / start)^p. An end of 0, which no exponential reaches, is taken for a hundredth of the
      start, and the curve is moved down to it.
    * cosine: f = (1 + cos(pi p)) / 2
    * demon: f = (1 - p) / (0.1 + 0.9 (1 - p)), high for long and then steep ("Demon: Decaying Momentum", eq. 3, with
      momentum 0.9)

    >>> alphas(1.0, 0.25, "exponential", 3).tolist()
    [1.0, 0.5, 0.25]
    """
    done = np.linspace(0.0, 1.0, num_steps)
    if decay == "linear":
        weight = 1 - done
    elif decay == "cosine":
        weight = (1 + np.cos(np.pi * done)) / 2
    elif decay == "demon":
        weight = (1 - done) / ((1 - _DEMON) + _DEMON * (1 - done))
    elif start == end:
        weight = np.ones(num_steps)
    else:
        ratio = np.clip(end / start if start else np.inf, _LEAST_RATIO, 1 / _LEAST_RATIO)
        weight = (ratio**done - ratio) / (1 - ratio)
    return end + (start - end) * weight


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
