"""What a forward pass costs in floating-point operations, and what the device could do: the arithmetic of the limit.

A multiplication and an addition are two operations. Counted are the matrix products of the encoder, of attention and
of the tasks' poolers and heads, for real tokens and prompts: padding, embeddings, normalisation and softmax are not
work that anybody wants, or little of it.

Shapes: R texts.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from mtop_batch.model.encoder import hidden_size
from mtop_batch.model.mtop import MTOPModel
from mtop_batch.model.prompts import prompt_layout

_SIDE, _GPU_SIDE = 1024, 8192
_ATTEMPTS = 3


@dataclass(frozen=True)
class ForwardFlops:
    """The cost of labelling texts with some tasks of a model, as a function of the texts' lengths.

    Args:
        per_position: Operations for each position of the sequence: all linear layers of the encoder.
        per_pair: Operations for each pair of positions of which one sees the other: attention, all layers.
        per_text: Operations for each text, whatever its length: poolers and heads.
        num_context_prompts: Prompts that the text sees.
        num_reading_prompts: Isolated ones, which read the context; what they see of each other is left out.
    """

    per_position: float
    per_pair: float
    per_text: float
    num_context_prompts: int
    num_reading_prompts: int

    @classmethod
    def of(cls, model: MTOPModel, tasks: Sequence[str]) -> ForwardFlops:
        """The cost of these tasks of a model."""
        layers = [module for module in model.backbone.modules() if isinstance(module, nn.Linear)]
        groups = prompt_layout(model.task_prompts, model.config.shared_prompts, tasks).groups
        own = [
            tensor.numel()
            for task in tasks
            for key, tensor in model.task_tensors(task).items()
            if key.endswith("weight")
        ]
        return cls(
            per_position=2.0 * sum(layer.weight.numel() for layer in layers),
            per_pair=4.0 * hidden_size(model.backbone) * int(model.backbone.config.num_hidden_layers),
            per_text=2.0 * sum(own),
            num_context_prompts=groups.count(0),
            num_reading_prompts=len(groups) - groups.count(0),
        )

    def __call__(self, lengths: npt.NDArray[np.integer]) -> float:
        """Operations for texts of these numbers of tokens, (R,); texts without tokens cost nothing."""
        tokens = np.asarray(lengths, dtype=np.float64)
        tokens = tokens[tokens > 0]
        context = tokens + self.num_context_prompts
        positions = context + self.num_reading_prompts
        pairs = context * positions
        per_text = self.per_text * len(tokens)
        return float(self.per_position * positions.sum() + self.per_pair * pairs.sum() + per_text)


def measure_matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second of a large matrix product on this device, in this type: what a model could reach at most.

    Takes some 0.1 s. Other work on the device makes it smaller.
    """
    side = _GPU_SIDE if device.type == "cuda" else _SIDE
    matrix = torch.ones(side, side, device=device, dtype=dtype)
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
