"""How fast training goes and how high the loss is, measured without making the device wait."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class StepMeter:
    """Mean losses and speed since the last reading; losses stay on the device until they are read.

    Args:
        tasks: Names of the tasks; losses of different tasks cannot be compared, so each has its own.
        device: Where the losses are.
    """

    def __init__(self, tasks: Sequence[str], device: torch.device) -> None:
        self._tasks = list(tasks)
        self._device = device
        self.restart()

    def restart(self) -> None:
        """Forget what was added, and start the clock."""
        self._losses = torch.zeros(len(self._tasks), device=self._device)
        self._steps = [0] * len(self._tasks)
        self._examples, self._start_s = 0, time.monotonic()

    def add(self, task: int, loss: Tensor, num_examples: int) -> None:
        """Count one step on a task."""
        self._losses[task] += loss.detach()
        self._steps[task] += 1
        self._examples += num_examples

    def age_s(self) -> float:
        """Seconds since the start of the clock."""
        return time.monotonic() - self._start_s

    def read(self) -> dict[str, Any]:
        """Since the last reading, of at least one step; starts again.

        Returns:
            `loss`, the mean over all steps; `losses`, the mean over the steps of each task that had some; and
            `examples_per_s`.
        """
        sums = self._losses.tolist()
        trained = [index for index, steps in enumerate(self._steps) if steps]
        reading = {
            "loss": sum(sums) / sum(self._steps),
            "losses": {self._tasks[index]: sums[index] / self._steps[index] for index in trained},
            "examples_per_s": self._examples / max(self.age_s(), 1e-9),
        }
        self.restart()
        return reading
