"""Families of tasks in one encoder: the lower layers once for all of them, the last layers once for each.

A family is the encoder with LoRA in its last k layers (`FamilyLoRA`). Below these layers it computes what the encoder
itself does. So texts go through the lower layers once, and each family goes on from there: with L layers, F families of
k layers each and no other task wanted, that costs (L - k + F k) / L of a pass. Tasks of no family read the encoder as
it is, and count as a family without LoRA.

It works with encoders that have a KV cache (`has_kv_cache`) and layers of their own: ALBERT runs one layer repeatedly.

Shapes: B texts, C prompts of the context, S isolated prompts, T text positions, E width of the input embeddings,
D hidden width, L layers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mtop_batch.errors import ConfigError
from mtop_batch.model.encoder.encode import (
    Pass,
    encode_at_once,
    kv_cache_of,
    ragged_batch,
    read_kv_cache,
)
from mtop_batch.model.encoder.inputs import Text, encoder_layers, num_layers
from mtop_batch.model.encoder.kv_cache import KeyValues, has_kv_cache, record_only, recording
from mtop_batch.model.encoder.lora import FamilyLoRA, MergedWeights, as_family


@dataclass(frozen=True)
class Branch:
    """What a family, or the tasks of none, want of an encoder.

    Args:
        family: Its LoRA; None for tasks of no family.
        prompts: (S, E) The isolated prompts of its tasks.
        groups: (S,) The group of each.
        passes: How these prompts go through the encoder.
        at_context: Whether the outputs at the context are wanted.
        at_text: Whether those at the text are.
        merged: The family's weights with its LoRA in them, where nothing learns (`as_family`).
    """

    family: FamilyLoRA | None
    prompts: Tensor
    groups: Sequence[int]
    passes: Sequence[Pass]
    at_context: bool
    at_text: bool = True
    merged: MergedWeights | None = None

    def first_layer(self, num_layers: int) -> int:
        """The lowest layer that is not the encoder's own; L for tasks of no family."""
        return num_layers if self.family is None else num_layers - self.family.num_layers


def check_families(backbone: PreTrainedModel, layers_of: Mapping[str, int]) -> None:
    """Refuse families that an encoder cannot have.

    Args:
        backbone: The encoder.
        layers_of: k of each family, by its name.

    Raises:
        ConfigError: It has no KV cache, or one layer that runs again and again, or fewer layers than a family changes.
    """
    if not layers_of:
        return
    most = len(encoder_layers(backbone))
    if most != num_layers(backbone):
        raise ConfigError(
            f"families cannot work with {type(backbone).__name__}, whose layers have the same weights: what the last "
            "ones learn would change all; choose an encoder such as BERT, ELECTRA, RoBERTa or ModernBERT"
        )
    if not has_kv_cache(backbone):
        raise ConfigError(
            f"{type(backbone).__name__} has no KV cache, which families need: turn off gradient checkpointing, or "
            "choose an encoder such as BERT, ELECTRA, RoBERTa or ModernBERT"
        )
    for name, layers in layers_of.items():
        if layers > most:
            raise ConfigError(
                f"family {name!r}: layers = {layers} is more than the layers of {type(backbone).__name__}; "
                f"allowed: up to {most}"
            )


def encode_branches(
    backbone: PreTrainedModel, context: Tensor, text: Text, branches: Sequence[Branch]
) -> list[tuple[Tensor, Tensor]]:
    """Run the encoder over the context once up to where families part, and on from there for each branch.

    Args:
        backbone: One that `check_families` accepted.
        context: (C, E) The prompts that the text sees.
        text: Of B texts.
        branches: At least one; at most one of them has no family.

    Returns:
        What `mtop_batch.model.encoder.encode` returns, for each branch: (B, C + S, D) outputs at the prompts, and
        (B, T, D) at the text, or (B, 0, D) if those at the context are not wanted.
    """
    layers, batch = num_layers(backbone), ragged_batch(backbone, text, len(context))

    def run(**arguments: Any) -> tuple[Tensor, Tensor]:
        return encode_at_once(backbone, context, text, None, batch, **arguments)

    def read(branch: Branch, key_values: KeyValues, at_context: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
        if not len(branch.prompts) and at_context is not None:
            return at_context
        kv_cache = kv_cache_of(key_values, text, len(context), batch)
        with as_family(backbone, branch.family, branch.merged):
            at_own = read_kv_cache(backbone, branch.prompts, kv_cache, branch.groups, branch.passes)
        if at_context is None:
            return nn.functional.pad(at_own, (0, 0, len(context), 0)), at_own[:, :0]
        return torch.cat([at_context[0], at_own], dim=1), at_context[1]

    lower: KeyValues = []
    at_context: tuple[Tensor, Tensor] | None = None
    plain = next((branch for branch in branches if branch.family is None), None)
    starts = {branch.first_layer(layers) for branch in branches if branch.family is not None}
    with _inputs_of_layers(backbone, starts, stops=plain is None) as hidden:
        if plain is None:
            run(**recording(lower))
        else:
            at_context, lower = _outputs(run, layers, plain)
    found = []
    for branch in branches:
        if branch.family is None:
            found.append(read(branch, lower, at_context))
            continue
        start = branch.first_layer(layers)
        with as_family(backbone, branch.family, branch.merged), _going_on(backbone, start, hidden[start]):
            own_context, upper = _outputs(run, layers - start, branch)
        found.append(read(branch, [*lower[:start], *upper], own_context))
    return found


def _outputs(
    run: Callable[..., tuple[Tensor, Tensor]], num_layers: int, branch: Branch
) -> tuple[tuple[Tensor, Tensor] | None, KeyValues]:
    """A branch's outputs at the context, None if they are not wanted, and keys and values of so many layers."""
    if not branch.at_context and len(branch.prompts):
        return None, record_only(num_layers, lambda arguments: run(**arguments))
    key_values: KeyValues = []
    return run(**recording(key_values)), key_values


class _Reached(Exception):
    """The last layer that is wanted would begin."""


@contextmanager
def _inputs_of_layers(
    backbone: PreTrainedModel, starts: Collection[int], *, stops: bool
) -> Iterator[dict[int, Tensor]]:
    """Within the `with` block, what goes into these layers is kept, by their number.

    Args:
        backbone: The encoder, run once in the block.
        starts: Layers, 0 for the lowest.
        stops: The block ends when the highest of them would begin.
    """
    hidden: dict[int, Tensor] = {}
    layers, highest = encoder_layers(backbone), max(starts)

    def keep(start: int, inputs: tuple[Tensor, ...]) -> None:
        hidden[start] = inputs[0]
        if stops and start == highest:
            raise _Reached

    hooks = [
        layers[start].register_forward_pre_hook(lambda _, inputs, start=start: keep(start, inputs)) for start in starts
    ]
    try:
        with suppress(_Reached):
            yield hidden
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _going_on(backbone: PreTrainedModel, start: int, hidden: Tensor) -> Iterator[None]:
    """Within the `with` block the encoder has its layers from `start` on, and these begin with what is given.

    The encoder's own forward runs: its masks, positions and last norm are those of every pass. Its embeddings run too,
    for nothing, which costs little.
    """
    layers = encoder_layers(backbone)
    owner, name = next(
        (module, name) for module in backbone.modules() for name, child in module.named_children() if child is layers
    )
    upper = layers[start:]
    hook = upper[0].register_forward_pre_hook(lambda _, inputs: (hidden, *inputs[1:]))
    setattr(owner, name, upper)
    try:
        yield
    finally:
        setattr(owner, name, layers)
        hook.remove()
