"""The ways in which prompts and poolers begin (paper, sections 4.3 and 6.1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mtop_batch.errors import ConfigError
from mtop_batch.lines import listed
from mtop_batch.model.kinds.mtop import MTOPModel
from mtop_batch.model.kinds.p_tuning import PromptedModel
from mtop_batch.model.parts.heads import identity_pooler
from mtop_batch.model.parts.prompts import common_tokens, token_prompts

PromptInit = Literal["random", "token", "cls", "single-task"]
PoolerInit = Literal["random", "identity", "single-task"]


def initialise(
    model: MTOPModel,
    *,
    prompt_init: PromptInit,
    pooler_init: PoolerInit,
    warm: Mapping[str, Mapping[str, Tensor]] | None = None,
    token_counts: npt.NDArray[np.int64] | None = None,
    special_ids: tuple[int, ...] = (),
    cls_id: int | None = None,
    seed: int = 0,
) -> None:
    """Begin the prompts and the poolers of every task in the chosen ways, each on its own (section 6.1).

    Heads go with the poolers: the paper initialises "additional task-specific parameters (prompts and conditional
    pooler layers)" and does not say what becomes of the heads; a head fits the pooler that it was trained with and
    no other. "random" leaves what `MTOPModel.from_backbone` drew. Shared prompts are random always. The prompts of a
    prompt group begin as the mean of what its tasks learned alone, from the same random start. Tasks without prompts
    begin at random, but for their poolers where they have any.

    "cls" and "identity" are not the paper's: a prompt that begins as [CLS] reads of the text about what the pretrained
    encoder has learned to read there, and a pooler that begins as the identity hands it on, where a random one hides
    it. In encoders that add embeddings of positions, the first position makes a random prompt read like [CLS] too.

    Args:
        model: Its tasks' parameters are changed in place.
        prompt_init: "random", "token" (embeddings of frequent tokens), "cls" (that of the token of that name, and a
            little at random, so that prompts differ) or "single-task".
        pooler_init: "random", "identity" (with a head at random) or "single-task".
        warm: The tensors of each task that `train_single_task` learned; needed for "single-task".
        token_counts: (V,) how often each token occurs in the training data; needed for "token".
        special_ids: Tokens that never become prompts but by "cls".
        cls_id: Of the tokenizer's [CLS]; None where it has none, and "cls" is as "random".
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
    cls = None
    if prompt_init == "cls" and cls_id is not None:
        cls = model.word_embeddings.weight.detach()[cls_id]
    if pooler_init == "identity":
        for name in model.task_names:
            model.load_task(name, identity_pooler(model.task_tensors(name)))
    for name in filter(model.reads_prompts, model.task_names):
        tensors: dict[str, Tensor] = {}
        sharing = model.tasks_sharing(name)
        if name == sharing[0] and prompt_init == "single-task":
            tensors["prompts"] = torch.stack([warm[task]["prompts"] for task in sharing]).mean(dim=0)
        elif name == sharing[0] and token_counts is not None and prompt_init == "token":
            tensors["prompts"] = _token_prompts(model, name, token_counts, special_ids, generator)
        elif name == sharing[0] and cls is not None:
            tensors["prompts"] = model.prompts(name).detach() + cls
        if pooler_init == "single-task":
            tensors |= {key: value for key, value in warm[name].items() if key != "prompts"}
        model.load_task(name, tensors)


def start_from_tokens(
    model: PromptedModel, token_counts: npt.NDArray[np.int64], special_ids: tuple[int, ...] = (), seed: int = 0
) -> None:
    """Begin the prompts of every task as frequent tokens of the data.

    Args:
        model: Its prompts are changed in place.
        token_counts: (V,) how often each token occurs in the training data.
        special_ids: Tokens that never become prompts.
        seed: Of the draws.

    Raises:
        DataError: The training data has no tokens to begin prompts from.
    """
    generator = torch.Generator().manual_seed(seed)
    counts = torch.from_numpy(token_counts)
    for name in model.task_names:
        num_prompts = len(model.prompts(name))
        model.start_from_tokens(name, common_tokens(counts, num_prompts, generator, special_ids=special_ids))


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
    missing = [name for name in filter(model.reads_prompts, model.task_names) if name not in warm]
    if missing:
        raise ConfigError(
            f"the single-task initialisation lacks a warm start of tasks {listed(missing)}; train them with "
            'train_single_task first, or set model.prompt_init and model.pooler_init to "random"'
        )
