"""What a forward pass costs in floating-point operations, and what the device could do: the arithmetic of the limit.

A multiplication and an addition are two operations. Counted are the matrix products of the encoder, of attention and
of the tasks' poolers and heads, for real tokens and prompts: padding, embeddings, normalisation and softmax are not
work that anybody wants, or little of it.

Shapes: R texts.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mtop_batch.model.encoder.encode import encode, encode_kv_cache
from mtop_batch.model.encoder.inputs import hidden_size, no_prompts, num_layers
from mtop_batch.model.encoder.lora import lora_layers

_SIDE, _GPU_SIDE = 1024, 8192
_ATTEMPTS = 3


@dataclass(frozen=True)
class ForwardFlops:
    """The cost of labelling texts with some tasks of a model, as a function of the texts' lengths.

    Args:
        per_position: Operations for each position of the sequence: all linear layers of the encoder.
        per_pair: Operations for each pair of positions of which one sees the other: attention, all layers.
        share_of_context: Share of the linear layers that positions of the context go through: all, or all but what
            comes after the last layer's keys and values.
        share_of_pairs: Share of the attention layers in which they see each other.
        per_text: Operations for each text, whatever its length: poolers, heads and LoRA.
        num_context_prompts: Prompts that the text sees.
        num_reading_prompts: Isolated ones, which read the context; what they see of each other is left out. One that
            goes through half of the layers counts half.
        num_passes: How often the text goes through the encoder.
        num_prefix: Keys and values that the text sees in every layer besides its own.
        heads_per_token: Operations of heads that read the text's outputs, for each of its tokens.
        heads_per_pair: The same for each pair of its tokens.
        also: What other families cost beside this.
    """

    per_position: float
    per_pair: float
    share_of_context: float
    share_of_pairs: float
    per_text: float
    num_context_prompts: int
    num_reading_prompts: float
    num_passes: int
    num_prefix: int = 0
    heads_per_token: float = 0.0
    heads_per_pair: float = 0.0
    also: tuple[ForwardFlops, ...] = ()

    @classmethod
    def of_encoder(
        cls,
        backbone: PreTrainedModel,
        *,
        per_text: float,
        num_context_prompts: int = 0,
        num_reading_prompts: float = 0,
        num_passes: int = 1,
        ends_early: bool = False,
    ) -> ForwardFlops:
        """The cost of passes through an encoder.

        Args:
            backbone: The encoder.
            per_text: Operations of all that reads it.
            num_context_prompts: Prompts that the text sees, in each pass.
            num_reading_prompts: Isolated ones.
            num_passes: How often the text goes through the encoder.
            ends_early: Nobody reads its outputs at the context, and it has a KV cache.
        """
        size = _weights_in_pass(backbone, lambda nothing, token: encode(backbone, nothing, token))
        context = size
        if ends_early:
            context = _weights_in_pass(backbone, lambda nothing, token: encode_kv_cache(backbone, nothing, token))
        return cls(
            per_position=2.0 * size,
            per_pair=4.0 * hidden_size(backbone) * num_layers(backbone),
            share_of_context=context / size,
            share_of_pairs=1 - 1 / num_layers(backbone) if ends_early else 1.0,
            per_text=per_text,
            num_context_prompts=num_context_prompts,
            num_reading_prompts=num_reading_prompts,
            num_passes=num_passes,
        )

    def from_layer(self, start: int, backbone: PreTrainedModel) -> ForwardFlops:
        """The same where the context goes through the layers from this one on only; isolated prompts go through all."""
        lower = self.to_layer(start, backbone)
        return replace(
            self,
            share_of_context=self.share_of_context - lower.share_of_context,
            share_of_pairs=self.share_of_pairs - lower.share_of_pairs,
        )

    def to_layer(self, stop: int, backbone: PreTrainedModel) -> ForwardFlops:
        """The same where the context goes through the layers below this one only, and their outputs are wanted."""
        layers = num_layers(backbone)
        upper = sum(layer.weight.numel() for layer in lora_layers(backbone, layers - stop))
        return replace(self, share_of_context=1 - 2.0 * upper / self.per_position, share_of_pairs=stop / layers)

    def __call__(self, lengths: npt.NDArray[np.integer]) -> float:
        """Operations for texts of these numbers of tokens, (R,); texts without tokens cost nothing."""
        tokens = np.asarray(lengths, dtype=np.float64)
        tokens = tokens[tokens > 0]
        context = tokens + self.num_context_prompts
        positions = context * self.share_of_context + self.num_reading_prompts
        pairs = context * (context * self.share_of_pairs + self.num_reading_prompts + self.num_prefix)
        per_text = self.per_text * len(tokens)
        per_text += self.heads_per_token * tokens.sum() + self.heads_per_pair * (tokens**2).sum()
        per_pass = self.per_position * positions.sum() + self.per_pair * pairs.sum()
        return float(self.num_passes * per_pass + per_text) + sum(other(lengths) for other in self.also)


def _weights_in_pass(backbone: PreTrainedModel, run: Callable[[Tensor, Tensor], object]) -> int:
    """Weights of the linear layers that a position goes through, each as often as it is gone through."""
    used: list[int] = []
    hooks = [
        module.register_forward_pre_hook(lambda layer, _: used.append(layer.weight.numel()))
        for module in backbone.modules()
        if isinstance(module, nn.Linear)
    ]
    try:
        with torch.inference_mode():
            run(no_prompts(backbone), torch.ones(1, 1, dtype=torch.long, device=backbone.device))
    finally:
        for hook in hooks:
            hook.remove()
    return sum(used)


def measure_peak_flops_per_s(device: torch.device, dtype: torch.dtype) -> float:
    """The measured peak: FLOP/s of a large matrix product on this device, in this type. MFU is relative to it.

    Takes some 0.1 s. Other work on the device makes it smaller. The numbers are random, for a GPU that multiplies equal
    ones needs less power and is faster than with any data.
    """
    side = _GPU_SIDE if device.type == "cuda" else _SIDE
    matrix = torch.randn(side, side, device=device, dtype=dtype)
    fastest = float("inf")
    for _ in range(_ATTEMPTS + 1):  # the first one loads libraries
        started = _now(device)
        torch.matmul(matrix, matrix)
        fastest = min(fastest, _now(device) - started)
    return 2.0 * side**3 / fastest


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
