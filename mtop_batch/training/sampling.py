"""Which task each step trains on and which of its examples: pure functions of sizes and a seed.

Nothing is remembered between steps, so a run that resumes at step k draws what an undisturbed one would have,
however many workers share a batch. Every batch holds examples of one task and is full.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
import numpy.typing as npt

from mtop_batch.config.train import AlphaDecay
from mtop_batch.training.schedules import alphas

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]

_STEPS_AT_ONCE = 1000


def num_steps(total_examples: int, batch_size: int, epochs: float) -> int:
    """Steps of a run: `ceil(epochs * total_examples / batch_size)`, one epoch being as many examples as all tasks have.

    >>> num_steps(total_examples=100, batch_size=16, epochs=2)
    13
    """
    # 1.1 * 160 is 176.00000000000003: without the slack, noise of the float would cost a step.
    return max(1, math.ceil(epochs * total_examples / batch_size - 1e-9))


def evaluation_steps(total_examples: int, batch_size: int, epochs: float, every: float = 1.0) -> list[int]:
    """The numbers of finished steps after which to evaluate: every so many epochs, and after the last step.

    >>> evaluation_steps(total_examples=100, batch_size=16, epochs=2.5)
    [7, 13, 16]
    >>> evaluation_steps(total_examples=100, batch_size=16, epochs=2.5, every=2)
    [13, 16]
    """
    count = math.floor(epochs / every + 1e-9)
    ends = [num_steps(total_examples, batch_size, number * every) for number in range(1, count + 1)]
    return sorted({*ends, num_steps(total_examples, batch_size, epochs)})


def task_rates(sizes: Sequence[int], alpha: float) -> FloatArray:
    """The rate at which each task is drawn: N_i^alpha / sum_j N_j^alpha.

    MTOP draws in proportion to size (alpha = 1, section 6.1); the general form is that of "Large-scale multi-task
    learning" (section 4.2), where alpha = 0 is uniform.

    Args:
        sizes: N_i, the number of training examples of each task (N,); all positive.
        alpha: In [0, 1].

    Returns:
        Rates (N,), float64, summing to 1.

    >>> task_rates([100, 300], alpha=1.0).tolist()
    [0.25, 0.75]
    """
    # Relative to the largest, so that no size overflows.
    weights = (np.asarray(sizes, dtype=np.float64) / max(sizes)) ** alpha
    return weights / weights.sum()


def draw_tasks(rates: FloatArray, num_steps: int, seed: int) -> IntArray:
    """One task per step, drawn independently at the given rates (section 6.1).

    Args:
        rates: (N,), summing to 1.
        num_steps: Steps of the whole run, also when a part of it is already done.
        seed: Any non-negative integer.

    Returns:
        Task indices (num_steps,).
    """
    return np.random.default_rng(seed).choice(len(rates), size=num_steps, p=rates)


def draw_tasks_by_size(sizes: Sequence[int], exponents: FloatArray, seed: int) -> IntArray:
    """One task per step at the rates of that step's alpha (large-scale multi-task learning, section 4.3).

    Where alpha stays the same, these are the tasks of `draw_tasks`.

    Args:
        sizes: As for `task_rates`.
        exponents: Alpha at every step of the whole run (num_steps,).
        seed: Any non-negative integer.

    Returns:
        Task indices (num_steps,).
    """
    places = np.random.default_rng(seed).random(len(exponents))
    tasks = np.empty(len(exponents), dtype=np.int64)
    for start in range(0, len(exponents), _STEPS_AT_ONCE):
        some = slice(start, start + _STEPS_AT_ONCE)
        weights = (np.asarray(sizes, dtype=np.float64) / max(sizes)) ** exponents[some, None]
        ends = np.cumsum(weights / weights.sum(axis=1, keepdims=True), axis=1)
        tasks[some] = (places[some, None] >= ends / ends[:, -1:]).sum(axis=1)
    return tasks


def with_every_task(tasks: IntArray, num_tasks: int, epoch_ends: Sequence[int], seed: int) -> IntArray:
    """The same steps, but with one of every task in every epoch, as far as an epoch has so many steps.

    A task of five examples beside thousands would often be drawn in no epoch at all. A task that was not drawn takes a
    step of the task with the most. Where an epoch has fewer steps than there are tasks, those that had fewer before
    take the steps of those that had more.

    Args:
        tasks: The task of each step, as drawn.
        num_tasks: N
        epoch_ends: The number of finished steps at the end of each epoch.
        seed: Of the places.

    Returns:
        Task indices, as many.

    >>> with_every_task(np.array([0, 0, 0, 2, 0, 0]), 3, epoch_ends=[4, 6], seed=0).tolist()
    [0, 1, 0, 2, 0, 1]
    """
    tasks = tasks.copy()
    so_far = np.zeros(num_tasks, dtype=np.int64)
    start = 0
    for epoch, end in enumerate(epoch_ends):
        steps = tasks[start:end]
        counts = np.bincount(steps, minlength=num_tasks)
        # The streams 1 to N are those of the tasks' examples.
        rng = np.random.default_rng((seed, num_tasks + 1, epoch))
        missing = np.flatnonzero(counts == 0)
        for task in missing[np.argsort(so_far[missing], kind="stable")]:
            giver = np.lexsort((so_far, counts))[-1]
            if counts[giver] < 2 and so_far[giver] <= so_far[task]:
                break
            steps[rng.choice(np.flatnonzero(steps == giver))] = task
            counts[giver] -= 1
            counts[task] = 1
        so_far += counts
        start = end
    return tasks


def occurrences(tasks: IntArray) -> IntArray:
    """For each step, how many earlier steps drew the same task.

    >>> occurrences(np.array([2, 0, 2, 2, 0])).tolist()
    [0, 0, 1, 2, 1]
    """
    order = np.argsort(tasks, kind="stable")
    counts = np.bincount(tasks)
    first_places = np.repeat(np.cumsum(counts) - counts, counts)
    earlier = np.empty_like(order)
    earlier[order] = np.arange(len(tasks)) - first_places
    return earlier


def example_rows(size: int, start: int, count: int, seed: int, stream: int = 0) -> IntArray:
    """Places `start` to `start + count` of an endless sequence of shuffled passes over a task's examples.

    Pass k is a permutation of `range(size)` seeded by (seed, stream, k): every example is seen once before any is seen
    twice. A batch may reach into the next pass; if it is larger than the task, it holds examples more than once.

    Args:
        size: The number of examples of the task, at least 1.
        start: Place in the sequence, at least 0.
        count: How many rows.
        seed: Any non-negative integer.
        stream: Sequences of one seed are independent for different streams.

    Returns:
        Row numbers (count,), each in [0, size).
    """
    first_pass, offset = divmod(start, size)
    num_passes = -(-(offset + count) // size)
    passes = [_shuffled(size, seed, stream, first_pass + number) for number in range(num_passes)]
    return np.concatenate([np.empty(0, np.int64), *passes])[offset : offset + count]


@lru_cache(maxsize=1024)
def _shuffled(size: int, seed: int, stream: int, number: int) -> IntArray:
    """Pass `number`; kept, because shuffling a large task again at every step would cost more than the step."""
    rows = np.random.default_rng((seed, stream, number)).permutation(size)
    rows.flags.writeable = False
    return rows


class Plan(Protocol):
    """Which task every step of a run trains on, and which of its rows; and when the run is evaluated."""

    def __len__(self) -> int: ...

    def batch(self, step: int, scores: Sequence[float] = ()) -> tuple[int, IntArray]:
        """The step's task and its rows, given the means of the evaluations so far."""

    def evaluation_steps(self) -> Collection[int]:
        """The numbers of finished steps after which to evaluate."""

    def left_out(self) -> list[int]:
        """The tasks that no step trains, as far as that is known before the run."""


