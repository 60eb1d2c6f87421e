"""A second kind of model, for tests: one pooler that all tasks share and a linear head for each, as in MT-DNN."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mtop_batch.model.encoder.backbone import backbone_config_dict
from mtop_batch.model.encoder.encode import encode
from mtop_batch.model.encoder.inputs import Text, embedding_size, hidden_size
from mtop_batch.model.kinds.base import MultiTaskModel
from mtop_batch.model.kinds.config import KindConfig
from mtop_batch.model.parts.document_vectors import document_vectors, join_logits
from mtop_batch.tasks import Task


class SharedPoolerConfig(KindConfig):
    model_type = "shared-pooler"


class SharedPooler(MultiTaskModel):
    config_class = SharedPoolerConfig
    readers = ("pooled",)

    def __init__(self, config: SharedPoolerConfig, backbone: PreTrainedModel | None = None) -> None:
        super().__init__(config, backbone)
        width = hidden_size(self.backbone)
        self.pooler = nn.Linear(width, width)
        self.heads = nn.ModuleDict({f"task_{task.name}": nn.Linear(width, task.num_outputs) for task in self.tasks})
        self.post_init()

    @classmethod
    def from_backbone(
        cls, backbone: PreTrainedModel, tasks: Sequence[Task], *, max_tokens: int = 128, seed: int = 0
    ) -> SharedPooler:
        cls.check_readers(tasks)
        torch.manual_seed(seed)
        config = SharedPoolerConfig(
            backbone_config=backbone_config_dict(backbone.config),
            tasks=[{"task": task.to_dict()} for task in tasks],
            max_tokens=max_tokens,
        )
        return cls(config, backbone).eval()

    def task_logits(self, task: str, text: Text) -> Tensor:
        return self._head(task)(self._pool(self._encode(text)))

    def outputs(self, wanted: tuple[str, ...], text: Text, *, vectors: bool) -> tuple[Tensor, Tensor]:
        at_text = self._encode(text)
        pooled = self._pool(at_text)
        found = document_vectors(at_text, text.attention_mask) if vectors else at_text.new_empty(len(at_text), 0)
        logits = [self._head(self.task(name).name)(pooled)[:, None] for name in wanted]
        return join_logits(logits, None) if logits else pooled.new_empty(len(pooled), 0, 0), found

    def task_tensors(self, name: str) -> dict[str, Tensor]:
        modules = {"pooler": self.pooler, "head": self._head(name)}
        return {f"{key}.{n}": v.clone() for key, module in modules.items() for n, v in module.state_dict().items()}

    def task_parameters(self, name: str) -> list[nn.Parameter]:
        return list(self._head(name).parameters())

    def _encode(self, text: Text) -> Tensor:
        no_prompts = self.word_embeddings.weight.new_empty(0, embedding_size(self.backbone))
        return encode(self.backbone, no_prompts, *text[:3], num_tokens=text.num_tokens)[1]

    def _pool(self, at_text: Tensor) -> Tensor:
        return torch.tanh(self.pooler(at_text[:, 0].to(self.pooler.weight.dtype)))

    def _head(self, name: str) -> nn.Linear:
        return cast(nn.Linear, self.heads[f"task_{name}"])
