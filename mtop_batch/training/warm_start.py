"""The single-task warm start and the ways in which prompts and poolers begin (paper, sections 4.3 and 6.1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import PreTrainedModel

from mtop_batch.errors import ConfigError
from mtop_batch.model.kinds.config import PromptAttention
from mtop_batch.model.kinds.mtop import MTOPModel
from mtop_batch.model.parts.prompts import token_prompts
from mtop_batch.training.loop import Emit, fit
from mtop_batch.training.optimizer import freeze_backbone
from mtop_batch.training.settings import TaskData, TrainSettings, Worker

PromptInit = Literal["random", "token", "single-task"]
PoolerInit = Literal["random", "single-task"]


def train_single_task(
    backbone: PreTrainedModel,
    data: TaskData,
    settings: TrainSettings,
    *,
    prompts_per_task: int,
    pad_token_id: int,
    prompt_attention: PromptAttention = "joint",
    prompt_group: str | None = None,
    pooler_rank: int = 0,
    max_tokens: int = 128,
    worker: Worker | None = None,
    emit: Emit | None = None,
) -> dict[str, Tensor]:
    """Train one task's prompts, pooler and head on the frozen backbone (section 4.3).

    Tasks know nothing of one another, so this runs for all of them side by side. The prompts start at random, and
    there are no shared prompts: those belong to no single task.

    Args:
        backbone: Left frozen (no parameter requires a gradient), otherwise as it was; moved to the worker's device.
        data: The task and its examples.
        settings: How to train.
        prompts_per_task: The paper's L_P.
        pad_token_id: Of the tokenizer.
        prompt_attention: That of the model which is to start from the result.
        prompt_group: The task's in that model: all tasks of a group begin with the same random prompts.
        pooler_rank: That of the model.
        max_tokens: Longest text, special tokens included.
        worker: This process; None for a single one on the CPU.
        emit: As for `fit`.

    Returns:
        What `MTOPModel.task_tensors` returns, on the CPU, as `initialise` takes it.

    Raises:
        ConfigError: The backbone cannot work, or training diverged.
        DataError: The task has no examples.
    """
    model = MTOPModel.from_backbone(
        backbone,
        [data.task],
        prompts_per_task=prompts_per_task,
        prompt_attention=prompt_attention,
        prompt_groups={} if prompt_group is None else {data.task.name: prompt_group},
        pooler_rank=pooler_rank,
        max_tokens=max_tokens,
        seed=settings.seed,
    )
    freeze_backbone(model)
    fit(model, [data], settings, pad_token_id=pad_token_id, worker=worker, emit=emit)
    return {name: tensor.cpu() for name, tensor in model.task_tensors(data.task.name).items()}


def initialise(
    model: MTOPModel,
    *,
    prompt_init: PromptInit,
    pooler_init: PoolerInit,
    warm: Mapping[str, Mapping[str, Tensor]] | None = None,
    token_counts: npt.NDArray[np.int64] | None = None,
    special_ids: tuple[int, ...] = (),
    seed: int = 0,
) -> None:
    """Begin the prompts and the poolers of every task in the chosen ways, each on its own (section 6.1).

    Heads go with the poolers: the paper initialises "additional task-specific parameters (prompts and conditional
    pooler layers)" and does not say what becomes of the heads; a head fits the pooler that it was trained with and
    no other. "random" leaves what `MTOPModel.from_backbone` drew. Shared prompts are random always. The prompts of a
    prompt group begin as the mean of what its tasks learned alone, from the same random start.

    Args:
        model: Its tasks' parameters are changed in place.
        prompt_init: "random", "token" (embeddings of frequent tokens) or "single-task".
        pooler_init: "random" or "single-task".
        warm: Of each task, what `train_single_task` returned; needed for "single-task".
        token_counts: (V,) how often each token occurs in the training data; needed for "token".
        special_ids: Tokens that never become prompts.
        seed: Of the token draws.

    Raises:
        ConfigError: What the chosen initialisation needs is missing, for all or for some tasks.
        DataError: The training data has no tokens to begin prompts from.
        TaskError: A warm start has other shapes than the model: another number of prompts, another backbone.
    """
    warm = warm or {}
    if "single-task" in (prompt_init, pooler_init):
        _check_warm(model, warm)
    if prompt_init == "token" and token_counts is None:
        raise ConfigError('model.prompt_init = "token" needs the token counts of the training data; pass token_counts')
    generator = torch.Generator().manual_seed(seed)
    for name in model.task_names:
        tensors: dict[str, Tensor] = {}
        sharing = model.tasks_sharing(name)
        if name == sharing[0] and prompt_init == "single-task":
            tensors["prompts"] = torch.stack([warm[task]["prompts"] for task in sharing]).mean(dim=0)
        elif name == sharing[0] and token_counts is not None and prompt_init == "token":
            tensors["prompts"] = _token_prompts(model, name, token_counts, special_ids, generator)
        if pooler_init == "single-task":
            tensors |= {key: value for key, value in warm[name].items() if key != "prompts"}
        model.load_task(name, tensors)


def _token_prompts(
    model: MTOPModel,
    name: str,
    token_counts: npt.NDArray[np.int64],
    special_ids: tuple[int, ...],
    generator: torch.Generator,
) -> Tensor:
    num_prompts = len(model.prompts(name))
    counts = torch.from_numpy(token_counts)
    return token_prompts(model.word_embeddings.weight, counts, num_prompts, generator, special_ids=special_ids)


def _check_warm(model: MTOPModel, warm: Mapping[str, Mapping[str, Tensor]]) -> None:
    missing = [name for name in model.task_names if name not in warm]
    if missing:
        raise ConfigError(
            f"the single-task initialisation lacks a warm start of tasks {', '.join(missing)}; train them with "
            'train_single_task first, or set model.prompt_init and model.pooler_init to "random"'
        )
