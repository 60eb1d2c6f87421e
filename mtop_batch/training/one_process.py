"""A whole training in one process: what each task learns alone, then all tasks together or each one's own model.

With `unfinished` it leaves what it has done, and the next call goes on from there. What runs it, and how many others
run beside it, is the caller's business.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mtop_batch.config.sections import Config
from mtop_batch.model.kinds.base import MultiTaskModel
from mtop_batch.model.kinds.mtop import MTOPModel
from mtop_batch.model.kinds.single_task import SingleTaskModel
from mtop_batch.training.checkpoint import Evaluation, TaskMetrics
from mtop_batch.training.loop import fit
from mtop_batch.training.sampling import Plan
from mtop_batch.training.settings import TaskData, Worker
from mtop_batch.training.single_task import train_single_task
from mtop_batch.training.soft_labels import SoftLabels
from mtop_batch.training.start import all_tasks_settings, first_model, warm_start_settings
from mtop_batch.training.unfinished import Unfinished


@dataclass(frozen=True)
class Encoder:
    """The pretrained encoder of a run, loaded; it is copied, not changed."""

    backbone: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


@dataclass(frozen=True)
class Trained:
    """What a training came to: the metrics of each task at the chosen weights, and the way there."""

    dev: dict[str, TaskMetrics]
    history: list[dict[str, Any]]
    best_step: int
    num_steps: int


def begin(
    config: Config,
    data: Sequence[TaskData],
    encoder: Encoder,
    worker: Worker,
    unfinished: Unfinished,
    on_learned: Callable[[], None] = lambda: None,
) -> MultiTaskModel:
    """The model, with what each task learned alone where the configuration says so.

    Args:
        config: Of the training, but that its `[unlabelled]` is the caller's.
        data: Of every task, in the order of the configuration.
        encoder: That of the configuration.
        worker: This process.
        unfinished: Keeps what tasks learned alone.
        on_learned: Called when all have.

    Raises:
        MtopError: A task cannot be learned alone, or the settings do not fit.
    """

    def learn_alone(start: MTOPModel, new_task: Mapping[str, Any]) -> dict[str, dict[str, Tensor]]:
        learned = {}
        for item in (item for item in data if item.task.reads_prompts):
            name = item.task.name
            tensors = unfinished.task(name)
            if tensors is None:
                alone = copy.deepcopy(start)
                family_of = {key: family for key, family in config.family_of().items() if key == name}
                alone.add_tasks([item.task], family_of=family_of, **new_task)
                settings = warm_start_settings(config.train)
                tensors = train_single_task(alone, item.without_vectors, settings, worker=worker).tensors
                unfinished.keep_task(name, tensors)
            learned[name] = tensors
        on_learned()
        return learned

    return first_model(config, copy.deepcopy(encoder.backbone), encoder.tokenizer, data, learn_alone)


def train_whole(
    model: MultiTaskModel,
    config: Config,
    data: Sequence[TaskData],
    worker: Worker,
    unfinished: Unfinished,
    *,
    soft: SoftLabels | None = None,
    plan: Plan | None = None,
    training: str = "all",
    evaluates: bool = True,
) -> Trained:
    """Train all tasks together, or each one's own model; the model ends with the chosen weights.

    Args:
        model: From `begin`.
        config: Of the training.
        data: Of every task.
        worker: This process.
        unfinished: Keeps the last checkpoint.
        soft: As for `fit`, like the next.
        plan: See there.
        training: Names the checkpoint.
        evaluates: Whether evaluations choose the weights; else they are the last ones.

    Raises:
        MtopError: As `fit`.
    """
    settings = all_tasks_settings(config, evaluate=evaluates)

    def trained(part: MultiTaskModel, items: Sequence[TaskData], training: str) -> Trained:
        with unfinished.checkpoints(training) as (checkpoint, save):
            result = fit(part, items, settings, soft=soft, plan=plan, worker=worker, checkpoint=checkpoint, save=save)
        return Trained(result.best_metrics, _history(result.history, items), result.best_step, result.num_steps)

    if not isinstance(model, SingleTaskModel):
        return trained(model, data, training)
    parts = [trained(model.model_of(item.task.name), [item], f"own-{item.task.name}") for item in data]
    return Trained(
        {name: metrics for part in parts for name, metrics in part.dev.items()},
        [entry for part in parts for entry in part.history],
        sum(part.best_step for part in parts),
        sum(part.num_steps for part in parts),
    )


def _history(history: Sequence[Evaluation], data: Sequence[TaskData]) -> list[dict[str, Any]]:
    own = {item.task.name: str(item.task.metric) for item in data}
    return [
        {
            "step": entry.step,
            "epoch": round(entry.epoch, 3),
            "mean": round(entry.mean, 5),
            "tasks": {name: round(found[own[name]], 5) for name, found in entry.metrics.items()},
        }
        for entry in history
    ]
