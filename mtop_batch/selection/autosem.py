"""AUTOSEM (Guo, Pasunuru and Bansal, 2019): a bandit finds the tasks, a Gaussian process their mixing ratio.

Stage 1 is one training in which a bandit chooses the task of every round of steps. Each task has a Beta distribution
of being useful. After a round the primary task is evaluated; its task is rewarded if the score is at least that of the
round before. Stage 2 trains the useful tasks at several ratios; a Gaussian process over these says which to try next.

The paper leaves open which utilities are enough: here more than the 1/2 that a task begins with.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import norm
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import Matern, WhiteKernel

from mtop_batch.training.sampling import IntArray, example_rows

FORGETTING = 0.3
USEFUL = 0.5
MOST_ROUNDS = 50
RATIO_TRIALS = 10
FIRST_RATIOS = 4
MOST_OFTEN = 9
_CANDIDATES = 512

FloatArray = npt.NDArray[np.float64]
Ratio = tuple[int, ...]


@dataclass(frozen=True)
class Beliefs:
    """Beta distributions over how likely a round of each of N tasks helps the primary one.

    Args:
        alpha: (N,)
        beta: (N,)
    """

    alpha: FloatArray
    beta: FloatArray

    @classmethod
    def at_first(cls, num_tasks: int) -> Beliefs:
        """Beta(1, 1) for each."""
        return cls(np.ones(num_tasks), np.ones(num_tasks))

    def after(self, task: int, helped: bool) -> Beliefs:
        """What is believed after a round of a task: all move back to Beta(1, 1) by `FORGETTING`, then it is counted."""
        alpha, beta = ((1 - FORGETTING) * values + FORGETTING for values in (self.alpha, self.beta))
        (alpha if helped else beta)[task] += 1
        return Beliefs(alpha, beta)

    def draw(self, rng: np.random.Generator) -> int:
        """The task of the next round, by Thompson sampling."""
        return int(rng.beta(self.alpha, self.beta).argmax())

    @property
    def utilities(self) -> FloatArray:
        """(N,) The means."""
        return self.alpha / (self.alpha + self.beta)


def play(scores: Sequence[float], num_tasks: int, seed: int) -> tuple[list[int], Beliefs]:
    """The tasks of all rounds so far and of the next, and what is believed then.

    Args:
        scores: The primary task's score after each round that is over.
        num_tasks: N; the primary task is the first, and has the first round.
        seed: Of the draws: the same scores always give the same tasks.
    """
    tasks, beliefs = [0], Beliefs.at_first(num_tasks)
    before = -math.inf
    for number, score in enumerate(scores):
        beliefs = beliefs.after(tasks[-1], helped=score >= before)
        before = score
        tasks.append(beliefs.draw(np.random.default_rng((seed, number))))
    return tasks, beliefs


class BanditPlan:
    """The plan of stage 1: the task of a step follows from the scores so far.

    Args:
        sizes: Training examples of each task (N,); the primary task is the first.
        batch_size: Rows per step.
        num_steps: Of the whole run.
        seed: Of all draws.
    """

    def __init__(self, sizes: Sequence[int], batch_size: int, num_steps: int, seed: int) -> None:
        self._sizes, self._batch_size, self._num_steps, self._seed = sizes, batch_size, num_steps, seed
        self._round = math.ceil(num_steps / MOST_ROUNDS)

    def __len__(self) -> int:
        return self._num_steps

    def batch(self, step: int, scores: Sequence[float] = ()) -> tuple[int, IntArray]:
        """The task that the bandit has for the step's round, and the next of its rows."""
        number, within = divmod(step, self._round)
        tasks, _ = play(scores[:number], len(self._sizes), self._seed)
        task = tasks[number]
        start = (tasks[:number].count(task) * self._round + within) * self._batch_size
        return task, example_rows(self._sizes[task], start, self._batch_size, self._seed, stream=task + 1)

    def evaluation_steps(self) -> list[int]:
        """The end of every round."""
        return sorted({*range(self._round, self._num_steps, self._round), self._num_steps})

    def left_out(self) -> list[int]:
        """None: nobody knows before."""
        return []


def first_ratios(num_tasks: int, seed: int, count: int = FIRST_RATIOS) -> list[Ratio]:
    """The first ratios to try: all tasks alike, and some at random."""
    rng = np.random.default_rng(seed)
    found: list[Ratio] = [(1,) * num_tasks]
    while len(found) < count:
        found.append(_random_ratio(num_tasks, rng))
    return list(dict.fromkeys(found))


def next_ratio(tried: Sequence[Ratio], scores: Sequence[float], seed: int) -> Ratio:
    """The ratio to try next: that of the highest expected improvement by a Gaussian process over what was tried.

    Args:
        tried: Ratios, the primary task first.
        scores: The primary task's score at each.
        seed: Of the candidates.
    """
    rng = np.random.default_rng((seed, len(tried)))
    candidates = [_random_ratio(len(tried[0]), rng) for _ in range(_CANDIDATES)]
    candidates = [ratio for ratio in dict.fromkeys(candidates) if ratio not in tried] or [tried[0]]
    known = np.nan_to_num(np.asarray(scores, dtype=np.float64), nan=0.0)
    process = GaussianProcessRegressor(
        # The bounds are fixed: so few points say nothing of them, and fitting would warn.
        Matern(length_scale=0.5, length_scale_bounds="fixed", nu=2.5) + WhiteKernel(0.05, "fixed"),
        normalize_y=True,
    )
    process.fit(_shares(tried), known)
    mean, std = process.predict(_shares(candidates), return_std=True)
    gain = mean - known.max()
    improvement = gain * norm.cdf(gain / std) + std * norm.pdf(gain / std)
    return candidates[int(improvement.argmax())]


def _random_ratio(num_tasks: int, rng: np.random.Generator) -> Ratio:
    """Numbers from 0 to 9, and from 1 for the primary task; what is the same but for a factor is the same."""
    ratio = [int(rng.integers(1, MOST_OFTEN + 1)), *rng.integers(0, MOST_OFTEN + 1, num_tasks - 1).tolist()]
    divisor = math.gcd(*ratio)
    return tuple(number // divisor for number in ratio)


def _shares(ratios: Sequence[Ratio]) -> FloatArray:
    values = np.asarray(ratios, dtype=np.float64)
    return values / values.sum(axis=1, keepdims=True)
