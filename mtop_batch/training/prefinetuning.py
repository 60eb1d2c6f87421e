"""Pre-finetuning: an encoder learns from source tasks what later tasks begin with (Zhu et al., 2025).

Tasks on texts teach it by supervised contrastive learning, and token tasks by the cross-entropy of their tags. Texts
without labels (`mtop_batch.training.sources`) are tasks too: of two texts that belong together each is the label of the
other, and what a teacher says of words stands in place of tags. Each step takes one task: with families it moves the
shared encoder and the LoRA of the task's own family ("task-primary"), and without any the encoder alone. Heads are
thrown away.

Shapes: B texts, T text positions, D hidden width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from mtop_batch.config.model import MTOPModelConfig
from mtop_batch.config.sections import Config
from mtop_batch.errors import ConfigError
from mtop_batch.model.encoder.encode import encode
from mtop_batch.model.encoder.inputs import no_prompts
from mtop_batch.model.kinds.base import TaskOutput
from mtop_batch.model.kinds.mtop import MTOPModel
from mtop_batch.model.parts.losses import contrastive_loss
from mtop_batch.model.prefinetuned import load_prefinetuned, read_families
from mtop_batch.tasks import Task
from mtop_batch.training.settings import TaskData
from mtop_batch.training.sources import TokenTeacher, distilled_loss
from mtop_batch.training.start import freeze


class PrefinetuningModel(MTOPModel):
    """An encoder with families of source tasks; only its losses are of use."""

    teachers: Mapping[str, TokenTeacher] = MappingProxyType({})
    """Of tasks that have one."""

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        *,
        task: str | None = None,
        labels: Tensor | None = None,
        **others: Any,
    ) -> TaskOutput:
        """The loss of a batch of one task; arguments as for `MultiTaskModel.forward`."""
        if task is None or labels is None or input_ids is None:
            return super().forward(input_ids, attention_mask, token_type_ids, task=task, labels=labels, **others)
        if task in self.teachers:
            said = self.teachers[task].logits(input_ids, attention_mask, token_type_ids)
            logits = self.task_logits(task, self.text(input_ids, attention_mask, token_type_ids))
            return TaskOutput(loss=distilled_loss(logits, said, labels))
        if self.task(task).is_token:
            return super().forward(input_ids, attention_mask, token_type_ids, task=task, labels=labels, **others)
        with self._as_family(self.family_of(task)):
            _, at_text = encode(self.backbone, no_prompts(self.backbone), input_ids, attention_mask, token_type_ids)
        with torch.autocast(at_text.device.type, enabled=False):
            vectors = _mean(at_text.float(), attention_mask)
            return TaskOutput(loss=contrastive_loss(vectors, labels))


def _mean(at_text: Tensor, attention_mask: Tensor | None) -> Tensor:
    """(B, D) The mean of (B, T, D) over a text's own tokens, of length 1: the document vector before it is rounded."""
    if attention_mask is None:
        return F.normalize(at_text.mean(dim=1), dim=-1)
    mask = attention_mask[..., None].to(at_text.dtype)
    return F.normalize((at_text * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1), dim=-1)


def check_sources(config: Config) -> None:
    """Refuse what pre-finetuning cannot learn from.

    Raises:
        ConfigError: Names the task or the section.
    """
    if not isinstance(config.model, MTOPModelConfig):
        raise ConfigError(f"model.kind = {config.model.kind!r}: mtop prefinetune trains an encoder; leave [model] out")
    if config.unlabelled is not None:
        raise ConfigError("mtop prefinetune does not learn from [unlabelled]; remove it, or write a [[source]]")
    for task in config.task:
        if task.kind == "regression":
            raise ConfigError(
                f"task {task.name!r} is a regression, and mtop prefinetune compares texts of the same label with "
                "others; remove the task"
            )
        if task.class_weights is not None:
            raise ConfigError(f"task {task.name!r}: mtop prefinetune has no weights of labels; remove class_weights")


def prefinetuning_model(
    config: Config,
    backbone: PreTrainedModel,
    data: Sequence[TaskData],
    teachers: Mapping[str, TokenTeacher] | None = None,
) -> tuple[PrefinetuningModel, list[TaskData]]:
    """What pre-finetuning begins with: the model, and its tasks, none of which has prompts.

    Args:
        config: Of the training.
        backbone: Becomes the model's.
        data: Of every task, in the order of the configuration, and of every source.
        teachers: Source -> its teacher, of those that have one.
    """
    sources = [replace(item, task=_without_prompts(item.task)) for item in data]
    model = PrefinetuningModel.without_tasks(backbone, max_tokens=config.backbone.max_tokens, seed=config.train.seed)
    assert isinstance(model, PrefinetuningModel)
    tasks = [item.task for item in sources]
    model.add_tasks(tasks, families=config.families(), family_of=config.family_of(), seed=config.train.seed)
    load_prefinetuned(model, read_families(config.backbone.name))
    model.teachers = dict(teachers or {})
    freeze(model, config.train)
    return model, sources


def _without_prompts(task: Task) -> Task:
    return task if task.is_token else replace(task, reads="pooled")
