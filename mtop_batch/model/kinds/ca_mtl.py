"""CA-MTL (Pilault et al., 2021), its base size: an encoder whose layers know the task.

A task is a vector e. With z = V e + c, every layer has conditional attention, those of the upper half conditional layer
norms, the top layer a conditional bottleneck, and what comes out of the embeddings is aligned by FiLM on e
(`mtop_batch.model.parts.conditional`). Of L layers, L // 2 have conditional attention alone. The top layer begins
anew, as in the authors' code. E_i is the encoder's output at the first token. Every task takes a pass of its own.

Shapes: B texts, T text positions, L layers, D hidden width.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mtop_batch.errors import ConfigError
from mtop_batch.model.encoder.inputs import (
    Text,
    embed,
    has_bert_layers,
    hidden_size,
    inputs_of,
    no_prompts,
    num_layers,
)
from mtop_batch.model.encoder.masks import additive
from mtop_batch.model.flops import ForwardFlops
from mtop_batch.model.kinds.base import generator_of, module_key
from mtop_batch.model.kinds.pooled import PooledConfig, PooledModel
from mtop_batch.model.parts.conditional import INIT_STD, ConditionalLayer, FiLM, draw_normal
from mtop_batch.tasks import Task


class CAMTLConfig(PooledConfig):
    """What, besides weights, makes a `CAMTLModel`."""

    model_type = "ca-mtl"


class Conditional(nn.Module):
    """All that CA-MTL adds to an encoder but the vectors of the tasks; they share it.

    Args:
        num_layers: L
        hidden_size: D
        max_tokens: Longest text.
    """

    def __init__(self, num_layers: int, hidden_size: int, max_tokens: int) -> None:
        super().__init__()
        self.alignment = FiLM(hidden_size, hidden_size)
        self.transform = nn.Linear(hidden_size, hidden_size)
        top = num_layers - 1
        self.layers = nn.ModuleList(
            ConditionalLayer(hidden_size, max_tokens, norms=index >= num_layers // 2, bottleneck=index == top)
            for index in range(num_layers)
        )


class CAMTLModel(PooledModel):
    """The model; make one with `from_backbone` or load one with `from_pretrained`.

    Args:
        config: Its backbone is built with random weights unless one is given.
        backbone: The encoder to use.
    """

    config_class = CAMTLConfig
    config: CAMTLConfig
    pass_per_task = True

    def _add_parts(self) -> None:
        width = hidden_size(self.backbone)
        self.conditional = Conditional(num_layers(self.backbone), width, self.config.max_tokens)
        self.task_vectors = nn.ParameterDict({module_key(name): torch.zeros(width) for name in self.task_names})

    @classmethod
    def from_backbone(
        cls,
        backbone: PreTrainedModel,
        tasks: Sequence[Task],
        *,
        pretrained_top: bool = False,
        dropout: float = 0.1,
        max_tokens: int = 128,
        seed: int = 0,
    ) -> Self:
        """A model around a pretrained encoder, all else drawn at random; the backbone is taken over and changed.

        Args:
            backbone: As `mtop_batch.model.encoder.backbone.load_backbone` returns it.
            tasks: At least one.
            pretrained_top: The top layer keeps its pretrained weights.
            dropout: Between pooler and head, in training.
            max_tokens: Longest text, special tokens included.
            seed: Of the random draws.

        Raises:
            ConfigError: The backbone cannot work.
            TaskError: There is no task, two have the same name, or one reads what this kind does not have.
        """
        model = cls._around(backbone, tasks, max_tokens, seed, dropout=dropout)
        if not pretrained_top:
            draw_normal(_layers(model.backbone)[-1], generator_of(seed, "top layer"))
        return model

    @classmethod
    def check_encoder(cls, backbone: PreTrainedModel) -> None:
        """Refuse encoders whose layers are not BERT's.

        Raises:
            ConfigError: It is one of them.
        """
        if not has_bert_layers(backbone):
            raise ConfigError(
                f"model.kind = 'ca-mtl' cannot work with {type(backbone).__name__}, for it changes the inside of "
                "BERT's layers; choose an encoder such as BERT, RoBERTa, ELECTRA or MiniLM"
            )

    @torch.no_grad()
    def initialise(self, seed: int) -> None:
        """Draw all but the backbone at random."""
        super().initialise(seed)
        draw_normal(self.conditional, generator_of(seed, "conditional"))
        for name in self.task_names:
            vector = self.task_vectors[module_key(name)]
            vector.copy_(torch.randn(vector.shape, generator=generator_of(seed, f"vector of {name}")) * INIT_STD)

    def read(self, task: str, text: Text) -> Tensor:
        """(B, D) The encoder's output at the first token."""
        vector = self.task_vectors[module_key(task)]
        hidden = embed(self.backbone, inputs_of(self.backbone, no_prompts(self.backbone), text))
        hidden = self.conditional.alignment(vector, hidden)
        sees = None if text.attention_mask is None else additive(text.attention_mask[:, None, None, :].bool(), hidden)
        z = self.conditional.transform(vector)
        for added, layer in zip(self.conditional.layers, _layers(self.backbone), strict=True):
            hidden = added(layer, z, hidden, sees)
        return hidden[:, 0]

    def task_tensors(self, name: str) -> dict[str, Tensor]:
        """Copies of the parameters, besides the backbone, that the task's output depends on."""
        return {**super().task_tensors(name), "vector": self.task_vectors[module_key(name)].detach().clone()}

    def context_tensors(self) -> Iterable[tuple[str, Tensor]]:
        """All that the tasks' passes share besides the backbone."""
        return self.conditional.state_dict().items()

    def task_parameters(self, name: str) -> list[nn.Parameter]:
        """The task's head and vector."""
        return [*super().task_parameters(name), self.task_vectors[module_key(name)]]

    def forward_flops(self, tasks: Sequence[str], *, vectors: bool = False) -> ForwardFlops:
        """What labelling a text with these tasks costs: the encoder's passes, each with the bottleneck."""
        cost, width = super().forward_flops(tasks, vectors=vectors), hidden_size(self.backbone)
        return replace(cost, per_position=cost.per_position + 4.0 * width * (width // 3))

    def fuse_layers(self) -> bool:
        """Change nothing: fused layers do not know the task."""
        return False


def _layers(backbone: Any) -> nn.ModuleList:
    layers: nn.ModuleList = backbone.encoder.layer
    return layers
