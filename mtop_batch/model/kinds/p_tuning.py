"""P-Tuning as Huang et al. compare it (figure 1a; after Lester et al., 2021): a task's own prompts before the text.

It is MTOP with the prompts of one task in the sequence at a time, so every task takes a pass of its own, and with the
pooler of equation 2. E_i is the mean of the encoder's outputs at the task's prompts (equation 1). Text and prompts see
each other.

Shapes: B texts, P prompts of a task, E width of the input embeddings, D hidden width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Self, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mtop_batch.model.encoder.inputs import Text, embedding_size
from mtop_batch.model.kinds.base import generator_of, module_key
from mtop_batch.model.kinds.pooled import PooledConfig, PooledModel
from mtop_batch.model.parts.heads import Prompts
from mtop_batch.tasks import Reader, Task


class PromptedConfig(PooledConfig):
    """What, besides weights, makes a `PromptedModel`.

    Args:
        prompts_per_task: P
    """

    prompts_per_task: int = 2


class PromptedModel(PooledModel):
    """Prompts of their own for each task, of which one task's are in use at a time.

    Args:
        config: Its backbone is built with random weights unless one is given.
        backbone: The encoder to use.
    """

    config_class = PromptedConfig
    config: PromptedConfig
    pass_per_task = True

    def _add_parts(self) -> None:
        self.task_prompts = nn.ModuleDict(
            {module_key(name): Prompts(self.config.prompts_per_task, self.prompt_width) for name in self.task_names}
        )

    @property
    def prompt_width(self) -> int:
        """Values of a prompt."""
        return embedding_size(self.backbone)

    @torch.no_grad()
    def initialise(self, seed: int) -> None:
        """Draw all but the backbone at random, prompts from a truncated normal distribution."""
        super().initialise(seed)
        for name in self.task_names:
            self._prompts_of(name).initialise(generator_of(seed, f"prompts of {name}"))

    @torch.no_grad()
    def start_from_tokens(self, task: str, token_ids: Tensor) -> None:
        """Let a task's prompts begin as these (P,) tokens (section 6.1, "TK")."""
        self.prompts(task).copy_(self.prompts_of_tokens(token_ids.to(self.backbone.device)))

    def prompts_of_tokens(self, token_ids: Tensor) -> Tensor:
        """(P, prompt width) The prompts that stand for (P,) tokens."""
        return self.word_embeddings(token_ids)

    def prompts(self, task: str) -> nn.Parameter:
        """(P, prompt width) The task's prompts."""
        return self._prompts_of(task).prompts

    def task_parts(self, name: str) -> dict[str, nn.Module]:
        """The task's prompts."""
        return {"prompts": self._prompts_of(name)}

    def task_parameters(self, name: str) -> list[nn.Parameter]:
        """The task's head and prompts."""
        return [*super().task_parameters(name), self.prompts(name)]

    def _prompts_of(self, name: str) -> Prompts:
        return cast(Prompts, self.task_prompts[module_key(name)])


class PTuningConfig(PromptedConfig):
    """What, besides weights, makes a `PTuningModel`."""

    model_type = "p-tuning"


class PTuningModel(PromptedModel):
    """The model; make one with `from_backbone` or load one with `from_pretrained`.

    Args:
        config: Its backbone is built with random weights unless one is given.
        backbone: The encoder to use.
    """

    config_class = PTuningConfig
    config: PTuningConfig
    readers: ClassVar[tuple[Reader, ...]] = ("prompts",)

    @classmethod
    def from_backbone(
        cls,
        backbone: PreTrainedModel,
        tasks: Sequence[Task],
        *,
        prompts_per_task: int = 2,
        dropout: float = 0.1,
        max_tokens: int = 128,
        seed: int = 0,
    ) -> Self:
        """A model around a pretrained encoder, all else drawn at random; the backbone is taken over.

        Args:
            backbone: As `mtop_batch.model.encoder.backbone.load_backbone` returns it.
            tasks: At least one.
            prompts_per_task: P
            dropout: Between pooler and head, in training.
            max_tokens: Longest text, special tokens included, prompts not.
            seed: Of the random draws.

        Raises:
            ConfigError: The backbone cannot work.
            TaskError: There is no task, two have the same name, or one reads what this kind does not have.
        """
        return cls._around(backbone, tasks, max_tokens, seed, prompts_per_task=prompts_per_task, dropout=dropout)

    def read(self, task: str, text: Text) -> Tensor:
        """(B, D) The mean of the encoder's outputs at the task's prompts."""
        return self.encode(self.prompts(task), text, at_text=False)[0].mean(dim=1)

    def num_positions(self, tasks: Sequence[str]) -> int:
        """The prompts of one task, in each pass."""
        del tasks
        return self.config.prompts_per_task
