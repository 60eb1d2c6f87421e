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
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils.generic import ModelOutput

from mtop_batch.errors import TaskError
from mtop_batch.model.encoder.backbone import backbone_config_dict, check_backbone
from mtop_batch.model.encoder.encode import (
    Pass,
    Text,
    embedding_size,
    encode,
    encode_context,
    encode_reading,
    ragged_batch,
)
from mtop_batch.model.encoder.fused import FusedLayers, encode_fused
from mtop_batch.model.encoder.kv_cache import Context, use_readable_attention
from mtop_batch.model.encoder.lora import stack_adapters
from mtop_batch.model.kinds.config import MTOPConfig, PromptAttention
from mtop_batch.model.kinds.task_bank import MTOPParameters, generator_of
from mtop_batch.model.parts.document_vectors import Probe, StackedProbes, document_vectors, join_logits
from mtop_batch.model.parts.heads import TaskModule
from mtop_batch.model.parts.losses import task_loss
from mtop_batch.model.parts.prompts import PromptLayout, prompt_layout, random_prompts
from mtop_batch.model.parts.stacked_heads import InferenceParts, StackedTasks, num_versions
from mtop_batch.tasks import Task, select_tasks


@dataclass
class MTOPOutput(ModelOutput):
    """What `MTOPModel.forward` returns.

    Args:
        loss: () The batch's loss, where labels were given.
        logits: (B, C) of the one task, or (B, N, C) of all tasks.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None


class MTOPModel(MTOPParameters):
    """The model; make one with `from_backbone` or load one with `from_pretrained`.

    Args:
        config: Its backbone is built with random weights unless one is given.
        backbone: The encoder to use.
    """

    def __init__(self, config: MTOPConfig, backbone: PreTrainedModel | None = None) -> None:
        super().__init__(config, backbone)
        self._inference_parts: InferenceParts | None = None
        self._fused: FusedLayers | None = None

    @classmethod
    def from_backbone(
        cls,
        backbone: PreTrainedModel,
        tasks: Sequence[Task],
        *,
        prompts_per_task: int = 2,
        shared_prompts: int = 0,
        prompt_attention: PromptAttention = "joint",
        prompt_groups: Mapping[str, str] | None = None,
        pooler_rank: int = 0,
        stop_gradient: bool = True,
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
            prompt_attention: "joint": prompts, text and the other tasks' prompts all see one another (the paper).
                "isolated": the text sees text and shared prompts only; a task's prompts see these and each other.
            prompt_groups: Task -> prompt group (letters, digits, `_` and `-`), of the tasks that share prompts; the
                others have prompts of their own (the paper).
            pooler_rank: Of the poolers' kernels, below the backbone's width; 0 for full ones (the paper).
            stop_gradient: False lets a task's loss move all prompts (the paper's ablation, section 6.5).
            max_tokens: Longest text, special tokens included.
            seed: Of the random draws.

        Raises:
            ConfigError: The backbone or a setting cannot work.
            TaskError: There is no task, two have the same name, or a prompt group is given for none of them.
        """
        use_readable_attention(backbone)
        check_backbone(backbone, max_tokens, pooler_rank)
        config = MTOPConfig(
            backbone_config=backbone_config_dict(backbone.config),
            shared_prompts=shared_prompts,
            prompt_attention=prompt_attention,
            pooler_rank=pooler_rank,
            stop_gradient=stop_gradient,
            max_tokens=max_tokens,
        )
        model = cls(config, backbone)
        if model.shared_prompts is not None:
            shared = random_prompts(model.shared_prompts.shape, generator_of(seed, ""))
            model.shared_prompts.data = shared.to(backbone.device, backbone.dtype)
        isolated = prompt_attention == "isolated"
        model._append_tasks(tasks, prompts_per_task, isolated=isolated, seed=seed, prompt_groups=prompt_groups or {})
        model.eval()
        return model

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        *,
        context: Context | None = None,
        task: str | None = None,
        labels: Tensor | None = None,
    ) -> MTOPOutput:
        """The logits of one task, and its loss, or the logits of all tasks.

        With `stop_gradient`, the loss of one task reaches the backbone, the shared prompts, that task's own parameters
        and the prompts of its prompt group; those of the other tasks get no gradient at all (None, not zero), so that
        no optimiser moves them.

        Args:
            input_ids: (B, T) Padded on the right.
            attention_mask: (B, T) 1 for tokens, 0 for padding.
            token_type_ids: (B, T) 0 and 1 for the two texts of a pair.
            context: What `context` returned for the texts, in place of the three above; for one isolated task.
            task: The one task wanted; None for all.
            labels: (B,) Label indices or regression values of that task.

        Raises:
            TaskError: There is no such task, labels are given without one, or a context with one that is not isolated
                or reads the text's own outputs (a probe).
        """
        if task is None:
            if labels is not None or input_ids is None:
                raise TaskError("labels or a context are given without the task they belong to; pass task=NAME")
            return MTOPOutput(logits=self.all_tasks(input_ids, attention_mask, token_type_ids))
        module = self._module(task)
        logits: Tensor
        if context is not None:
            if isinstance(module, Probe) or not self._is_isolated(task):
                raise TaskError(f"task {task!r} reads more than the context left; pass its texts")
            own_prompts = self.prompts(task)
            adapters = stack_adapters([(len(own_prompts), module.adapter)])
            logits = module(encode_reading(self.backbone, own_prompts, context, [1] * len(own_prompts), adapters))
        else:
            assert input_ids is not None, "either texts or their context are given"
            layout = self._layout([task])
            prompts = self._prompts(layout, trained=task if self.config.stop_gradient else None)
            at_context = self.needs_outputs_at_context([task])
            passes = self._passes(layout)
            text = input_ids, attention_mask, token_type_ids
            outputs, at_text = encode(
                self.backbone, prompts, *text, layout.groups, passes=passes, at_context=at_context
            )
            if isinstance(module, Probe):
                logits = module(document_vectors(at_text, attention_mask))
            else:
                own = layout.positions[task]
                logits = module(outputs[:, own.start : own.stop])
        if labels is None:
            return MTOPOutput(logits=logits)
        definition = Task.from_dict(self._entry(task)["task"])
        return MTOPOutput(loss=task_loss(definition, logits, labels), logits=logits)

    def context(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> Context:
        """What isolated tasks read of texts: the same for all of them, and for as long as the context does not train.

        Args:
            input_ids: (B, T) Padded on the right.
            attention_mask: (B, T) 1 for tokens, 0 for padding.
            token_type_ids: (B, T) 0 and 1 for the two texts of a pair.
        """
        prompts = self._prompts(self._layout(()))
        return encode_context(self.backbone, prompts, input_ids, attention_mask, token_type_ids)

    def has_fixed_context(self, tasks: Sequence[str]) -> bool:
        """Whether training these tasks leaves the context as it is: all isolated, and nothing trains but their own."""
        in_context = [self.prompts(name) for name in self._layout(()).holders]
        shared = [] if self.shared_prompts is None else [self.shared_prompts]
        trains = any(p.requires_grad for p in (*self.backbone.parameters(), *shared, *in_context))
        return not trains and all(map(self._is_isolated, tasks))

    def needs_outputs_at_context(self, tasks: Sequence[str]) -> bool:
        """Whether one of these tasks reads what the encoder puts out at the text or at prompts that the text sees.

        Probes and tasks with joint prompts do; an isolated task reads the context's keys and values only.
        """
        return not all(self._is_isolated(name) and isinstance(self._module(name), TaskModule) for name in tasks)

    def all_tasks(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        tasks: Sequence[str] | None = None,
        num_tokens: int | None = None,
    ) -> Tensor:
        """The logits of several tasks by one pass of the encoder.

        Prompts of isolated tasks that are not wanted are left out; those of the context are always there, because
        the wanted outputs depend on them.

        Args:
            input_ids: (B, T) Padded on the right.
            attention_mask: (B, T) 1 for tokens, 0 for padding.
            token_type_ids: (B, T) 0 and 1 for the two texts of a pair.
            tasks: The wanted ones, in the wanted order; None for all.
            num_tokens: How many ones the mask has, as far as that is known: then a GPU computes nothing at padding.

        Returns:
            (B, n, C) logits of the n wanted tasks; -inf beyond a task's own labels; a regression's value comes first.

        Raises:
            TaskError: A wanted task does not exist, or none is wanted.
        """
        wanted = tuple(self.task_names if tasks is None else tasks)
        if not wanted:
            raise TaskError(f"no task is wanted; tasks: {', '.join(self.task_names)}")
        text = Text(input_ids, attention_mask, token_type_ids, num_tokens)
        return self._outputs(wanted, text, vectors=False)[0]

    def all_tasks_and_vectors(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        tasks: Sequence[str] | None = None,
        num_tokens: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The logits of several tasks, or of none, and the document vectors, by one pass of the encoder.

        Args:
            input_ids: As for `all_tasks`, like the others.

        Returns:
            (B, n, C) logits, and (B, D) vectors in float16 (`mtop_batch.model.parts.document_vectors`).

        Raises:
            TaskError: A wanted task does not exist.
        """
        wanted = tuple(self.task_names if tasks is None else tasks)
        text = Text(input_ids, attention_mask, token_type_ids, num_tokens)
        return self._outputs(wanted, text, vectors=True)

    def _outputs(self, wanted: tuple[str, ...], text: Text, *, vectors: bool) -> tuple[Tensor, Tensor]:
        """Logits, and vectors: these are (B, 0) where nobody wants them."""
        parts = self._parts(wanted)
        at_context = vectors or parts.at_context
        needs_vectors = vectors or parts.probes is not None
        fused = None if torch.is_grad_enabled() else self._fused
        batch = None if fused is None else ragged_batch(self.backbone, text, parts.groups.count(0))
        if fused is not None and batch is not None:
            at_prompts, at_text = encode_fused(
                self.backbone, fused, parts.prompts, text, batch, parts.groups, parts.passes, at_text=needs_vectors
            )
        else:
            at_prompts, at_text = encode(
                self.backbone,
                parts.prompts,
                text.input_ids,
                text.attention_mask,
                text.token_type_ids,
                parts.groups,
                passes=parts.passes,
                at_context=at_context,
                num_tokens=text.num_tokens,
            )
        found = document_vectors(at_text, text.attention_mask) if needs_vectors else at_text.new_empty(len(at_text), 0)
        logits = [stacked(at_prompts) for stacked in parts.stacked]
        if parts.probes is not None:
            logits.append(parts.probes(found))
        return join_logits(logits, parts.order) if logits else at_text.new_empty(len(at_text), 0, 0), found

    def fuse_layers(self) -> bool:
        """Run the encoder's layers as `encoder/fused` has them, on devices that can attend over packed texts.

        For inference with weights that stay as they are: until the model trains, or moves to another device or type.

        Returns:
            Whether the backbone is one of those whose layers can be fused; else nothing changes.
        """
        self._fused = FusedLayers.of(self.backbone)
        return self._fused is not None

    def _parts(self, wanted: tuple[str, ...]) -> InferenceParts:
        """Prompts and stacked heads of the wanted tasks; kept in evaluation for as long as no parameter changes.

        They are kept in the type that the encoder computes in, so that large stacks are not converted for every batch.
        """
        device_type, dtype = self.backbone.device.type, self.backbone.dtype
        if torch.is_autocast_enabled(device_type):
            dtype = torch.get_autocast_dtype(device_type)
        kept = self._inference_parts
        if kept is not None and not torch.is_grad_enabled() and kept.fits(wanted, dtype):
            return kept
        select_tasks(wanted, self.task_names)
        layout = self._layout(wanted)
        together: dict[bool, list[str]] = {}
        for task in self.task_prompts:
            if task.name in wanted and task.name in layout.positions:
                together.setdefault(task.added, []).append(task.name)
        prompted = [name for names in together.values() for name in names]
        probes = [name for name in wanted if name not in layout.positions]
        weights = [self._module(name).state_dict(keep_vars=True) for name in probes]
        order = list(map([*prompted, *probes].index, wanted))
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
            probes=StackedProbes.stack(weights) if probes else None,
            order=None if order == sorted(order) else torch.tensor(order, device=self.backbone.device),
            at_context=self.needs_outputs_at_context(wanted),
            parameters=parameters,
            versions=num_versions(parameters),
        )
        self._inference_parts = None if self.training or torch.is_grad_enabled() else parts
        return parts

    def _layout(self, wanted: Sequence[str]) -> PromptLayout:
        return prompt_layout(self.task_prompts, self.config.shared_prompts, wanted)

    def _prompts(self, layout: PromptLayout, trained: str | None = None) -> Tensor:
        """(S, E) The prompts of the sequence; if a task is trained, those it does not read get no gradients."""
        read = self.prompts(trained) if trained in layout.positions else None
        stopped = [p if trained is None or p is read else p.detach() for p in map(self.prompts, layout.holders)]
        parts = stopped if self.shared_prompts is None else [self.shared_prompts, *stopped]
        return torch.cat(parts) if parts else self.word_embeddings.weight.new_empty(0, embedding_size(self.backbone))

    def _passes(self, layout: PromptLayout, dtype: torch.dtype | None = None) -> tuple[Pass, ...]:
        """How isolated prompts go through the encoder, with their adapters: in that type, or their own."""
        holders = [(name, layout.positions[name]) for name in layout.holders]
        return tuple(
            Pass(
                len(own),
                stack_adapters(
                    [(len(at), self.task_module(name).adapter) for name, at in holders if at.start in own], dtype
                ),
            )
            for own in layout.passes
        )

    def _apply(self, *args: Any, **kwargs: Any) -> MTOPModel:
        self._inference_parts = self._fused = None  # the model moves to another device or type
        return super()._apply(*args, **kwargs)

    def train(self, mode: bool = True) -> MTOPModel:
        """Switch between training and evaluation; training forgets what evaluation had stacked."""
        if mode:
            self._inference_parts = self._fused = None
        return super().train(mode)

    def _tasks_changed(self) -> None:
        self._inference_parts = None
