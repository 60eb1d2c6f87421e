"""MTOP: one encoder pass over the prompts of all tasks and the text gives the labels of all tasks.

Follows Huang et al., "All Birds with One Stone: Multi-task Text Classification for Efficient Inference with One
Forward Pass", sections 4.2 to 4.4: the tasks' prompts stand before the text, a step on one task moves the prompts of
that task only (gradient stop), and each task reads the encoder's outputs at its own prompts through its own pooler
and head. Tasks of one prompt group share their prompts, so that the sequence does not grow with every task; their
poolers and heads are their own.

Shapes: B texts, T text positions, S prompt positions, N tasks, C outputs of the task with the most.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils.generic import ModelOutput

from mtop_batch.errors import ConfigError, TaskError
from mtop_batch.model.attention import Context, use_readable_attention
from mtop_batch.model.backbone import backbone_config_dict, build_backbone, check_backbone
from mtop_batch.model.encoder import (
    embedding_size,
    encode,
    encode_context,
    encode_reading,
    hidden_size,
    word_embeddings,
)
from mtop_batch.model.heads import GroupPrompts, TaskModule, task_loss
from mtop_batch.model.mtop_config import MTOPConfig, PromptAttention
from mtop_batch.model.prompts import PromptLayout, TaskPrompts, prompt_layout, random_prompts
from mtop_batch.model.stacked import InferenceParts, StackedTasks, num_versions
from mtop_batch.model.vectors import Probe, StackedProbes, document_vectors, join_logits
from mtop_batch.tasks import Task, check_task_names, select_tasks


@dataclass
class MTOPOutput(ModelOutput):
    """What `MTOPModel.forward` returns.

    Args:
        loss: () The batch's loss, where labels were given.
        logits: (B, C) of the one task, or (B, N, C) of all tasks.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None


