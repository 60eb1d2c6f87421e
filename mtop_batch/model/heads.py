"""The parameters that belong to one task, and the same of many tasks stacked for inference.

Shapes: B texts, N tasks, P prompts of a task (the paper's L_P), S prompt positions of the sequence, D hidden width,
E width of the input embeddings (D but for backbones with factorised embeddings), C outputs of a task.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtop_batch.model.prompts import random_prompts
from mtop_batch.tasks import Task


class TaskModule(nn.Module):
    """One task's prompts, conditional pooler and head.

    The paper counts D^2 + (P + C + 1) D parameters for a task (section 4.4), which leaves none for a bias of the
    head; so the head has none. All parameters are zero or PyTorch's default until `initialise` or a checkpoint
    sets them.

    Args:
        num_prompts: P
        num_outputs: C
        embedding_size: E
        hidden_size: D
    """

    def __init__(self, num_prompts: int, num_outputs: int, embedding_size: int, hidden_size: int) -> None:
        super().__init__()
        self.prompts = nn.Parameter(torch.zeros(num_prompts, embedding_size))
        self.pooler = nn.Linear(hidden_size, hidden_size)
        self.head = nn.Linear(hidden_size, num_outputs, bias=False)

    def forward(self, prompt_outputs: Tensor) -> Tensor:
        """Equations 1 and 3: V tanh(W mean(H) + b).

        Args:
            prompt_outputs: (B, P, D) The encoder's outputs at this task's prompts.

        Returns:
            (B, C) logits, or the value for regression.
        """
        logits: Tensor = self.head(torch.tanh(self.pooler(prompt_outputs.mean(dim=1))))
        return logits

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """Start at random (section 6.1): truncated normal prompts, Glorot-uniform kernels, zero bias."""
        self.prompts.copy_(random_prompts(self.prompts.shape, generator))
        for layer in (self.pooler, self.head):
            layer.weight.copy_(nn.init.xavier_uniform_(torch.empty(layer.weight.shape), generator=generator))
        self.pooler.bias.zero_()


@dataclass(frozen=True)
class StackedTasks:
    """The poolers and heads of several tasks as three batched products, without a loop over tasks.

    Args:
        positions: (N, P) Where each task's prompts stand; tasks with fewer prompts than P repeat their first.
        shares: (N, P) The share of each position in its task's mean; zero for repeated ones.
        pooler_weight: (N, D, D)
        pooler_bias: (N, 1, D)
        head_weight: (N, C, D) Zero beyond a task's own outputs.
        has_output: (N, C) bool
    """

    positions: Tensor
    shares: Tensor
    pooler_weight: Tensor
    pooler_bias: Tensor
    head_weight: Tensor
    has_output: Tensor

    @classmethod
    def stack(cls, modules: Sequence[TaskModule], positions: Sequence[range]) -> StackedTasks:
        """Stack the parameters of the tasks whose prompts stand at `positions`, one range per module."""
        weight = modules[0].pooler.weight
        longest = max(len(own) for own in positions)
        padded = [[*own, *[own[0]] * (longest - len(own))] for own in positions]
        shares = [[1 / len(own)] * len(own) + [0.0] * (longest - len(own)) for own in positions]
        outputs = [module.head.out_features for module in modules]
        heads = [F.pad(m.head.weight, (0, 0, 0, max(outputs) - m.head.out_features)) for m in modules]
        return cls(
            positions=torch.tensor(padded, device=weight.device),
            shares=torch.tensor(shares, device=weight.device, dtype=weight.dtype),
            pooler_weight=torch.stack([module.pooler.weight for module in modules]),
            pooler_bias=torch.stack([module.pooler.bias for module in modules])[:, None],
            head_weight=torch.stack(heads),
            has_output=torch.arange(max(outputs), device=weight.device)
            < torch.tensor(outputs, device=weight.device)[:, None],
        )

    def __call__(self, prompt_outputs: Tensor) -> Tensor:
        """Equations 1 and 3 for every task at once.

        Args:
            prompt_outputs: (B, S, D) The encoder's outputs at all prompts of the sequence.

        Returns:
            (B, N, C) logits; -inf beyond a task's own outputs.
        """
        own = prompt_outputs[:, self.positions]  # (B, N, P, D)
        means = (own * self.shares[..., None]).sum(dim=2).transpose(0, 1)  # (N, B, D)
        pooled = torch.tanh(torch.baddbmm(self.pooler_bias, means, self.pooler_weight.transpose(1, 2)))
        logits = torch.bmm(pooled, self.head_weight.transpose(1, 2)).transpose(0, 1)  # (B, N, C)
        return logits.masked_fill(~self.has_output, -torch.inf)


def task_loss(task: Task, logits: Tensor, labels: Tensor) -> Tensor:
    """The loss of a batch of one task, in float32.

    Args:
        task: Decides the loss: mean cross-entropy for classification, mean squared error for regression.
        logits: (B, C)
        labels: (B,) Indices of labels, or the values of a regression.

    Returns:
        () The loss.
    """
    if task.kind == "regression":
        return F.mse_loss(logits[:, 0].float(), labels.float())
    return F.cross_entropy(logits.float(), labels)
