"""Adapters: they let the few prompts of an added task make full use of an encoder that is frozen.

An adapter gives each linear layer of the encoder a low-rank part, W x + B A x (LoRA, Hu et al. 2021), at the prompts of
its own task and nowhere else. Text and other tasks do not notice it, so it can come and go like the prompts. What the
task gains are queries, values and features of its own in every layer; prompts alone steer the first layer only.

Shapes: B texts, P prompts of a task, n tasks, R rank, I and O inputs and outputs of a linear layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import groupby

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


def adaptable_layers(backbone: PreTrainedModel) -> list[nn.Linear]:
    """The linear layers of the encoder's stack of layers, in a fixed order; not those of its embeddings."""
    stacks = [module for module in backbone.modules() if isinstance(module, nn.ModuleList)]
    largest = max(stacks, key=lambda stack: sum(parameter.numel() for parameter in stack.parameters()))
    return [module for module in largest.modules() if isinstance(module, nn.Linear)]


class Adapter(nn.Module):
    """The low-rank parts of one task.

    Args:
        layers: From `adaptable_layers`.
        rank: R
    """

    def __init__(self, layers: Sequence[nn.Linear], rank: int) -> None:
        super().__init__()
        self.rank = rank
        self.down = nn.ParameterList([torch.zeros(rank, layer.in_features) for layer in layers])
        self.up = nn.ParameterList([torch.zeros(layer.out_features, rank) for layer in layers])

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """Start so that nothing changes: A normal with variance 1 / I, B zero."""
        for down, up in zip(self.down, self.up, strict=True):
            down.copy_(torch.randn(down.shape, generator=generator) / down.shape[1] ** 0.5)
            up.zero_()


@dataclass(frozen=True)
class AdapterStack:
    """Adapters of one rank, of tasks that follow one another and have as many prompts each.

    Args:
        start: The first task's first place among the prompts that do not belong to the context.
        num_prompts: P
        down: (n, R, I) for each layer.
        up: (n, O, R) for each layer.
    """

    start: int
    num_prompts: int
    down: Sequence[Tensor]
    up: Sequence[Tensor]

    def add(self, layer: int, inputs: Tensor, outputs: Tensor) -> None:
        """Add the low-rank parts of a layer in place: (B, S, I) and (B, S, O) at the prompts outside the context."""
        num_tasks = len(self.down[layer])
        own = slice(self.start, self.start + num_tasks * self.num_prompts)
        x = inputs[:, own].unflatten(1, (num_tasks, self.num_prompts))
        thin = torch.einsum("bnpi,nri->bnpr", x, self.down[layer])
        outputs[:, own] += torch.einsum("bnpr,nor->bnpo", thin, self.up[layer]).flatten(1, 2)


def stack_adapters(
    tasks: Sequence[tuple[int, Adapter | None]], dtype: torch.dtype | None = None
) -> tuple[AdapterStack, ...]:
    """Put the adapters of tasks together, as they come in the sequence.

    Args:
        tasks: The number of prompts and the adapter, if it has one, of each task that is not in the context.
        dtype: Of the stacked tensors; None for the one they have.
    """
    stacks, start = [], 0
    for (num_prompts, rank), run in groupby(tasks, key=lambda task: (task[0], task[1].rank if task[1] else 0)):
        adapters = [adapter for _, adapter in run]
        present = [adapter for adapter in adapters if adapter is not None]
        if rank:
            down, up = (
                [torch.stack(layer).to(dtype or layer[0].dtype) for layer in zip(*parts, strict=True)]
                for parts in ([adapter.down for adapter in present], [adapter.up for adapter in present])
            )
            stacks.append(AdapterStack(start, num_prompts, down, up))
        start += num_prompts * len(adapters)
    return tuple(stacks)


@contextmanager
def adapted(backbone: PreTrainedModel, stacks: Sequence[AdapterStack]) -> Iterator[None]:
    """Let the linear layers of a backbone have the low-rank parts within the `with` block.

    Args:
        backbone: The one whose layers they were made for; the prompts that do not belong to the context run in it.
        stacks: None leave the backbone as it is.
    """
    hooks = [
        layer.register_forward_hook(partial(_add, stacks, index))
        for index, layer in enumerate(adaptable_layers(backbone) if stacks else ())
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _add(stacks: Sequence[AdapterStack], index: int, _: nn.Module, inputs: tuple[Tensor], outputs: Tensor) -> None:
    for stack in stacks:
        stack.add(index, inputs[0], outputs)
