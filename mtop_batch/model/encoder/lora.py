"""LoRA at the prompts of one task: it lets an added task make full use of an encoder that is frozen.

LoRA (Hu et al. 2021) makes W x of a linear layer W x + B A x, here at the prompts of its own task and nowhere else. The
text and the other tasks do not see it, so it can come and go like the prompts. The task gains queries, values and
features of its own in every layer; prompts alone steer the first layer only.

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

from mtop_batch.model.encoder.inputs import encoder_layers


def lora_layers(backbone: PreTrainedModel) -> list[nn.Linear]:
    """The linear layers of the encoder's stack of layers, in a fixed order; not those of its embeddings."""
    return [module for module in encoder_layers(backbone).modules() if isinstance(module, nn.Linear)]


class LoRA(nn.Module):
    """A and B of one task, for every linear layer.

    Args:
        layers: From `lora_layers`.
        rank: R
    """

    def __init__(self, layers: Sequence[nn.Linear], rank: int) -> None:
        super().__init__()
        self.rank = rank
        self.A = nn.ParameterList([torch.zeros(rank, layer.in_features) for layer in layers])
        self.B = nn.ParameterList([torch.zeros(layer.out_features, rank) for layer in layers])

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """Start so that nothing changes: A normal with variance 1 / I, B zero."""
        for a, b in zip(self.A, self.B, strict=True):
            a.copy_(torch.randn(a.shape, generator=generator) / a.shape[1] ** 0.5)
            b.zero_()


@dataclass(frozen=True)
class LoRAStack:
    """LoRA of one rank, of tasks that follow one another and have as many prompts each.

    Args:
        start: The first task's first place among the prompts that do not belong to the context.
        num_prompts: P
        A: (n, R, I) for each layer.
        B: (n, O, R) for each layer.
    """

    start: int
    num_prompts: int
    A: Sequence[Tensor]
    B: Sequence[Tensor]

    def add(self, layer: int, inputs: Tensor, outputs: Tensor) -> None:
        """Add B A x, of (B, S, I) inputs of a layer at the prompts outside the context, to its (B, S, O) outputs."""
        num_tasks = len(self.A[layer])
        own = slice(self.start, self.start + num_tasks * self.num_prompts)
        x = inputs[:, own].unflatten(1, (num_tasks, self.num_prompts))
        ax = torch.einsum("bnpi,nri->bnpr", x, self.A[layer])
        outputs[:, own] += torch.einsum("bnpr,nor->bnpo", ax, self.B[layer]).flatten(1, 2)


def stack_lora(tasks: Sequence[tuple[int, LoRA | None]], dtype: torch.dtype | None = None) -> tuple[LoRAStack, ...]:
    """Stack the LoRA of tasks, as they come in the sequence.

    Args:
        tasks: The number of prompts and the LoRA, if it has one, of each task that is not in the context.
        dtype: Of the stacked tensors; None for the one they have.
    """
    stacks, start = [], 0
    for (num_prompts, rank), run in groupby(tasks, key=lambda task: (task[0], task[1].rank if task[1] else 0)):
        members = [lora for _, lora in run]
        present = [lora for lora in members if lora is not None]
        if rank:
            a, b = (
                [torch.stack(layer).to(dtype or layer[0].dtype) for layer in zip(*parts, strict=True)]
                for parts in ([lora.A for lora in present], [lora.B for lora in present])
            )
            stacks.append(LoRAStack(start, num_prompts, a, b))
        start += num_prompts * len(members)
    return tuple(stacks)


@contextmanager
def with_lora(backbone: PreTrainedModel, stacks: Sequence[LoRAStack]) -> Iterator[None]:
    """Within the `with` block the linear layers of a backbone have LoRA.

    Args:
        backbone: The one whose layers they were made for; the prompts that do not belong to the context run in it.
        stacks: An empty sequence leaves the backbone as it is.
    """
    hooks = [
        layer.register_forward_hook(partial(_add, stacks, index))
        for index, layer in enumerate(lora_layers(backbone) if stacks else ())
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _add(stacks: Sequence[LoRAStack], index: int, _: nn.Module, inputs: tuple[Tensor], outputs: Tensor) -> None:
    for stack in stacks:
        stack.add(index, inputs[0], outputs)
