"""What an MTOP model puts before the text: which prompts, in which order, and what that costs.

Shapes: S prompt positions, E width of the input embeddings.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mtop_batch.families import EncoderPasses
from mtop_batch.model.encoder.encode import Pass
from mtop_batch.model.encoder.inputs import no_prompts, num_layers
from mtop_batch.model.encoder.kv_cache import has_kv_cache
from mtop_batch.model.encoder.lora import stack_lora
from mtop_batch.model.flops import ForwardFlops
from mtop_batch.model.kinds.task_bank import MTOPParameters
from mtop_batch.model.parts.prompts import PromptLayout, prompt_layout
from mtop_batch.model.parts.text_heads import AttentionHead
from mtop_batch.model.parts.token_heads import TokenHead


class MTOPSequence(MTOPParameters):
    """The prompts of some of the model's tasks as a sequence."""

    def has_fixed_cache(self, tasks: Sequence[str]) -> bool:
        """Whether the tasks can train on a KV cache that is kept: all are isolated, of one family or none, none may
        still choose its prompts, and nothing else trains.
        """
        context = [parameter for _, parameter in self.context_tensors()]
        families = self.by_family(tasks)
        own = [p for family in families if family is not None for p in self.family_parameters(family)]
        trains = any(p.requires_grad for p in (*self.backbone.parameters(), *context, *own))
        is_one = len(families) < 2 and not self._choices()
        return has_kv_cache(self.backbone) and not trains and is_one and all(map(self._reads_cache, tasks))

    def by_family(self, tasks: Sequence[str]) -> dict[str | None, tuple[str, ...]]:
        """These tasks by their families; None for those of no family, which come first."""
        if not self.config.families:
            return {None: tuple(tasks)} if tasks else {}
        found: dict[str | None, list[str]] = {}
        families = {entry["task"]["name"]: entry.get("family") for entry in self.config.tasks}
        for name in sorted(tasks, key=lambda name: families.get(name) is not None):
            found.setdefault(families.get(name), []).append(name)
        return {family: tuple(names) for family, names in found.items()}

    @property
    def passes(self) -> EncoderPasses:
        """One for all tasks; with families the lower layers once, and their last layers once for each."""
        families = {entry["task"]["name"]: entry["family"] for entry in self.config.tasks if "family" in entry}
        layers = {family.name: family.layers for family in self.task_families}
        return EncoderPasses(False, num_layers(self.backbone), layers, families)

    def context_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Layers of inputs, and prompts, that all outputs depend on. Names of tasks do not count, the order of their
        prompts does.
        """
        yield from self.input_tensors()
        if self.shared_prompts is not None:
            yield "shared", self.shared_prompts
        for name in self._layout(()).owners:
            yield "joint", self.prompts(name)

    def task_settings(self, name: str) -> dict[str, Any]:
        """Whether the task is isolated, as only tasks of MTOP are or are not, how it attends to the text, where its
        prompts enter, and where its family has LoRA.
        """
        attention, prompt_layers = self._entry(name).get("attention"), self.config.prompt_layers
        lora = self.family_lora(self.family_of(name))
        return {
            "isolated": self._is_isolated(name),
            **({"attention": attention} if attention else {}),
            **({"prompt_layers": prompt_layers} if prompt_layers and self.reads_prompts(name) else {}),
            **({"family": {"layers": lora.num_layers, "scale": lora.scale}} if lora else {}),
        }

    def num_positions(self, tasks: Sequence[str]) -> int:
        """Prompts in the sequence of every text for these tasks."""
        return len(self._layout(tasks).groups)

    def tasks_that_size_batches(self, tasks: Sequence[str]) -> Sequence[str]:
        """Not those that were added, unless no other task is wanted.

        Their prompts go through the encoder by themselves, and other batches would change how the results of the
        earlier tasks are rounded.
        """
        added = {task.name for task in self.task_prompts if task.added}
        return [name for name in tasks if name not in added] or tasks

    def forward_flops(self, tasks: Sequence[str], *, vectors: bool = False) -> ForwardFlops:
        """What labelling a text with these tasks, and its vector if that is wanted, costs."""
        by_family = self.by_family(tasks)
        layers_of = {family.name: family.layers for family in self.task_families}
        branches = [
            self._flops(names, vectors=False).from_layer(num_layers(self.backbone) - layers_of[family], self.backbone)
            for family, names in by_family.items()
            if family is not None
        ]
        if not branches:
            return self._flops(tasks, vectors=vectors)
        if None in by_family or vectors:
            return replace(self._flops(by_family.get(None, ()), vectors=vectors), also=tuple(branches))
        lowest = min(layers_of[family] for family in by_family if family is not None)
        shared = self._flops((), vectors=True).to_layer(num_layers(self.backbone) - lowest, self.backbone)
        return replace(shared, also=tuple(branches))

    def _flops(self, tasks: Sequence[str], *, vectors: bool) -> ForwardFlops:
        """The same for tasks of one family, as if it had all layers."""
        groups = self._layout(tasks).groups
        share = (self.config.prompt_layers or num_layers(self.backbone)) / num_layers(self.backbone)
        modules = {task: self._module(task) for task in tasks}
        attention = [module.flops for module in modules.values() if isinstance(module, AttentionHead)]
        at_tokens = [module.head.weight.numel() for module in modules.values() if isinstance(module, TokenHead)]
        own = [
            parameter.numel() * (len(self.prompts(task)) if key.startswith("lora.") else 1)
            for task, module in modules.items()
            if not isinstance(module, AttentionHead | TokenHead)
            for key, parameter in self._task_state(task).items()
            if key.startswith("lora.") or key.endswith("weight")
        ]
        flops = ForwardFlops.of_encoder(
            self.backbone,
            per_text=2.0 * sum(own) + sum(per_text for per_text, _, _ in attention),
            num_context_prompts=groups.count(0),
            num_reading_prompts=(len(groups) - groups.count(0)) * share,
            ends_early=not vectors and has_kv_cache(self.backbone) and not self._needs_outputs_at_context(tasks),
        )
        return replace(
            flops,
            heads_per_token=sum(per_token for _, per_token, _ in attention) + 2.0 * sum(at_tokens),
            heads_per_pair=sum(per_pair for _, _, per_pair in attention),
        )

    def _needs_outputs_at_context(self, tasks: Sequence[str]) -> bool:
        """Whether one of these tasks reads what the encoder puts out at the text or at prompts that the text sees.

        Tasks that read the text itself and tasks with joint prompts do; one with isolated prompts reads the KV cache
        only.
        """
        return not all(map(self._reads_cache, tasks))

    def _reads_cache(self, name: str) -> bool:
        """Whether a task reads what the text gives other positions, and none of its outputs."""
        return self._is_isolated(name) and self.reads_prompts(name)

    def _layout(self, wanted: Sequence[str]) -> PromptLayout:
        return prompt_layout(self.task_prompts, self.config.shared_prompts, wanted)

    def _prompts(self, layout: PromptLayout, trained: str | None = None) -> Tensor:
        """(S, E) The prompts of the sequence; if a task is trained, those it does not read get no gradients."""
        read = self.prompts(trained) if trained in layout.positions else None
        stopped = [p if trained is None or p is read else p.detach() for p in map(self.prompts, layout.owners)]
        parts = stopped if self.shared_prompts is None else [self.shared_prompts, *stopped]
        return torch.cat(parts) if parts else no_prompts(self.backbone)

    def _passes(self, layout: PromptLayout, dtype: torch.dtype | None = None) -> tuple[Pass, ...]:
        """How isolated prompts go through the encoder, with their LoRA: in that type, or their own."""
        owners = [(name, layout.positions[name]) for name in layout.owners]
        return tuple(
            Pass(
                len(own),
                stack_lora([(len(at), self.task_module(name).lora) for name, at in owners if at.start in own], dtype),
                self.config.prompt_layers,
            )
            for own in layout.passes
        )