class MTOPModel(PreTrainedModel):
    """The model; make one with `from_backbone` or load one with `from_pretrained`.

    Args:
        config: Its backbone is built with random weights unless one is given.
        backbone: The encoder to use.
    """

    config_class = MTOPConfig
    config: MTOPConfig
    base_model_prefix = "mtop"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True

    def __init__(self, config: MTOPConfig, backbone: PreTrainedModel | None = None) -> None:
        super().__init__(config)
        if config.backbone_config is None:
            raise ConfigError("an MTOPConfig without backbone_config makes no model; use MTOPModel.from_backbone")
        self.backbone = build_backbone(config.backbone_config) if backbone is None else backbone
        shared = torch.zeros(config.shared_prompts, embedding_size(self.backbone))
        self.shared_prompts = nn.Parameter(shared) if config.shared_prompts else None
        self.prompt_groups = nn.ModuleDict()
        self.task_modules = nn.ModuleDict()
        for entry in config.tasks:
            self._build_task(entry)
        self._inference_parts: InferenceParts | None = None
        self.post_init()

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
            backbone: As `mtop_batch.model.backbone.load_backbone` returns it.
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
            shared = random_prompts(model.shared_prompts.shape, _generator(seed, ""))
            model.shared_prompts.data = shared.to(backbone.device, backbone.dtype)
        isolated = prompt_attention == "isolated"
        model._append_tasks(tasks, prompts_per_task, isolated=isolated, seed=seed, prompt_groups=prompt_groups or {})
        model.eval()
        return model

    def add_tasks(
        self, tasks: Sequence[Task], *, prompts_per_task: int = 2, seed: int = 0, replace: bool = False
    ) -> None:
        """Add tasks, drawn at random and isolated, so that the outputs of the tasks already there stay the same.

        Args:
            tasks: The new ones; they come last.
            prompts_per_task: Of each but probes, which have none and start at zero; they are in no prompt group.
            seed: Of the random draws.
            replace: A task of the same name makes room as in `drop_tasks`, and the new one takes its place.

        Raises:
            ConfigError: `prompts_per_task` is not positive.
            TaskError: There is no task to add, or one has a name that is taken; nothing is changed then.
        """
        if replace:
            taken = [task.name for task in tasks if task.name in self.task_names]
            self.check_removable(taken)
            order = self.task_names
            self._remove(taken)
            self._append_tasks(tasks, prompts_per_task, isolated=True, seed=seed)
            places = {name: index for index, name in enumerate(order)}
            self.config.tasks.sort(key=lambda entry: places.get(entry["task"]["name"], len(places)))
        else:
            self._append_tasks(tasks, prompts_per_task, isolated=True, seed=seed)

    def drop_tasks(self, names: Sequence[str]) -> None:
        """Remove tasks whose prompts no other task sees or which leave theirs to others of their prompt group.

        The outputs of the others stay the same. The prompts of a prompt group go with its last task.

        Raises:
            TaskError: A task does not exist or others see its prompts, or none would be left; nothing is removed then.
        """
        self.check_removable(names)
        if set(names) >= set(self.task_names):
            raise TaskError("no task would be left; keep at least one")
        self._remove(names)

    def check_removable(self, names: Sequence[str]) -> None:
        """Refuse tasks that cannot be dropped or replaced together.

        Raises:
            TaskError: A task does not exist, or others see its prompts.
        """
        for name in select_tasks(names, self.task_names):
            if not self._is_isolated(name) and set(self.tasks_sharing(name)) <= set(names):
                raise TaskError(
                    f"task {name!r} cannot be removed or replaced: with joint prompt attention the outputs of the "
                    "other tasks depend on its prompts; train again without it, or leave it out with --tasks when "
                    "labelling"
                )

    def _remove(self, names: Sequence[str]) -> None:
        removed = set(names)
        for name in removed:
            del self.task_modules[_module_key(name)]
        self.config.tasks = [entry for entry in self.config.tasks if entry["task"]["name"] not in removed]
        for key in self.prompt_groups.keys() - {_group_key(entry.get("prompt_group")) for entry in self.config.tasks}:
            del self.prompt_groups[key]
        self._inference_parts = None

    def _append_tasks(
        self,
        tasks: Sequence[Task],
        num_prompts: int,
        *,
        isolated: bool,
        seed: int,
        prompt_groups: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        if not tasks:
            raise TaskError("no task is given; give at least one [[task]]")
        if num_prompts < 1:
            raise ConfigError(f"model.prompts_per_task = {num_prompts} is not positive; the paper uses 2")
        check_task_names([*self.task_names, *(task.name for task in tasks)])
        select_tasks(list(prompt_groups), [task.name for task in tasks])
        known_groups = set(self.prompt_groups)
        entries = [_task_entry(task, num_prompts, isolated, prompt_groups.get(task.name)) for task in tasks]
        for entry in entries:
            module = self._build_task(entry)
            if isinstance(module, TaskModule):
                module.initialise(_generator(seed, entry["task"]["name"]))
        for key in self.prompt_groups.keys() - known_groups:
            cast(GroupPrompts, self.prompt_groups[key]).initialise(_generator(seed, f"prompt group {key}"))
        self.config.tasks = [*self.config.tasks, *entries]
        for modules in (self.task_modules, self.prompt_groups):
            modules.to(self.backbone.device, self.backbone.dtype)
        self._inference_parts = None

    def _build_task(self, entry: Mapping[str, Any]) -> TaskModule | Probe:
        task, num_prompts, group = Task.from_dict(entry["task"]), entry["prompts"], entry.get("prompt_group")
        embedding, hidden = embedding_size(self.backbone), hidden_size(self.backbone)
        module: TaskModule | Probe
        if task.kind == "probe":
            module = Probe(task.num_outputs, hidden)
        else:
            if group is not None and _group_key(group) not in self.prompt_groups:
                self.prompt_groups[_group_key(group)] = GroupPrompts(num_prompts, embedding)
            own_prompts = num_prompts if group is None else 0
            module = TaskModule(own_prompts, task.num_outputs, embedding, hidden, self.config.pooler_rank)
        self.task_modules[_module_key(task.name)] = module
        return module

    @property
    def tasks(self) -> list[Task]:
        """The tasks in the order of the outputs."""
        return [Task.from_dict(entry["task"]) for entry in self.config.tasks]

    @property
    def task_names(self) -> list[str]:
        """The tasks' names in the order of the outputs."""
        return [entry["task"]["name"] for entry in self.config.tasks]

    @property
    def task_prompts(self) -> list[TaskPrompts]:
        """What prompts each task reads, in the order of the outputs."""
        return [
            TaskPrompts(entry["task"]["name"], entry["prompts"], entry["isolated"], entry.get("prompt_group"))
            for entry in self.config.tasks
        ]

    @property
    def word_embeddings(self) -> nn.Embedding:
        """The backbone's table of input embeddings, for freezing and for `token_prompts`."""
        return word_embeddings(self.backbone)

    def get_input_embeddings(self) -> nn.Embedding:
        """The same, under the name that transformers uses."""
        return word_embeddings(self.backbone)

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the backbone's table of input embeddings."""
        self.backbone.set_input_embeddings(value)

    def tasks_sharing(self, name: str) -> list[str]:
        """The tasks that read the same prompts as this one, itself among them, in the order of the outputs."""
        group = self._entry(name).get("prompt_group")
        return [name] if group is None else [task.name for task in self.task_prompts if task.prompt_group == group]

    def prompts(self, name: str) -> nn.Parameter:
        """(P, E) The prompts that the task reads: its own, or those of its prompt group.

        Raises:
            TaskError: There is no such task.
        """
        own = self.task_module(name).prompts
        if own is not None:
            return own
        return cast(GroupPrompts, self.prompt_groups[_group_key(self._entry(name)["prompt_group"])]).prompts

    def task_module(self, name: str) -> TaskModule:
        """The task's pooler and head, and its prompts if they are its own.

        Raises:
            TaskError: There is no such task, or it is a probe.
        """
        module = self._module(name)
        if isinstance(module, Probe):
            raise TaskError(f"task {name!r} is a probe: it has no prompts, pooler or head")
        return module

    def _module(self, name: str) -> TaskModule | Probe:
        if _module_key(name) not in self.task_modules:
            select_tasks([name], self.task_names)
        return cast(TaskModule | Probe, self.task_modules[_module_key(name)])

    def task_parameters(self, name: str) -> list[nn.Parameter]:
        """The parameters that belong to the task alone: not the prompts of a prompt group."""
        return list(self._module(name).parameters())

    def task_tensors(self, name: str) -> dict[str, Tensor]:
        """Copies of the parameters that the task reads: `prompts`, `pooler.weight`, `pooler.bias`, `head.weight`.

        The poolers of a model with `pooler_rank` have `pooler.down.weight`, `pooler.up.weight` and `pooler.up.bias`.
        A probe has `weight` (C, D) and `bias` (C) instead of all these.
        """
        return {key: value.clone() for key, value in self._task_state(name).items()}

    def _task_state(self, name: str) -> dict[str, Tensor]:
        module = self._module(name)
        prompts = {} if isinstance(module, Probe) else {"prompts": self.prompts(name).detach()}
        return {**prompts, **module.state_dict()}

    def load_task(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Set some or all of a task's parameters, from a warm start or from tokens (section 4.3).

        Args:
            name: A task of this model.
            tensors: Any of what `task_tensors` returns; `prompts` are set for the whole prompt group.

        Raises:
            TaskError: There is no such task, or a tensor of another name or shape; nothing is changed then.
        """
        own = self._task_state(name)
        for key, value in tensors.items():
            allowed = {k: tuple(v.shape) for k, v in own.items()}
            if allowed.get(key) != tuple(value.shape):
                raise TaskError(
                    f"task {name!r} cannot take {key!r} of shape {tuple(value.shape)}; its tensors: {allowed}"
                )
        with torch.no_grad():
            for key, value in tensors.items():
                own[key].copy_(value)

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
            logits = module(encode_reading(self.backbone, own_prompts, context, [1] * len(own_prompts)))
        else:
            assert input_ids is not None, "either texts or their context are given"
            layout = self._layout([task])
            prompts = self._prompts(layout, trained=task if self.config.stop_gradient else None)
            outputs, at_text = encode(self.backbone, prompts, input_ids, attention_mask, token_type_ids, layout.groups)
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

    def _is_isolated(self, task: str) -> bool:
        return bool(self._entry(task)["isolated"])

    def _entry(self, task: str) -> dict[str, Any]:
        """What the configuration says of a task."""
        return self.config.tasks[self.task_names.index(task)]

    def all_tasks(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        tasks: Sequence[str] | None = None,
    ) -> Tensor:
        """The logits of several tasks by one pass of the encoder.

        Prompts of isolated tasks that are not wanted are left out; those of the context are always there, because
        the wanted outputs depend on them.

        Args:
            input_ids: (B, T) Padded on the right.
            attention_mask: (B, T) 1 for tokens, 0 for padding.
            token_type_ids: (B, T) 0 and 1 for the two texts of a pair.
            tasks: The wanted ones, in the wanted order; None for all.

        Returns:
            (B, n, C) logits of the n wanted tasks; -inf beyond a task's own labels; a regression's value comes first.

        Raises:
            TaskError: A wanted task does not exist, or none is wanted.
        """
        wanted = tuple(self.task_names if tasks is None else tasks)
        if not wanted:
            raise TaskError(f"no task is wanted; tasks: {', '.join(self.task_names)}")
        return self._outputs(wanted, _Text(input_ids, attention_mask, token_type_ids), vectors=False)[0]

    def all_tasks_and_vectors(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        tasks: Sequence[str] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The logits of several tasks, or of none, and the document vectors, by one pass of the encoder.

        Args:
            input_ids: As for `all_tasks`, like the others.

        Returns:
            (B, n, C) logits, and (B, D) vectors in float16 (`mtop_batch.model.vectors`).

        Raises:
            TaskError: A wanted task does not exist.
        """
        wanted = tuple(self.task_names if tasks is None else tasks)
        return self._outputs(wanted, _Text(input_ids, attention_mask, token_type_ids), vectors=True)

    def _outputs(self, wanted: tuple[str, ...], text: _Text, *, vectors: bool) -> tuple[Tensor, Tensor]:
        """Logits, and vectors: these are (B, 0) where nobody wants them."""
        parts = self._parts(wanted)
        at_prompts, at_text = encode(self.backbone, parts.prompts, *text, groups=parts.groups)
        needs_vectors = vectors or parts.probes is not None
        found = document_vectors(at_text, text.attention_mask) if needs_vectors else at_text.new_empty(len(at_text), 0)
        logits = [] if parts.stacked is None else [parts.stacked(at_prompts)]
        if parts.probes is not None:
            logits.append(parts.probes(found))
        return join_logits(logits, parts.order) if logits else at_text.new_empty(len(at_text), 0, 0), found

    def _parts(self, wanted: tuple[str, ...]) -> InferenceParts:
        """Prompts and stacked heads of the wanted tasks; kept in evaluation for as long as no parameter changes.

        Under autocast they are kept in its type, so that large stacks are not converted for every batch.
        """
        device_type, dtype = self.backbone.device.type, self.backbone.dtype
        if torch.is_autocast_enabled(device_type):
            dtype = torch.get_autocast_dtype(device_type)
        kept = self._inference_parts
        if kept is not None and not torch.is_grad_enabled() and kept.fits(wanted, dtype):
            return kept
        select_tasks(wanted, self.task_names)
        layout = self._layout(wanted)
        prompted = [name for name in wanted if name in layout.positions]
        probes = [name for name in wanted if name not in layout.positions]
        modules = [self.task_module(name) for name in prompted]
        places = {name: place for place, name in enumerate([*prompted, *probes])}
        shared = () if self.shared_prompts is None else (self.shared_prompts,)
        parameters = (*shared, *self.prompt_groups.parameters(), *self.task_modules.parameters())
        parts = InferenceParts(
            wanted=wanted,
            dtype=dtype,
            prompts=self._prompts(layout),
            groups=layout.groups,
            stacked=StackedTasks.stack(modules, [layout.positions[name] for name in prompted], dtype)
            if prompted
            else None,
            probes=StackedProbes.stack([self._module(name).state_dict(keep_vars=True) for name in probes])
            if probes
            else None,
            order=[places[name] for name in wanted],
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

    def _apply(self, *args: Any, **kwargs: Any) -> MTOPModel:
        self._inference_parts = None  # the model moves to another device or type
        return super()._apply(*args, **kwargs)

    def train(self, mode: bool = True) -> MTOPModel:
        """Switch between training and evaluation; training forgets what evaluation had stacked."""
        if mode:
            self._inference_parts = None
        return super().train(mode)

    def _init_weights(self, module: nn.Module) -> None:
        """Do nothing: `from_backbone` and `add_tasks` draw new parameters, checkpoints hold all others."""


class _Text(NamedTuple):
    """The texts of a batch, as `encode` takes them."""

    input_ids: Tensor
    attention_mask: Tensor | None
    token_type_ids: Tensor | None


def _task_entry(task: Task, num_prompts: int, isolated: bool, prompt_group: str | None) -> dict[str, Any]:
    """What the configuration says of a new task."""
    if task.kind == "probe":
        return {"task": task.to_dict(), "prompts": 0, "isolated": True}
    entry: dict[str, Any] = {"task": task.to_dict(), "prompts": num_prompts, "isolated": isolated}
    return entry if prompt_group is None else {**entry, "prompt_group": prompt_group}


def _module_key(name: str) -> str:
    """A task's key in the module dictionary; the prefix keeps names such as "type" or "keys" from its attributes."""
    return f"task_{name}"


def _group_key(group: str | None) -> str:
    """A prompt group's key in the module dictionary; no group's for None."""
    return "" if group is None else f"group_{group}"


def _generator(seed: int, name: str) -> torch.Generator:
    """A source of draws that depends on the seed and the task's name only."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
