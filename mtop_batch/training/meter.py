"""How fast training goes and how high the loss is, measured without making the device wait."""

from __future__ import annotations

import time

import torch
from torch import Tensor


class StepMeter:
    """Mean loss and speed since the last reading; losses stay on the device until they are read.

    Args:
        device: Where the losses are.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.restart()

    def restart(self) -> None:
        """Forget what was added, and start the clock."""
        self._loss = torch.zeros((), device=self._device)
        self._steps, self._examples, self._start_s = 0, 0, time.monotonic()

    def add(self, loss: Tensor, num_examples: int) -> None:
        """Count one step."""
        self._loss += loss.detach()
        self._steps += 1
        self._examples += num_examples

    def age_s(self) -> float:
        """Seconds since the start of the clock."""
        return time.monotonic() - self._start_s

    def read(self) -> dict[str, float]:
        """`loss` (mean over steps) and `examples_per_s` since the last reading, of at least one step; starts again."""
        reading = {
            "loss": self._loss.item() / self._steps,
            "examples_per_s": self._examples / max(self.age_s(), 1e-9),
        }
        self.restart()
        return reading
