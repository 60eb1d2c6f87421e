"""Poolers and heads of all wanted tasks as a few matrix products, and what else inference keeps between batches.

Tasks that read the same prompts read one mean of outputs, so their poolers are one product (n D, D) x (D, B). Products
of equally large sets of tasks run together; what is left of a Python loop is over the different sizes of sets and over
chunks of tasks, which bound the memory: whatever has D values per text and task has at most 2^20 values at a time on a
CPU and 2^25 on a GPU (or B D, those of one task), however many tasks there are.

The texts are the last dimension throughout. So the large matrices, kernels and heads, are used as they lie, and each
product leaves what the next one takes; on a CPU, where a batch has few texts, that takes two thirds of the time of the
other way round.

Shapes: B texts, N tasks, S prompt positions of the sequence, P prompts of a task, D hidden width, R rank of a pooler,
C outputs of the task with the most; G sets of tasks that read the same prompts, k of them with n tasks each.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtop_batch.model.encoder.encode import Pass
from mtop_batch.model.kernels import has_kernels
from mtop_batch.model.parts.document_vectors import StackedProbes
from mtop_batch.model.parts.heads import LowRankPooler, TaskModule
from mtop_batch.model.parts.text_heads import StackedAttention
from mtop_batch.model.parts.token_heads import TokenHead

# Values of an intermediate tensor: on a CPU what stays in its cache, on a GPU what keeps it busy.
MAX_VALUES, MAX_GPU_VALUES = 2**20, 2**25
# Texts: a GPU's fast products take rows of 16 bytes, its kernels whole ones of 32.
_GPU_MULTIPLE = 16


@dataclass(frozen=True)
class StackedTasks:
    """The poolers and heads of N tasks, stacked.

    Args:
        positions: (G, P) Where the prompts of each set stand; sets with fewer prompts than P repeat their first.
        shares: (G, P) The share of each position in the mean; zero for repeated ones.
        blocks: The sets by how many tasks they have; together they have all N tasks.
        order: (N,) Where each task stands among those of all blocks.
        has_output: (N, C) bool
    """

    positions: Tensor
    shares: Tensor
    blocks: Sequence[_Block]
    order: Tensor
    has_output: Tensor

    @classmethod
    def stack(
        cls, modules: Sequence[TaskModule], positions: Sequence[range], dtype: torch.dtype | None = None
    ) -> StackedTasks:
        """Stack the parameters of tasks.

        Args:
            modules: N, all with poolers of the same kind.
            positions: Where the prompts of each stand; tasks of one prompt group have the same.
            dtype: Of the stacked parameters; None for the one they have.
        """
        weight = modules[0].head.weight
        device, dtype = weight.device, dtype or weight.dtype
        tasks_of: dict[range, list[int]] = {}
        for task, own in enumerate(positions):
            tasks_of.setdefault(own, []).append(task)
        sets = list(tasks_of)
        longest = max(map(len, sets))
        num_outputs = [module.head.out_features for module in modules]
        blocks: list[_Block] = []
        order: list[int] = []
        for size in sorted({len(tasks) for tasks in tasks_of.values()}):
            members = [index for index, own in enumerate(sets) if len(tasks_of[own]) == size]
            tasks = [task for index in members for task in tasks_of[sets[index]]]
            blocks.append(_Block.stack(members, [modules[task] for task in tasks], max(num_outputs), device, dtype))
            order += tasks
        shares = [[1 / len(own)] * len(own) + [0.0] * (longest - len(own)) for own in sets]
        outputs = torch.tensor(num_outputs, device=device)
        return cls(
            positions=torch.tensor([[*own, *[own[0]] * (longest - len(own))] for own in sets], device=device),
            shares=torch.tensor(shares, device=device),
            blocks=blocks,
            order=torch.tensor(order, device=device).argsort(),
            has_output=torch.arange(max(num_outputs), device=device) < outputs[:, None],
        )

    @property
    def num_bytes(self) -> int:
        """Memory of the stacked poolers and heads."""
        tensors = [tensor for block in self.blocks for tensor in (*block.kernels, block.bias, block.head)]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def __call__(self, prompt_outputs: Tensor) -> Tensor:
        """Equations 1 and 3 for every task at once.

        Args:
            prompt_outputs: (B, S, D) The encoder's outputs at all prompts of the sequence.

        Returns:
            (B, N, C) logits; -inf beyond a task's own outputs.
        """
        own = prompt_outputs[:, self.positions]  # (B, G, P, D)
        means = (own * self.shares[..., None]).sum(dim=2).permute(1, 2, 0)  # (G, D, B)
        max_values = MAX_VALUES
        if own.device.type == "cuda":
            max_values = MAX_GPU_VALUES
            means = F.pad(means, (0, -len(own) % _GPU_MULTIPLE))
        max_tasks = max(1, max_values // means[0].numel())
        logits = torch.cat([part for block in self.blocks for part in block.logits(means, max_tasks)])  # (N, C, B)
        return logits[self.order, :, : len(own)].permute(2, 0, 1).masked_fill(~self.has_output, -torch.inf)


@dataclass(frozen=True)
class _Block:
    """The k sets that have n tasks each.

    Args:
        sets: (k,) Which ones.
        kernels: (k, n, D, D) of full poolers, or (k, n, R, D) and (k, n, D, R) of low-rank ones.
        bias: (k, n, D)
        head: (k, n, C, D) float32, as its products are, for they are what people see. Zero beyond a task's own outputs.
    """

    sets: Tensor
    kernels: tuple[Tensor, ...]
    bias: Tensor
    head: Tensor

    @classmethod
    def stack(
        cls,
        sets: Sequence[int],
        modules: Sequence[TaskModule],
        num_outputs: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> _Block:
        """Stack the parameters of k n modules, set after set; heads are padded to `num_outputs`."""

        def stacked(tensors: Sequence[Tensor]) -> Tensor:
            return torch.stack([tensor.to(dtype) for tensor in tensors]).unflatten(0, (len(sets), -1))

        layers = list(zip(*(_layers(module.pooler) for module in modules), strict=True))
        return cls(
            sets=torch.tensor(sets, device=device),
            kernels=tuple(stacked([layer.weight for layer in same]) for same in layers),
            bias=stacked([layer.bias for layer in layers[-1]]),
            head=stacked([F.pad(m.head.weight, (0, 0, 0, num_outputs - m.head.out_features)) for m in modules]).float(),
        )

    def logits(self, means: Tensor, max_tasks: int) -> Iterator[Tensor]:
        """Equation 3 of all tasks.

        Args:
            means: (G, D, B) Equation 1 of all sets.
            max_tasks: Of a chunk.

        Yields:
            (tasks, C, B) logits of chunks of tasks, set after set.
        """
        own = means[self.sets].to(self.bias.dtype)
        num_sets, num_tasks = self.bias.shape[:2]
        for first in range(0, num_sets, max(1, max_tasks // num_tasks)):
            sets = slice(first, first + max(1, max_tasks // num_tasks))
            for start in range(0, num_tasks, max_tasks):
                chunk = sets, slice(start, start + max_tasks)
                yield self._chunk_logits(own[sets], chunk)

    def _chunk_logits(self, means: Tensor, chunk: tuple[slice, slice]) -> Tensor:
        """(sets tasks, C, B) V tanh(W mean + b), from the sets' (sets, D, B) means."""
        bias, head = self.bias[chunk].flatten(0, 1), self.head[chunk].flatten(0, 1)
        kernel, *second = (each[chunk] for each in self.kernels)
        inputs = means
        if second:
            down = torch.bmm(kernel.flatten(1, 2), means)
            kernel, inputs = second[0].flatten(0, 1), down.view(len(bias), -1, means.shape[2])  # (sets tasks, R, B)
        else:
            kernel = kernel.flatten(1, 2)  # (sets, tasks D, D)
        shape = *bias.shape, means.shape[2]
        if has_kernels(inputs):
            from mtop_batch.model import triton_kernels

            return triton_kernels.head_logits(torch.bmm(kernel, inputs).view(shape), bias, head)
        pooled = torch.baddbmm(bias.view(len(kernel), -1, 1), kernel, inputs).tanh_().view(shape)
        with torch.autocast(pooled.device.type, enabled=False):
            return torch.bmm(head, pooled.float())


