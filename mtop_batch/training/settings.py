"""What a training run is given: its settings, its examples, and the process it runs in."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mtop_batch.config.train import AlphaDecay
from mtop_batch.data.labelled_tokens import LabelledTokens
from mtop_batch.errors import ConfigError, DataError
from mtop_batch.precision import Precision, PrecisionChoice, resolve_precision
from mtop_batch.tasks import LabelBy, Task
from mtop_batch.training.schedules import RateSchedule

ClassWeights = npt.NDArray[np.float32]
Event = dict[str, Any]
EventSink = Callable[[Event], None]


def ignore_event(event: Event) -> None:
    """The event sink of those who do not want events."""
    del event


@dataclass(frozen=True)
class TrainSettings:
    """How to train; the defaults are the paper's (section 6.1) where it says.

    Args:
        epochs: One epoch is as many examples as all tasks have together.
        batch_size: Examples per step over all workers together; all of one task.
        learning_rate: Peak rate of the backbone.
        head_learning_rate: Peak rate of prompts, poolers and heads; None for the same as the backbone.
        weight_decay: Decoupled decay; biases, layer norms and prompts are left out of it.
        warmup_fraction: Share of the steps in which the rate rises linearly.
        schedule: How the rate goes on then.
        max_grad_norm: Gradients are clipped to this norm; 0 turns clipping off.
        alpha: Task i is drawn at a rate proportional to (its number of examples) ** alpha.
        alpha_end: What alpha becomes over the run; None for no change.
        alpha_decay: Which way it goes there.
        consecutive_steps: How many steps in a row take the task that was drawn.
        seed: Of the order of tasks and examples and of dropout. The model's own draws are made before.
        context_dropout: Share of the context's keys and values that is hidden from prompts in each step, where the
            context does not train; the rest is scaled up. A context that trains has the backbone's own dropout.
        evaluate: Evaluate now and then, and end with the best weights; otherwise end with the last.
        eval_every: Epochs from one evaluation to the next.
        patience: The run ends after so many evaluations in a row without a higher mean metric; None for none.
        checkpoint_steps: A checkpoint is taken every so many steps, besides those at evaluations and at the end.
    """

    epochs: float = 5.0
    batch_size: int = 16
    learning_rate: float = 1e-5
    head_learning_rate: float | None = None
    weight_decay: float = 0.01
    warmup_fraction: float = 0.1
    schedule: RateSchedule = field(default_factory=RateSchedule)
    max_grad_norm: float = 1.0
    alpha: float = 1.0
    alpha_end: float | None = None
    alpha_decay: AlphaDecay = "exponential"
    consecutive_steps: int = 1
    seed: int = 0
    context_dropout: float = 0.0
    evaluate: bool = True
    eval_every: float = 1.0
    patience: int | None = None
    checkpoint_steps: int = 1000

    def check_workers(self, world_size: int) -> None:
        """Refuse batches that leave a worker without an example.

        Raises:
            ConfigError: There are more workers than examples in a batch.
        """
        if self.batch_size < world_size:
            raise ConfigError(
                f"train.batch_size = {self.batch_size} is less than train.num_workers = {world_size}, and every worker "
                f"needs an example of every batch; use at least {world_size}, or at most {self.batch_size} workers"
            )


@dataclass(frozen=True)
class Worker:
    """One of the processes that train together; the default is a single one on the CPU.

    Where `world_size` is more than 1, the process group of `torch.distributed` must be set up.

    Args:
        rank: Of this process.
        world_size: How many there are.
        device: Where the model runs.
        precision: "bf16" runs the model under autocast; the weights stay fp32.
        event_sink: Takes the events of what this process does.
    """

    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    precision: Precision = "fp32"
    event_sink: EventSink = ignore_event

    def autocast(self) -> AbstractContextManager[object]:
        """The context in which the model runs."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16")

    def to_device(self, tensor: Tensor) -> Tensor:
        """The tensor on the device, without waiting for the work queued there as a plain copy would."""
        return tensor.to(self.device, non_blocking=True)


@dataclass(frozen=True)
class TaskData:
    """A task and its examples.

    Args:
        task: Its definition.
        train: Examples to learn from.
        eval: Examples to evaluate on; None where nothing is evaluated.
        label_by: How its label column was read (`data.label_values`).
        class_weights: (C,) What an example of each label counts in the loss (`training.class_weights`); None for 1
            each.
        rate: How often steps draw the task, beside the rates of the others; None to go by its size.
    """

    task: Task
    train: LabelledTokens
    eval: LabelledTokens | None = None
    label_by: LabelBy | None = None
    class_weights: ClassWeights | None = None
    rate: float | None = None

    @property
    def without_vectors(self) -> TaskData:
        """The same texts with nothing beside them."""
        return replace(self, train=self.train.without_vectors, eval=self.eval and self.eval.without_vectors)

    def evaluation_examples(self) -> LabelledTokens:
        """What the task is evaluated on.

        Raises:
            DataError: There are none.
        """
        if self.eval is None or not len(self.eval):
            raise DataError(
                f"task {self.task.name!r} has no evaluation examples; give it some or train with evaluate=False"
            )
        return self.eval


def single_worker(precision: PrecisionChoice, event_sink: EventSink = ignore_event) -> Worker:
    """This process alone, on a GPU if there is one."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return Worker(device=device, precision=resolve_precision(precision, device, autocast=True), event_sink=event_sink)