@dataclass(frozen=True)
class BatchPlan:
    """The task and the rows of every step of a run, drawn before it begins.

    Args:
        sizes: Training examples of each task (N,).
        batch_size: Rows per step.
        seed: Of the order of tasks and of examples.
        tasks: The task of each step (num_steps,).
        occurrences: How often each step's task was drawn before (num_steps,).
        evaluations: The numbers of finished steps after which to evaluate.
    """

    sizes: Sequence[int]
    batch_size: int
    seed: int
    tasks: IntArray
    occurrences: IntArray
    evaluations: Sequence[int]

    @classmethod
    def draw(
        cls,
        sizes: Sequence[int],
        batch_size: int,
        epochs: float,
        alpha: float,
        seed: int,
        rates: Sequence[float] | None = None,
        *,
        alpha_end: float | None = None,
        alpha_decay: AlphaDecay = "exponential",
        consecutive_steps: int = 1,
        eval_every: float = 1.0,
    ) -> BatchPlan:
        """The plan of a run; the same arguments give the same plan.

        Args:
            sizes: Training examples of each task (N,).
            batch_size: Rows per step.
            epochs: One epoch is as many examples as all tasks have together.
            alpha: Exponent of the sampling rates (`task_rates`).
            seed: Of the order of tasks and of examples.
            rates: (N,) Of any sum; they stand for those by size.
            alpha_end: The exponent at the last step, to which it goes by `alpha_decay`; None for `alpha` all along.
            alpha_decay: Which way it goes (`schedules.alphas`).
            consecutive_steps: How many steps in a row take the task that was drawn.
            eval_every: Epochs from one evaluation to the next.
        """
        steps = num_steps(sum(sizes), batch_size, epochs)
        draws = math.ceil(steps / consecutive_steps)
        if rates is None and alpha_end is not None:
            drawn = draw_tasks_by_size(sizes, alphas(alpha, alpha_end, alpha_decay, draws), seed)
        else:
            shares = task_rates(sizes, alpha) if rates is None else np.asarray(rates) / sum(rates)
            drawn = draw_tasks(shares, draws, seed)
        epoch_ends = evaluation_steps(sum(sizes), batch_size, epochs)
        tasks = with_every_task(np.repeat(drawn, consecutive_steps)[:steps], len(sizes), epoch_ends, seed)
        evaluations = evaluation_steps(sum(sizes), batch_size, epochs, eval_every)
        return cls(sizes, batch_size, seed, tasks, occurrences(tasks), evaluations)

    def evaluation_steps(self) -> Sequence[int]:
        """Every so many epochs, and the last step."""
        return self.evaluations

    def left_out(self) -> list[int]:
        """The tasks that no step trains: there are fewer steps than tasks."""
        return np.flatnonzero(np.bincount(self.tasks, minlength=len(self.sizes)) == 0).tolist()

    def __len__(self) -> int:
        return len(self.tasks)

    def batch(self, step: int, scores: Sequence[float] = ()) -> tuple[int, IntArray]:
        """The step's task and the rows (batch_size,) of that task's examples, whatever the scores are."""
        del scores
        task, number = int(self.tasks[step]), int(self.occurrences[step])
        # Numpy takes the seed (s, 0, 0) for s, which draws the tasks: stream 0 is taken.
        stream = task + 1
        return task, example_rows(self.sizes[task], number * self.batch_size, self.batch_size, self.seed, stream)
