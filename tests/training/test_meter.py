"""What a meter reads: the losses of each task, and of all."""

from __future__ import annotations

import pytest
import torch

from mtop_batch.training.meter import StepMeter


def test_every_task_has_the_mean_of_its_own_losses() -> None:
    meter = StepMeter(["sport", "price", "never"], torch.device("cpu"))
    for task, loss in ((0, 0.5), (1, 4.0), (0, 0.25)):
        meter.add(task, torch.tensor(loss), 8)
    reading = meter.read()
    assert reading["losses"] == {"sport": 0.375, "price": 4.0}
    assert reading["loss"] == pytest.approx(4.75 / 3)
    meter.add(1, torch.tensor(2.0), 8)
    assert meter.read()["losses"] == {"price": 2.0}
