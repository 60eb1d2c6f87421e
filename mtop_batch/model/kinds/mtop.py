"""MTOP: one encoder pass over the prompts of all tasks and the text gives the labels of all tasks.

Follows Huang et al., "All Birds with One Stone: Multi-task Text Classification for Efficient Inference with One
Forward Pass", sections 4.2 to 4.4: the tasks' prompts stand before the text, a step on one task moves the prompts of
that task only (gradient stop), and each task reads the encoder's outputs at its own prompts through its own pooler
and head. Tasks of one prompt group share their prompts, so that the sequence does not grow with every task; their
poolers and heads are their own.

Shapes: B texts, T text positions, S prompt positions, N tasks, C outputs of the task with the most.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Self

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mtop_batch.errors import TaskError
from mtop_batch.families import Family
from mtop_batch.model.encoder.backbone import backbone_config_dict, check_backbone, check_prompt_layers
from mtop_batch.model.encoder.encode import Pass, encode, encode_kv_cache, encode_with_kv_cache
from mtop_batch.model.encoder.families import Branch
from mtop_batch.model.encoder.inputs import Text
from mtop_batch.model.encoder.kv_cache import KVCache, use_kv_cache_attention
from mtop_batch.model.encoder.lora import as_family, stack_lora
from mtop_batch.model.encoder.masks import index_of
from mtop_batch.model.kinds.base import INPUTS, Outputs, generator_of
from mtop_batch.model.kinds.config import MTOPConfig, PromptAttention
from mtop_batch.model.kinds.prompt_sequence import MTOPSequence
from mtop_batch.model.parts.document_vectors import Probe, StackedProbes, document_vectors, join_logits
from mtop_batch.model.parts.heads import TaskModule
from mtop_batch.model.parts.prompts import GroupChoice, random_prompts
from mtop_batch.model.parts.stacked_heads import InferenceParts, StackedTasks, num_versions
from mtop_batch.model.parts.text_heads import AttentionHead, StackedAttention
from mtop_batch.model.parts.token_heads import TokenHead
from mtop_batch.model.parts.vector_inputs import PlacedVectors
from mtop_batch.tasks import Task, select_tasks


class MTOPModel(MTOPSequence):
    """The model; make one with `from_backbone` or load one with `from_pretrained`.

    Args:
        config: Its backbone is built with random weights unless one is given.
        backbone: The encoder to use.
    """

    def __init__(self, config: MTOPConfig, backbone: PreTrainedModel | None = None) -> None:
        super().__init__(config, backbone)
        self._inference_parts: dict[str | None, InferenceParts] = {}

    @classmethod
    def from_backbone(
        cls,
        backbone: PreTrainedModel,
        tasks: Sequence[Task],
        *,
        prompts_per_task: int = 2,
        shared_prompts: int = 0,
        prompt_attention: PromptAttention = "isolated",
        prompt_groups: Mapping[str, str] | None = None,
        pooler_rank: int = 0,
        attention_widths: Mapping[str, int] | None = None,
        attention_heads: int = 2,
        families: Sequence[Family] = (),
        family_of: Mapping[str, str] | None = None,
        stop_gradient: bool = True,
        prompt_layers: int = 0,
        inputs: Sequence[Mapping[str, Any]] = (),
        max_tokens: int = 128,
        seed: int = 0,
    ) -> MTOPModel:
        """A model around a pretrained encoder, its prompts, poolers and heads drawn at random (section 6.1, "RD").

        A task's draws depend on the seed and its name only, those of shared prompts on the seed and the prompt group's
        name, so they are the same whatever other tasks there are. The backbone is taken over, not copied. Like
        `from_pretrained`, this returns the model in evaluation mode.

        Args:
            backbone: As `mtop_batch.model.encoder.backbone.load_backbone` returns it.
            tasks: At least one.
            prompts_per_task: The paper's L_P.
            shared_prompts: Prompts that belong to no task and learn from all.
            prompt_attention: "isolated": the text sees text and shared prompts only; a task's prompts see these and
                each other. "joint": prompts, text and the other tasks' prompts all see one another (the paper).
            prompt_groups: Task -> prompt group (letters, digits, `_` and `-`), of the tasks that share prompts; the
                others have prompts of their own (the paper).
            pooler_rank: Of the poolers' kernels, below the backbone's width; 0 for full ones (the paper).
            attention_widths: Task -> width, of tasks that read by attention (`add_tasks`).
            attention_heads: Of such tasks.
            families: Of tasks; each has LoRA in the last layers of the encoder.
            family_of: Task -> family, of the tasks that have one.
            stop_gradient: False lets a task's loss move all prompts (the paper's ablation, section 6.5).
            prompt_layers: Prompts enter at the last so many layers, and read the text's keys and values there; 0 for
                all layers. They must be isolated then.
            inputs: What is read beside each text (`mtop_batch.tasks.VectorInput`, as a dictionary each).
            max_tokens: Longest text, special tokens included.
            seed: Of the random draws.

        Raises:
            ConfigError: The backbone or a setting cannot work.
            TaskError: There is no task, two have the same name, a prompt group is given for none of them, or families
                do not fit.
        """
        model = cls.without_tasks(
            backbone,
            shared_prompts=shared_prompts,
            prompt_attention=prompt_attention,
            pooler_rank=pooler_rank,
            stop_gradient=stop_gradient,
            prompt_layers=prompt_layers,
            inputs=inputs,
            max_tokens=max_tokens,
            seed=seed,
        )
        model.add_tasks(
            tasks,
            prompts_per_task=prompts_per_task,
            prompt_groups=prompt_groups,
            attention_widths=attention_widths,
            attention_heads=attention_heads,
            families=families,
            family_of=family_of,
            seed=seed,
        )
        return model

    @classmethod
    def without_tasks(
        cls,
        backbone: PreTrainedModel,
        *,
        shared_prompts: int = 0,
        prompt_attention: PromptAttention = "isolated",
        pooler_rank: int = 0,
        stop_gradient: bool = True,
        prompt_layers: int = 0,
        inputs: Sequence[Mapping[str, Any]] = (),
        max_tokens: int = 128,
        seed: int = 0,
    ) -> MTOPModel:
        """A model to which `add_tasks` gives its first tasks; the arguments are those of `from_backbone`.

        Raises:
            ConfigError: The backbone or a setting cannot work.
        """
        use_kv_cache_attention(backbone)
        check_backbone(backbone, max_tokens, pooler_rank)
        check_prompt_layers(backbone, prompt_layers)
        config = MTOPConfig(
            backbone_config=backbone_config_dict(backbone.config),
            shared_prompts=shared_prompts,
            prompt_attention=prompt_attention,
            pooler_rank=pooler_rank,
            stop_gradient=stop_gradient,
            prompt_layers=prompt_layers,
            max_tokens=max_tokens,
            inputs=[dict(spec) for spec in inputs],
        )
        model = cls(config, backbone)
        model._draw_inputs(generator_of(seed, INPUTS))
        if model.shared_prompts is not None:
            shared = random_prompts(model.shared_prompts.shape, generator_of(seed, ""))
            model.shared_prompts.data = shared.to(backbone.device, backbone.dtype)
        model.to(device=backbone.device, dtype=backbone.dtype).eval()  # type: ignore[call-arg]
        return model

    def task_logits(self, task: str, text: Text) -> Tensor:
        """(B, C) The logits of one task; (B, T, C) of a token task.

        With `stop_gradient`, the loss of one task reaches the backbone, the shared prompts, that task's own parameters,
        the prompts of its prompt group and the LoRA of its family; those of the other tasks get no gradient at all
        (None, not zero), so that no optimiser moves them.

        Raises:
            TaskError: There is no such task.
        """
        module = self._module(task)
        if isinstance(module, TaskModule) and module.choice is not None:
            return module(module.choice(self._at_groups(task, module.choice, text)))
        layout = self._layout([task])
        with self._as_family(self.family_of(task)):
            outputs, at_text = encode(
                self.backbone,
                self._prompts(layout, trained=task if self.config.stop_gradient else None),
                text.input_ids,
                text.attention_mask,
                text.token_type_ids,
                layout.groups,
                passes=self._passes(layout),
                at_context=self._needs_outputs_at_context([task]),
                vectors=text.vectors,
                places=text.places,
            )
        if isinstance(module, Probe):
            return module(document_vectors(at_text, text.attention_mask))
        if isinstance(module, AttentionHead):
            return module(at_text, text.attention_mask)
        if isinstance(module, TokenHead):
            return module(at_text)
        if not self.reads_prompts(task):
            return module(at_text[:, :1])
        own = layout.positions[task]
        return module(outputs[:, own.start : own.stop])

    def _at_groups(self, task: str, choice: GroupChoice, text: Text) -> Tensor:
        """(B, G, P, D) The outputs at the prompts of all groups that a task may choose; those of its own train."""
        groups = [self.group_prompts(group) for group in choice.groups]
        stops, shared = self.config.stop_gradient, self.shared_prompts
        stopped = [p.detach() if stops and place != choice.best else p for place, p in enumerate(groups)]
        numbers = [number for number, p in enumerate(groups, 1) for _ in p]
        num_shared = 0 if shared is None else len(shared)
        with self._as_family(self.family_of(task)):
            outputs, _ = encode(
                self.backbone,
                torch.cat(stopped if shared is None else [shared, *stopped]),
                text.input_ids,
                text.attention_mask,
                text.token_type_ids,
                (*[0] * num_shared, *numbers),
                passes=(Pass(len(numbers), num_layers=self.config.prompt_layers),),
                at_context=False,
                vectors=text.vectors,
                places=text.places,
            )
        return outputs[:, num_shared:].unflatten(1, (len(groups), -1))

    def cached_logits(self, task: str, kv_cache: KVCache) -> Tensor:
        """(B, C) The logits of one isolated task from the KV cache of texts.

        Raises:
            TaskError: There is no such task, or it is not isolated, or it reads the text's own outputs.
        """
        if not self._reads_cache(task):
            raise TaskError(f"task {task!r} reads more than the KV cache; pass its texts")
        own_prompts, module = self.prompts(task), self.task_module(task)
        lora = stack_lora([(len(own_prompts), module.lora)])
        with self._as_family(self.family_of(task)):
            outputs = encode_with_kv_cache(self.backbone, own_prompts, kv_cache, [1] * len(own_prompts), lora)
        return module(outputs)

    def cache(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        input_vectors: PlacedVectors | None = None,
        *,
        tasks: Sequence[str] = (),
    ) -> KVCache:
        """What isolated tasks of one family, or of none, read of texts: the same for all of them, and for as long as
        the context does not train.

        Args:
            input_ids: (B, T) Padded on the right.
            attention_mask: (B, T) 1 for tokens, 0 for padding.
            token_type_ids: (B, T) 0 and 1 for the two texts of a pair.
            input_vectors: What stands beside the texts (`text`).
            tasks: Those that read it; without any it is that of tasks of no family.
        """
        prompts = self._prompts(self._layout(()))
        family, *others = self.by_family(tasks) or [None]
        if others:
            raise ValueError(f"tasks {list(tasks)} are of several families, and each has a KV cache of its own")
        text = self.text(input_ids, attention_mask, token_type_ids, input_vectors=input_vectors)
        with self._as_family(family):
            return encode_kv_cache(self.backbone, prompts, *text).last(self.config.prompt_layers)

    def _as_family(self, family: str | None) -> AbstractContextManager[None]:
        """The context in which the backbone is that of a family."""
        lora = self.family_lora(family)
        return as_family(self.backbone, lora, self.merged_weights(lora))

    def outputs(self, wanted: tuple[str, ...], text: Text, *, vectors: bool) -> Outputs:
        """Logits and document vectors by one pass of the encoder (`MultiTaskModel.outputs`); with families its last
        layers run once for each of them.

        Prompts of isolated tasks that are not wanted are left out. Those of the context are always there, because the
        wanted outputs depend on them.
        """
        if self.training:
            self.follow_choices()
        by_family = self.by_family(wanted)
        if set(by_family) <= {None}:
            parts = self._parts(None, wanted)
            at_prompts, at_text = self.encode(
                parts.prompts,
                text,
                parts.groups,
                passes=parts.passes,
                at_context=vectors or parts.at_context,
                at_text=vectors or parts.reads_text,
            )
            return _read(parts, at_prompts, at_text, text, vectors=vectors)
        if vectors:
            by_family = {None: (), **by_family}
        families = {family: self._parts(family, names) for family, names in by_family.items()}
        context, branches = self._branches(families, vectors=vectors)
        found = [
            _read(parts, *outputs, text, vectors=vectors and family is None)
            for (family, parts), outputs in zip(
                families.items(), self.encode_branches(context, text, branches), strict=True
            )
        ]
        at_tokens = {name: logits for outputs in found for name, logits in outputs.at_tokens.items()}
        of_texts = (name for names in by_family.values() for name in names if name not in at_tokens)
        places = {name: place for place, name in enumerate(of_texts)}
        order = [places[name] for name in wanted if name not in at_tokens]
        in_order = order == sorted(order)
        logits = join_logits(
            [outputs.logits for outputs in found], None if in_order else index_of(tuple(order), text.input_ids.device)
        )
        return Outputs(logits, found[0].vectors, at_tokens)

    def _branches(self, families: Mapping[str | None, InferenceParts], *, vectors: bool) -> tuple[Tensor, list[Branch]]:
        """The prompts of the context, and what each family wants of the encoder."""
        prompts, num_in_context = next((parts.prompts, parts.groups.count(0)) for parts in families.values())
        branches = []
        for family, parts in families.items():
            wants_text = vectors and family is None
            lora = self.family_lora(family)
            branches.append(
                Branch(
                    family=lora,
                    merged=self.merged_weights(lora),
                    prompts=parts.prompts[num_in_context:],
                    groups=parts.groups[num_in_context:],
                    passes=parts.passes,
                    at_context=wants_text or parts.at_context,
                    at_text=wants_text or parts.reads_text,
                )
            )
        return prompts[:num_in_context], branches

    def vector_outputs(self, wanted: tuple[str, ...], vectors: Tensor) -> Tensor:
        """(B, n, C) What probes say of vectors."""
        return StackedProbes.stack([self._module(name).state_dict(keep_vars=True) for name in wanted])(vectors)

    def _parts(self, family: str | None, wanted: tuple[str, ...]) -> InferenceParts:
        """Prompts and stacked heads of wanted tasks of a family; kept in evaluation while no parameter changes.

        They are kept in the type that the encoder computes in, so that large stacks are not converted for every batch.
        """
        device_type, dtype = self.backbone.device.type, self.backbone.dtype
        if torch.is_autocast_enabled(device_type):
            dtype = torch.get_autocast_dtype(device_type)
        kept = self._inference_parts.get(family)
        if kept is not None and not torch.is_grad_enabled() and kept.fits(wanted, dtype):
            return kept
        select_tasks(wanted, self.task_names)
        layout = self._layout(wanted)
        together: dict[bool, list[str]] = {}
        for task in self.task_prompts:
            if task.name in wanted and task.name in layout.positions:
                together.setdefault(task.added, []).append(task.name)
        prompted = [name for names in together.values() for name in names]
        others = {name: self._module(name) for name in wanted if name not in layout.positions}
        pooled = {name: module for name, module in others.items() if isinstance(module, TaskModule)}
        attention: dict[tuple[int, int], dict[str, AttentionHead]] = {}
        for name, module in others.items():
            if isinstance(module, AttentionHead):
                attention.setdefault(module.size, {})[name] = module
        attending = [name for modules in attention.values() for name in modules]
        at_tokens = {name: module for name, module in others.items() if isinstance(module, TokenHead)}
        probes = [name for name, module in others.items() if isinstance(module, Probe)]
        weights = [others[name].state_dict(keep_vars=True) for name in probes]
        places = {name: place for place, name in enumerate([*prompted, *pooled, *attending, *probes])}
        order = [places[name] for name in wanted if name not in at_tokens]
        shared = () if self.shared_prompts is None else (self.shared_prompts,)
        parameters = (*shared, *self.prompt_groups.parameters(), *self.task_modules.parameters())
        parts = InferenceParts(
            wanted=wanted,
            dtype=dtype,
            prompts=self._prompts(layout),
            groups=layout.groups,
            passes=self._passes(layout, dtype),
            stacked=tuple(
                StackedTasks.stack(
                    [self.task_module(name) for name in names], [layout.positions[name] for name in names], dtype
                )
                for names in together.values()
            ),
            pooled=StackedTasks.stack(list(pooled.values()), [range(1)] * len(pooled), dtype) if pooled else None,
            attention=tuple(StackedAttention.stack(list(modules.values()), dtype) for modules in attention.values()),
            probes=StackedProbes.stack(weights) if probes else None,
            at_tokens=at_tokens,
            order=None if order == sorted(order) else torch.tensor(order, device=self.backbone.device),
            at_context=self._needs_outputs_at_context(wanted),
            parameters=parameters,
            versions=num_versions(parameters),
        )
        if self.training or torch.is_grad_enabled():
            self._inference_parts = {}
        else:
            self._inference_parts[family] = parts
        return parts

    def _apply(self, *args: Any, **kwargs: Any) -> Self:
        self._inference_parts = {}  # the model moves to another device or type
        return super()._apply(*args, **kwargs)

    def train(self, mode: bool = True) -> Self:
        """Switch between training and evaluation; training forgets what evaluation had stacked.

        Tasks that may still choose a prompt group are in the one that they would choose now.
        """
        self.follow_choices()
        if mode:
            self._inference_parts = {}
        return super().train(mode)

    def _tasks_changed(self) -> None:
        self._inference_parts = {}


def _read(parts: InferenceParts, at_prompts: Tensor, at_text: Tensor, text: Text, *, vectors: bool) -> Outputs:
    """What the heads of tasks of one family make of the encoder's outputs."""
    needs_vectors = vectors or parts.probes is not None
    found = document_vectors(at_text, text.attention_mask) if needs_vectors else at_text.new_empty(len(at_text), 0)
    logits = [stacked(at_prompts) for stacked in parts.stacked]
    if parts.pooled is not None:
        logits.append(parts.pooled(at_text[:, :1]))
    logits += [attention(at_text, text.attention_mask) for attention in parts.attention]
    if parts.probes is not None:
        logits.append(parts.probes(found))
    return Outputs(
        join_logits(logits, parts.order) if logits else at_text.new_empty(len(at_text), 0, 0),
        found,
        {name: head(at_text) for name, head in parts.at_tokens.items()},
    )
