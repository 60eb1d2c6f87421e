"""MT-DNN (Liu et al., 2019): one encoder and one pooler for all tasks, a head for each, one pass for all.

E is the encoder's output at the first token, the same for every task (equation 2 of Huang et al.).

Shapes: B texts, T text positions, n wanted tasks, C outputs of the task with the most, D hidden width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mtop_batch.model.encoder.inputs import Text, no_prompts
from mtop_batch.model.kinds.base import INPUTS, Outputs, generator_of
from mtop_batch.model.kinds.pooled import PooledConfig, PooledModel
from mtop_batch.model.parts.document_vectors import document_vectors, join_logits
from mtop_batch.tasks import Task


class MTDNNConfig(PooledConfig):
    """What, besides weights, makes an `MTDNNModel`."""

    model_type = "mt-dnn"


class MTDNNModel(PooledModel):
    """The model; make one with `from_backbone` or load one with `from_pretrained`.

    Args:
        config: Its backbone is built with random weights unless one is given.
        backbone: The encoder to use.
    """

    config_class = MTDNNConfig
    config: MTDNNConfig

    @classmethod
    def from_backbone(
        cls,
        backbone: PreTrainedModel,
        tasks: Sequence[Task],
        *,
        dropout: float = 0.1,
        inputs: Sequence[Mapping[str, Any]] = (),
        max_tokens: int = 128,
        seed: int = 0,
    ) -> Self:
        """A model around a pretrained encoder, its pooler and heads drawn at random; the backbone is taken over.

        Args:
            backbone: As `mtop_batch.model.encoder.backbone.load_backbone` returns it.
            tasks: At least one.
            dropout: Between pooler and head, in training.
            inputs: What is read beside each text (`mtop_batch.tasks.VectorInput`, as a dictionary each).
            max_tokens: Longest text, special tokens included.
            seed: Of the random draws.

        Raises:
            ConfigError: The backbone cannot work.
            TaskError: There is no task, two have the same name, or one reads what this kind does not have.
        """
        return cls._around(backbone, tasks, max_tokens, seed, dropout=dropout, inputs=[dict(spec) for spec in inputs])

    def _add_parts(self) -> None:
        self._add_inputs()

    @torch.no_grad()
    def initialise(self, seed: int) -> None:
        """Draw all but the backbone at random; a task's draws depend on the seed and its name only."""
        super().initialise(seed)
        self._draw_inputs(generator_of(seed, INPUTS))

    def read(self, task: str, text: Text) -> Tensor:
        """(B, D) The encoder's output at the first token."""
        del task
        return self._at_text(text)[:, 0]

    def outputs(self, wanted: tuple[str, ...], text: Text, *, vectors: bool) -> Outputs:
        """Logits and document vectors by one pass of the encoder (`MultiTaskModel.outputs`)."""
        at_text = self._at_text(text)
        pooled = self.pooled(at_text[:, 0])
        found = document_vectors(at_text, text.attention_mask) if vectors else at_text.new_empty(len(at_text), 0)
        logits = [self._head(name)(pooled)[:, None] for name in wanted]
        joined = join_logits(logits, None) if logits else pooled.new_empty(len(pooled), 0, 0)
        return Outputs(joined, found)

    def _at_text(self, text: Text) -> Tensor:
        """(B, T, D)"""
        return self.encode(no_prompts(self.backbone), text)[1]
