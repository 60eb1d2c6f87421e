"""LoRA at the prompts of one task, and LoRA of a family of tasks.

LoRA (Hu et al. 2021) makes W x of a linear layer W x + B A x. That of a task works at the prompts of its own task and
nowhere else: it lets an added task make full use of an encoder that is frozen. The text and the other tasks do not see
it, so it can come and go like the prompts. The task gains queries, values and features of its own in every layer;
prompts alone steer the first layer only.

That of a family works at all positions, in the last layers of the encoder, and is scaled: W x + (alpha / R) B A x. So
each family of tasks has an encoder of its own, which shares the lower layers with the others (task-primary LoRA, Zhu et
al. 2025).

Shapes: B texts, P prompts of a task, n tasks, R rank, I and O inputs and outputs of a linear layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import groupby

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from mtop_batch.errors import ConfigError
from mtop_batch.model.encoder.inputs import encoder_layers
from mtop_batch.model.encoder.kv_cache import has_kv_cache


def lora_layers(backbone: PreTrainedModel, last: int | None = None) -> list[nn.Linear]:
    """The linear layers of the encoder's stack of layers, in a fixed order; not those of its embeddings.

    Args:
        backbone: The encoder.
        last: Of so many of its last layers; None for all.
    """
    layers = encoder_layers(backbone)
    layers = layers if last is None else layers[len(layers) - last :]
    return [module for module in layers.modules() if isinstance(module, nn.Linear)]


class LoRA(nn.Module):
    """A and B, for every linear layer.

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


class FamilyLoRA(nn.Module):
    """The LoRA of a family of tasks.

    Args:
        backbone: The encoder that it is for; it is not kept.
        rank: R
        alpha: What B A is multiplied with, times R.
        num_layers: In how many of the encoder's last layers it is.
    """

    def __init__(self, backbone: PreTrainedModel, rank: int, alpha: float, num_layers: int) -> None:
        super().__init__()
        self.num_layers = num_layers
        self.scale = alpha / rank
        self.lora = LoRA(lora_layers(backbone, num_layers), rank)

    def deltas(self) -> list[Tensor]:
        """(O, I) What is added to the weight of each of the linear layers."""
        return [self.scale * (b @ a) for a, b in zip(self.lora.A, self.lora.B, strict=True)]

    def add(self, layer: int, inputs: Tensor, outputs: Tensor) -> Tensor:
        """(..., O) The outputs of a layer with (alpha / R) B A x, of its inputs (..., I)."""
        a, b = self.lora.A[layer].to(inputs.dtype), self.lora.B[layer].to(inputs.dtype)
        return outputs + self.scale * F.linear(F.linear(inputs, a), b)


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


MergedWeights = Mapping[nn.Linear, nn.Parameter]
"""Linear layers of an encoder, and their weights with the LoRA of a family in them."""


def merged_weights(backbone: PreTrainedModel, family: FamilyLoRA) -> MergedWeights:
    """W + (alpha / R) B A of the layers that a family changes, in the type of W: copies, for inference."""
    # They may have to outlive the inference mode in which they are asked for.
    with torch.inference_mode(False), torch.no_grad():
        return {
            layer: nn.Parameter((layer.weight.float() + delta.float()).to(layer.weight.dtype), requires_grad=False)
            for layer, delta in zip(lora_layers(backbone, family.num_layers), family.deltas(), strict=True)
        }


@contextmanager
def as_family(
    backbone: PreTrainedModel, family: FamilyLoRA | None, merged: MergedWeights | None = None
) -> Iterator[None]:
    """Within the `with` block a backbone is that of a family, at all positions that run in it.

    Args:
        backbone: The one whose layers the LoRA was made for.
        family: None leaves the backbone as it is.
        merged: Its weights with the LoRA in them, where nothing learns; None to compute W x and B A x apart.

    Raises:
        ConfigError: The backbone runs its layers again for their gradients, when the block is over.
    """
    if family is None:
        yield
        return
    if not has_kv_cache(backbone):
        raise ConfigError(
            f"{type(backbone).__name__} has no KV cache, which families need: turn off gradient checkpointing"
        )
    if merged is not None:
        with _with_weights(merged):
            yield
        return
    layers = lora_layers(backbone, family.num_layers)
    hooks = [layer.register_forward_hook(partial(_add_of_family, family, index)) for index, layer in enumerate(layers)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _with_weights(weights: MergedWeights) -> Iterator[None]:
    """Within the `with` block layers have other weights."""
    own = {layer: layer.weight for layer in weights}
    try:
        for layer, weight in weights.items():
            layer.weight = weight
        yield
    finally:
        for layer, before in own.items():
            layer.weight = before


def _add_of_family(family: FamilyLoRA, index: int, _: nn.Module, inputs: tuple[Tensor], outputs: Tensor) -> Tensor:
    return family.add(index, inputs[0], outputs)


def _add(stacks: Sequence[LoRAStack], index: int, _: nn.Module, inputs: tuple[Tensor], outputs: Tensor) -> None:
    for stack in stacks:
        stack.add(index, inputs[0], outputs)
