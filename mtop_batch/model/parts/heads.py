"""The parameters that belong to one task, or to the tasks of one prompt group; LoRA has a module of its own.

Shapes: B texts, P prompts of a task (the paper's L_P), D hidden width, R rank of a pooler, E width of the input
embeddings (D but for backbones with factorised embeddings), C outputs of a task.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtop_batch.model.encoder.lora import LoRA
from mtop_batch.model.parts.prompts import GroupChoice, random_prompts


class Prompts(nn.Module):
    """The prompts of one task, or those that the tasks of one prompt group share.

    Args:
        num_prompts: P
        width: E, or more where a prompt stands for more than an embedding.
    """

    def __init__(self, num_prompts: int, width: int) -> None:
        super().__init__()
        self.prompts = nn.Parameter(torch.zeros(num_prompts, width))

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """Start at random (section 6.1): truncated normal prompts."""
        self.prompts.copy_(random_prompts(self.prompts.shape, generator))


class LowRankPooler(nn.Module):
    """A conditional pooler whose kernel has a low rank: W = up down, with 2 R D parameters for D^2.

    Args:
        hidden_size: D
        rank: R
    """

    def __init__(self, hidden_size: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Linear(hidden_size, rank, bias=False)
        self.up = nn.Linear(rank, hidden_size)

    def forward(self, mean: Tensor) -> Tensor:
        """(B, D) -> (B, D) W mean + b."""
        mapped: Tensor = self.up(self.down(mean))
        return mapped


class TaskModule(nn.Module):
    """One task's conditional pooler and head, its prompts unless it shares those of a prompt group, and its LoRA.

    The paper counts D^2 + (P + C + 1) D parameters for a task (section 4.4), which leaves none for a bias of the
    head; so the head has none. All parameters are zero or PyTorch's default until `initialise` or a checkpoint
    sets them.

    Args:
        num_prompts: P; 0 for a task of a prompt group.
        num_outputs: C
        embedding_size: E
        hidden_size: D
        pooler_rank: R; 0 for a full pooler, the paper's.
        lora: `mtop_batch.model.encoder.lora`; not in the paper.
    """

    def __init__(
        self,
        num_prompts: int,
        num_outputs: int,
        embedding_size: int,
        hidden_size: int,
        pooler_rank: int = 0,
        lora: LoRA | None = None,
    ) -> None:
        super().__init__()
        self.prompts = nn.Parameter(torch.zeros(num_prompts, embedding_size)) if num_prompts else None
        self.pooler = LowRankPooler(hidden_size, pooler_rank) if pooler_rank else nn.Linear(hidden_size, hidden_size)
        self.head = nn.Linear(hidden_size, num_outputs, bias=False)
        self.lora = lora
        self.choice: GroupChoice | None = None

    def forward(self, prompt_outputs: Tensor) -> Tensor:
        """Equations 1 and 3: V tanh(W mean(H) + b), the last product in float32 whatever the others are in.

        Args:
            prompt_outputs: (B, P, D) The encoder's outputs at the prompts that this task reads.

        Returns:
            (B, C) logits in float32.
        """
        pooled = torch.tanh(self.pooler(prompt_outputs.mean(dim=1)))
        dtype = torch.promote_types(self.head.weight.dtype, torch.float32)
        with torch.autocast(pooled.device.type, enabled=False):
            return F.linear(pooled.to(dtype), self.head.weight.to(dtype))

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """Start at random (section 6.1): truncated normal prompts, Glorot-uniform kernels, zero bias."""
        if self.prompts is not None:
            self.prompts.copy_(random_prompts(self.prompts.shape, generator))
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                draw_linear(layer, generator)
        if self.lora is not None:
            self.lora.initialise(generator)


def identity_pooler(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The kernels of a task's pooler that hands on what it is given; one of a low rank, as much of it as it can.

    Of a low rank R the rows are orthonormal and taken from those that were drawn, so that W projects onto a plane of R
    dimensions.

    Args:
        tensors: The parameters of a task, by their names in its module.

    Returns:
        Those of its pooler; none if it has no pooler.
    """
    full, down = tensors.get("pooler.weight"), tensors.get("pooler.down.weight")
    if full is not None:
        return {"pooler.weight": torch.eye(len(full))}
    if down is None:
        return {}
    rows = torch.linalg.qr(down.T.float()).Q.T  # (R, D)
    return {"pooler.down.weight": rows, "pooler.up.weight": rows.T.contiguous()}


@torch.no_grad()
def draw_linear(layer: nn.Linear, generator: torch.Generator) -> None:
    """Start a layer at random (section 6.1): a Glorot-uniform kernel, zero bias."""
    layer.weight.copy_(nn.init.xavier_uniform_(torch.empty(layer.weight.shape), generator=generator))
    if layer.bias is not None:
        layer.bias.zero_()