@dataclass(frozen=True)
class InferenceParts:
    """What `MTOPModel.all_tasks` needs of the parameters, put together once for many batches.

    Args:
        wanted: The tasks.
        dtype: That the poolers and heads compute in.
        prompts: (S, E)
        groups: (S,) The group of each prompt.
        passes: How those that do not belong to the context go through the encoder.
        stacked: Poolers and heads of the tasks with prompts; those of added tasks apart, so that they do not change the
            shapes in which the others are computed.
        pooled: Poolers and heads of the tasks that read the encoder's output at the first token, if there are any.
        attention: Those that read by attention, by their sizes.
        probes: Weights of the probes, if there are probes.
        at_tokens: The heads of token tasks.
        order: (n,) For each wanted task but those, its place among those of `stacked`, `pooled`, `attention` and
            `probes`, one after the other; None where they come in that order.
        at_context: Some task reads the encoder's outputs at the context.
        parameters: All that it was made of.
        versions: Counts the writes to them until then.
    """

    wanted: tuple[str, ...]
    dtype: torch.dtype
    prompts: Tensor
    groups: tuple[int, ...]
    passes: tuple[Pass, ...]
    stacked: tuple[StackedTasks, ...]
    pooled: StackedTasks | None
    attention: tuple[StackedAttention, ...]
    probes: StackedProbes | None
    at_tokens: Mapping[str, TokenHead]
    order: Tensor | None
    at_context: bool
    parameters: tuple[nn.Parameter, ...]
    versions: int

    @property
    def reads_text(self) -> bool:
        """Whether some task reads the encoder's outputs at the text."""
        return any(part is not None for part in (self.pooled, self.probes)) or bool(self.attention or self.at_tokens)

    def fits(self, wanted: tuple[str, ...], dtype: torch.dtype) -> bool:
        """Whether it was made for these tasks and this type, and no parameter has been written to since."""
        same = (wanted, dtype) == (self.wanted, self.dtype)
        return same and self.versions == num_versions(self.parameters)


def num_versions(parameters: Sequence[Tensor]) -> int:
    """How often the parameters have been written to."""
    return sum(parameter._version for parameter in parameters)


def _layers(pooler: Any) -> tuple[nn.Linear, ...]:
    """The pooler's layers in the order of their application; the last one has the bias."""
    return (pooler.down, pooler.up) if isinstance(pooler, LowRankPooler) else (pooler,)
