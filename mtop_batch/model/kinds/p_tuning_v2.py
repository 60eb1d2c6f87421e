"""P-Tuning v2 (Liu et al., 2021): a task's own prefix of keys and values in every layer.

A prompt stands for a key and a value in each layer, which every position of the text sees as if it were a position more
before the text. Nothing is computed at prompts. E_i is the encoder's output at the first token. Every task takes a
pass of its own.

Shapes: B texts, P prompts of a task, L layers, D hidden width, H heads, W width of a head (D = H W).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from mtop_batch.errors import ConfigError
from mtop_batch.model.encoder.encode import encode_kv_cache, encode_with_prefix
from mtop_batch.model.encoder.inputs import Text, hidden_size, no_prompts, num_layers
from mtop_batch.model.encoder.kv_cache import KeyValues, has_kv_cache
from mtop_batch.model.encoder.masks import has_windows
from mtop_batch.model.flops import ForwardFlops
from mtop_batch.model.kinds.p_tuning import PromptedConfig, PromptedModel
from mtop_batch.tasks import Task


class PTuningV2Config(PromptedConfig):
    """What, besides weights, makes a `PTuningV2Model`.

    Args:
        prompt_dropout: Of the prefixes, in training.
    """

    model_type = "p-tuning-v2"

    prompt_dropout: float = 0.0


class PTuningV2Model(PromptedModel):
    """The model; make one with `from_backbone` or load one with `from_pretrained`.

    Args:
        config: Its backbone is built with random weights unless one is given.
        backbone: The encoder to use.
    """

    config_class = PTuningV2Config
    config: PTuningV2Config

    @classmethod
    def from_backbone(
        cls,
        backbone: PreTrainedModel,
        tasks: Sequence[Task],
        *,
        prompts_per_task: int = 8,
        prompt_dropout: float = 0.1,
        dropout: float = 0.1,
        max_tokens: int = 128,
        seed: int = 0,
    ) -> Self:
        """A model around a pretrained encoder, all else drawn at random; the backbone is taken over.

        Args:
            backbone: As `mtop_batch.model.encoder.backbone.load_backbone` returns it.
            tasks: At least one.
            prompts_per_task: P
            prompt_dropout: Of the prefixes, in training.
            dropout: Between pooler and head, in training.
            max_tokens: Longest text, special tokens included.
            seed: Of the random draws.

        Raises:
            ConfigError: The backbone cannot work.
            TaskError: There is no task, two have the same name, or one reads what this kind does not have.
        """
        settings = {"prompts_per_task": prompts_per_task, "prompt_dropout": prompt_dropout, "dropout": dropout}
        return cls._around(backbone, tasks, max_tokens, seed, **settings)

    @classmethod
    def check_encoder(cls, backbone: PreTrainedModel) -> None:
        """Refuse encoders whose layers do not all see keys and values before the text.

        Raises:
            ConfigError: It is one of them.
        """
        if not has_kv_cache(backbone) or has_windows(backbone.config):
            raise ConfigError(
                f"model.kind = 'p-tuning-v2' cannot work with {type(backbone).__name__}: some of its layers take no "
                "keys and values before the text; choose an encoder such as BERT, RoBERTa, ELECTRA or DistilBERT"
            )

    @property
    def prompt_width(self) -> int:
        """2 L D: a key and a value in each layer."""
        return 2 * num_layers(self.backbone) * hidden_size(self.backbone)

    def read(self, task: str, text: Text) -> Tensor:
        """(B, D) The encoder's output at the first token."""
        prompts = F.dropout(self.prompts(task), self.config.prompt_dropout, self.training)
        return encode_with_prefix(self.backbone, self._key_values(prompts), text)[:, 0]

    @torch.no_grad()
    def prompts_of_tokens(self, token_ids: Tensor) -> Tensor:
        """(P, 2 L D) The keys and values of (P,) tokens that are read as a text of their own."""
        key_values = encode_kv_cache(self.backbone, no_prompts(self.backbone), token_ids[None]).key_values
        by_layer = [tensor[0].transpose(0, 1).flatten(1) for pair in key_values for tensor in pair]  # (P, D) each
        return torch.cat(by_layer, dim=1)

    def _key_values(self, prompts: Tensor) -> KeyValues:
        """(1, H, P, W) keys and values of each layer."""
        num_heads: int = self.backbone.config.num_attention_heads
        tensors = prompts.view(len(prompts), 2 * num_layers(self.backbone), num_heads, -1).permute(1, 2, 0, 3)[:, None]
        return list(zip(tensors[0::2], tensors[1::2], strict=True))

    def forward_flops(self, tasks: Sequence[str], *, vectors: bool = False) -> ForwardFlops:
        """What labelling a text with these tasks costs."""
        return replace(super().forward_flops(tasks, vectors=vectors), num_prefix=self.config.prompts_per_task)

    def fuse_layers(self) -> bool:
        """Change nothing: fused layers take no prefix."""
        return False
