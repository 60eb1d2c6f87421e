"""Equation 2 of Huang et al.: one pooler that all tasks share and a head for each, behind what a task reads of a text.

    P(y | x) = softmax(V_i tanh(W E_i + b))

The kinds of models that MTOP is compared with share this; they differ in E_i, the representation that task i reads.

Shapes: B texts, D hidden width, C outputs of a task.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mtop_batch.model.encoder.inputs import Text, hidden_size
from mtop_batch.model.flops import ForwardFlops
from mtop_batch.model.kinds.base import MultiTaskModel, generator_of, module_key
from mtop_batch.model.kinds.config import KindConfig
from mtop_batch.model.parts.heads import draw_linear
from mtop_batch.tasks import Reader, select_tasks


class PooledConfig(KindConfig):
    """What, besides weights, makes a `PooledModel`.

    Args:
        dropout: Between pooler and head, in training.
    """

    dropout: float = 0.0


class PooledModel(MultiTaskModel):
    """A backbone, one pooler, and a head for each task; a subclass says what the pooler is given.

    Args:
        config: Its backbone is built with random weights unless one is given.
        backbone: The encoder to use.
    """

    config_class = PooledConfig
    config: PooledConfig
    readers: ClassVar[tuple[Reader, ...]] = ("pooled",)

    def __init__(self, config: PooledConfig, backbone: PreTrainedModel | None = None) -> None:
        super().__init__(config, backbone)
        width = hidden_size(self.backbone)
        self.pooler = nn.Linear(width, width)
        self.dropout = nn.Dropout(config.dropout)
        self.heads = nn.ModuleDict(
            {module_key(task.name): nn.Linear(width, task.num_outputs, bias=False) for task in self.tasks}
        )
        self._add_parts()
        self.post_init()

    def _add_parts(self) -> None:
        """Make the modules that a kind has besides pooler and heads."""

    @torch.no_grad()
    def initialise(self, seed: int) -> None:
        """Draw all but the backbone at random; a task's draws depend on the seed and its name only."""
        draw_linear(self.pooler, generator_of(seed, ""))
        for name in self.task_names:
            draw_linear(self._head(name), generator_of(seed, name))

    def read(self, task: str, text: Text) -> Tensor:
        """(B, D) E_i: what the task reads of texts."""
        raise NotImplementedError

    def task_logits(self, task: str, text: Text) -> Tensor:
        """(B, C) The logits of one task.

        Raises:
            TaskError: There is no such task.
        """
        head = self._head(task)
        return head(self.pooled(self.read(task, text)))

    def pooled(self, representation: Tensor) -> Tensor:
        """(B, D) tanh(W E + b)"""
        return self.dropout(torch.tanh(self.pooler(representation.to(self.pooler.weight.dtype))))

    def task_tensors(self, name: str) -> dict[str, Tensor]:
        """Copies of the parameters, besides the backbone, that the task's output depends on."""
        modules = {"pooler": self.pooler, "head": self._head(name), **self.task_parts(name)}
        return {f"{key}.{n}": v.clone() for key, module in modules.items() for n, v in module.state_dict().items()}

    def task_parts(self, name: str) -> dict[str, nn.Module]:
        """What else, besides backbone, pooler and head, the task's output depends on."""
        del name
        return {}

    def task_parameters(self, name: str) -> list[nn.Parameter]:
        """The parameters that belong to the task alone."""
        return list(self._head(name).parameters())

    def forward_flops(self, tasks: Sequence[str], *, vectors: bool = False) -> ForwardFlops:
        """What labelling a text with these tasks costs."""
        del vectors
        heads = sum(self._head(name).weight.numel() for name in tasks)
        num_passes = len(tasks) if self.pass_per_task else 1
        return ForwardFlops.of_encoder(
            self.backbone,
            per_text=2.0 * (heads + num_passes * self.pooler.weight.numel()),
            num_context_prompts=self.num_positions(tasks),
            num_passes=num_passes,
        )

    def _head(self, name: str) -> nn.Linear:
        if module_key(name) not in self.heads:
            select_tasks([name], self.task_names)
        return cast(nn.Linear, self.heads[module_key(name)])
