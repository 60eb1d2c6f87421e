"""What an MTOP model is made of: a backbone, prompts, poolers and heads, which task each of them belongs to, and the
LoRA of families of tasks.

Tasks are added, dropped and replaced here; what is computed from them stands in `mtop_batch.model.kinds.mtop`.

Shapes: P prompts of a task, E width of the input embeddings, C outputs of a task, D hidden width.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mtop_batch.errors import ConfigError, TaskError
from mtop_batch.families import Family, check_families
from mtop_batch.lines import listed
from mtop_batch.model.encoder.families import check_families as check_encoder_has
from mtop_batch.model.encoder.inputs import embedding_size, hidden_size
from mtop_batch.model.encoder.lora import FamilyLoRA, LoRA, lora_layers
from mtop_batch.model.kinds.base import MultiTaskModel, generator_of, module_key
from mtop_batch.model.kinds.config import MTOPConfig
from mtop_batch.model.parts.document_vectors import Probe
from mtop_batch.model.parts.heads import Prompts, TaskModule, identity_pooler
from mtop_batch.model.parts.prompts import GroupChoice, TaskPrompts
from mtop_batch.model.parts.text_heads import AttentionHead, least_width
from mtop_batch.model.parts.token_heads import TokenHead
from mtop_batch.tasks import Task, check_task_names, select_tasks

TaskParts = TaskModule | AttentionHead | Probe | TokenHead
"""What a task has of its own, by what it reads."""


class MTOPParameters(MultiTaskModel):
    """A backbone, shared prompts, and the prompts, poolers and heads of tasks that come and go.

    Args:
        config: Its backbone is built with random weights unless one is given.
        backbone: The encoder to use.
    """

    config_class = MTOPConfig
    config: MTOPConfig
    base_model_prefix = "mtop"
    readers = ("prompts", "pooled", "attention", "vector", "words")

    def __init__(self, config: MTOPConfig, backbone: PreTrainedModel | None = None) -> None:
        super().__init__(config, backbone)
        shared = torch.zeros(config.shared_prompts, embedding_size(self.backbone))
        self.shared_prompts = nn.Parameter(shared) if config.shared_prompts else None
        self._add_inputs()
        self.prompt_groups = nn.ModuleDict()
        self.task_modules = nn.ModuleDict()
        self.families = nn.ModuleDict()
        for family in config.families:
            self._build_family(Family(**family))
        for entry in config.tasks:
            self._build_task(entry)
        self.post_init()

    def add_tasks(
        self,
        tasks: Sequence[Task],
        *,
        prompts_per_task: int = 2,
        lora_rank: int = 0,
        prompt_groups: Mapping[str, str] | None = None,
        attention_widths: Mapping[str, int] | None = None,
        attention_heads: int = 2,
        families: Sequence[Family] = (),
        family_of: Mapping[str, str] | None = None,
        pooler_init: Literal["random", "identity"] = "random",
        seed: int = 0,
        replace: bool = False,
    ) -> None:
        """Add tasks, drawn at random.

        The first tasks of a model have prompts as its `prompt_attention` says. Tasks that are added later are isolated,
        so that the outputs of the tasks already there stay the same; all of them run in a pass of their own
        (`mtop_batch.model.parts.prompts`).

        Args:
            tasks: The new ones; they come last.
            prompts_per_task: Of each task that reads prompts; one that reads the vector starts at zero.
            lora_rank: Of the LoRA that these prompts get (`mtop_batch.model.encoder.lora`); 0 for none.
            prompt_groups: Task -> prompt group, of the tasks that share prompts.
            attention_widths: Task -> width in which it attends to the text, of tasks that read by attention; for others
                of them the least that `dynamic_widths` gives.
            attention_heads: Of such tasks.
            families: New ones; their LoRA starts so that it changes nothing.
            family_of: Task -> family, a new one or one that is there, of the tasks that have one.
            pooler_init: "identity": poolers begin by handing on what is read, and are not drawn.
            seed: Of the random draws.
            replace: A task of the same name makes room as in `drop_tasks`, and the new one takes its place.

        Raises:
            ConfigError: `prompts_per_task` is not positive, `lora_rank` is negative, or the encoder cannot have a
                family.
            TaskError: There is no task to add, or one has a name that is taken or reads what this model does not have,
                or families do not fit (`check_families`); nothing is changed then.
        """
        if not tasks:
            raise TaskError("no task is given; give at least one [[task]]")
        self.check_readers(tasks)
        family_of = {} if family_of is None else family_of
        self._check_families(tasks, families, family_of)
        order = self.task_names
        if replace:
            taken = [task.name for task in tasks if task.name in order]
            self.check_removable(taken)
            self._remove(taken, set(family_of.values()))
        isolated = bool(order) or self.config.prompt_attention == "isolated"
        added = bool(self.config.tasks)
        widths = {
            task.name: (attention_widths or {}).get(task.name, least_width(hidden_size(self.backbone), attention_heads))
            for task in tasks
            if task.reads == "attention"
        }
        attention = {name: {"width": width, "num_heads": attention_heads} for name, width in widths.items()}
        self.add_families(families, seed)
        self._append_tasks(
            tasks, prompts_per_task, isolated, added, seed, lora_rank, prompt_groups or {}, attention, family_of
        )
        if pooler_init == "identity":
            for task in tasks:
                self.load_task(task.name, identity_pooler(self.task_tensors(task.name)))
        places = {name: index for index, name in enumerate(order)}
        self.config.tasks.sort(key=lambda entry: places.get(entry["task"]["name"], len(places)))

    def _check_families(self, tasks: Sequence[Task], families: Sequence[Family], family_of: Mapping[str, str]) -> None:
        """Refuse families that do not fit the tasks or the encoder."""
        select_tasks(list(family_of), [task.name for task in tasks])
        check_families(families, family_of, [family.name for family in self.task_families])
        for task in tasks:
            if task.reads_vector and task.name in family_of:
                raise TaskError(
                    f"task {task.name!r}: a task that reads the vector reads that of the plain backbone and has no "
                    "family; remove it"
                )
        check_encoder_has(self.backbone, {family.name: family.layers for family in families})

    def add_families(self, families: Sequence[Family], seed: int = 0) -> None:
        """Add families, of which `add_tasks` may add tasks; their LoRA starts so that it changes nothing.

        Args:
            families: New ones.
            seed: Of the random draws.
        """
        for family in families:
            self._build_family(family).lora.initialise(generator_of(seed, f"family {family.name}"))
        self.config.families = [*self.config.families, *(asdict(family) for family in families)]
        self.families.to(self.backbone.device)

    def _build_family(self, family: Family) -> FamilyLoRA:
        lora = FamilyLoRA(self.backbone, family.rank, family.alpha, family.layers)
        self.families[_family_key(family.name)] = lora
        return lora

    @property
    def task_families(self) -> list[Family]:
        """The families of the tasks."""
        return [Family(**entry) for entry in self.config.families]

    def family_of(self, task: str) -> str | None:
        """The family of a task, None for one of no family.

        Raises:
            TaskError: There is no such task.
        """
        family: str | None = self._entry(task).get("family")
        return family

    def family_lora(self, family: str | None) -> FamilyLoRA | None:
        """The LoRA of a family; None for None."""
        return None if family is None else cast(FamilyLoRA, self.families[_family_key(family)])

    def family_parameters(self, family: str) -> list[nn.Parameter]:
        """The parameters that belong to the family alone."""
        return list(self.families[_family_key(family)].parameters())

    def family_tensors(self, family: str) -> dict[str, Tensor]:
        """Copies of the LoRA of a family: `lora.A.<i>` and `lora.B.<i>` for each of its linear layers."""
        return {key: value.clone() for key, value in self.families[_family_key(family)].state_dict().items()}

    def load_family(self, family: str, tensors: Mapping[str, Tensor]) -> None:
        """Set the LoRA of a family to what `family_tensors` returned.

        Raises:
            TaskError: There is no such family, or it has other tensors.
        """
        if _family_key(family) not in self.families:
            known = [each.name for each in self.task_families]
            raise TaskError(f"there is no family {family!r}; families: {listed(known)}")
        own = {key: tuple(value.shape) for key, value in self.families[_family_key(family)].state_dict().items()}
        given = {key: tuple(value.shape) for key, value in tensors.items()}
        if given != own:
            raise TaskError(f"family {family!r} cannot take tensors of the shapes {given}; its own: {own}")
        self.families[_family_key(family)].load_state_dict(dict(tensors))

    def shared_tensors(self, name: str) -> Iterable[tuple[str, Tensor]]:
        """The LoRA of the task's family."""
        family = self.family_of(name)
        return () if family is None else self.family_tensors(family).items()

    def drop_tasks(self, names: Sequence[str]) -> None:
        """Remove tasks whose prompts no other task sees or which leave theirs to others of their prompt group.

        The outputs of the others stay the same. The prompts of a prompt group go with its last task, and so does the
        LoRA of a family.

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

    def _remove(self, names: Sequence[str], kept_families: Collection[str] = ()) -> None:
        removed = set(names)
        for name in removed:
            del self.task_modules[module_key(name)]
        self.config.tasks = [entry for entry in self.config.tasks if entry["task"]["name"] not in removed]
        self._drop_empty_groups()
        families = {*kept_families, *(entry.get("family") for entry in self.config.tasks)}
        for family in [entry["name"] for entry in self.config.families if entry["name"] not in families]:
            del self.families[_family_key(family)]
        self.config.families = [entry for entry in self.config.families if entry["name"] in families]
        self._tasks_changed()

    def _drop_empty_groups(self) -> None:
        for key in self.prompt_groups.keys() - {_group_key(entry.get("prompt_group")) for entry in self.config.tasks}:
            del self.prompt_groups[key]

    def open_groups(self, names: Sequence[str]) -> None:
        """Let these tasks choose among their prompt groups while they train; `settle` ends that.

        Args:
            names: Isolated tasks, each in a prompt group.
        """
        own = {name: str(self._entry(name)["prompt_group"]) for name in names}
        groups = tuple(dict.fromkeys(own.values()))
        for name, group in own.items():
            choice = GroupChoice(groups, groups.index(group))
            self.task_module(name).choice = choice.to(self.backbone.device)

    def settle(self) -> None:
        """Leave tasks in the prompt groups that they chose; a group that no task chose goes."""
        self.follow_choices()
        chosen = self._choices()
        for name in chosen:
            self.task_module(name).choice = None
        if chosen:
            self._drop_empty_groups()
            self._tasks_changed()

    def follow_choices(self) -> None:
        """Move tasks to the prompt groups that they would choose now."""
        choices = self._choices()
        if not choices:
            return
        best = torch.stack([choice.logits.detach() for choice in choices.values()]).argmax(dim=1).tolist()
        groups = {name: choice.groups[place] for (name, choice), place in zip(choices.items(), best, strict=True)}
        for entry in self.config.tasks:
            if (name := entry["task"]["name"]) in groups:
                entry["prompt_group"] = groups[name]
        self._tasks_changed()

    def _choices(self) -> dict[str, GroupChoice]:
        """Of the tasks that may still choose."""
        if not self.prompt_groups:
            return {}
        modules = {entry["task"]["name"]: self._module(entry["task"]["name"]) for entry in self.config.tasks}
        return {
            name: module.choice
            for name, module in modules.items()
            if isinstance(module, TaskModule) and module.choice is not None
        }

    def _append_tasks(
        self,
        tasks: Sequence[Task],
        num_prompts: int,
        isolated: bool,
        added: bool,
        seed: int,
        lora_rank: int,
        prompt_groups: Mapping[str, str],
        attention: Mapping[str, Mapping[str, int]],
        family_of: Mapping[str, str],
    ) -> None:
        if num_prompts < 1:
            raise ConfigError(f"model.prompts_per_task = {num_prompts} is not positive; the paper uses 2")
        if lora_rank < 0:
            raise ConfigError(f"add_tasks.lora_rank = {lora_rank} is negative; 0 leaves LoRA out")
        check_task_names([*self.task_names, *(task.name for task in tasks)])
        select_tasks(list(prompt_groups), [task.name for task in tasks])
        known_groups = set(self.prompt_groups)
        entries = [
            _task_entry(
                task,
                num_prompts,
                isolated,
                added,
                lora_rank,
                prompt_groups.get(task.name),
                attention.get(task.name),
                family_of.get(task.name),
            )
            for task in tasks
        ]
        for entry in entries:
            module = self._build_task(entry)
            if not isinstance(module, Probe):
                module.initialise(generator_of(seed, entry["task"]["name"]))
        for key in self.prompt_groups.keys() - known_groups:
            cast(Prompts, self.prompt_groups[key]).initialise(generator_of(seed, f"prompt group {key}"))
        self.config.tasks = [*self.config.tasks, *entries]
        for modules in (self.task_modules, self.prompt_groups):
            modules.to(self.backbone.device, self.backbone.dtype)
        self._tasks_changed()

    def _build_task(self, entry: Mapping[str, Any]) -> TaskParts:
        task, num_prompts, group = Task.from_dict(entry["task"]), entry["prompts"], entry.get("prompt_group")
        embedding, hidden = embedding_size(self.backbone), hidden_size(self.backbone)
        module: TaskParts
        if task.reads_vector:
            module = Probe(task.num_outputs, hidden)
        elif task.is_token:
            module = TokenHead(task.num_outputs, hidden)
        elif task.reads == "attention":
            module = AttentionHead(task.num_outputs, hidden, **entry["attention"])
        elif not task.reads_prompts:
            module = TaskModule(0, task.num_outputs, embedding, hidden, self.config.pooler_rank)
        else:
            if group is not None and _group_key(group) not in self.prompt_groups:
                self.prompt_groups[_group_key(group)] = Prompts(num_prompts, embedding)
            own_prompts = num_prompts if group is None else 0
            rank = entry.get("lora_rank", 0)
            lora = LoRA(lora_layers(self.backbone), rank) if rank else None
            module = TaskModule(own_prompts, task.num_outputs, embedding, hidden, self.config.pooler_rank, lora)
        self.task_modules[module_key(task.name)] = module
        return module

    @property
    def task_prompts(self) -> list[TaskPrompts]:
        """What prompts each task reads, in the order of the outputs."""
        return [
            TaskPrompts(
                entry["task"]["name"],
                entry["prompts"],
                entry["isolated"],
                entry.get("prompt_group"),
                entry.get("added", False),
            )
            for entry in self.config.tasks
        ]

    def tasks_sharing(self, name: str) -> list[str]:
        """The tasks that read the same prompts as this one, itself among them, in the order of the outputs."""
        group = self._entry(name).get("prompt_group")
        return [name] if group is None else [task.name for task in self.task_prompts if task.prompt_group == group]

    def prompts(self, name: str) -> nn.Parameter:
        """(P, E) The prompts that the task reads: its own, or those of its prompt group.

        Raises:
            TaskError: There is no such task, or it has none.
        """
        if not self.reads_prompts(name):
            raise TaskError(f"task {name!r} reads the text itself: it has no prompts")
        own = self.task_module(name).prompts
        if own is not None:
            return own
        return self.group_prompts(self._entry(name)["prompt_group"])

    def group_prompts(self, group: str) -> nn.Parameter:
        """(P, E) The prompts of a prompt group."""
        return cast(Prompts, self.prompt_groups[_group_key(group)]).prompts

    def reads_prompts(self, name: str) -> bool:
        """Whether the task has prompts, its own or shared ones.

        Raises:
            TaskError: There is no such task.
        """
        return self._entry(name)["task"].get("reads", "prompts") == "prompts"

    def task_module(self, name: str) -> TaskModule:
        """The task's pooler and head, and its prompts if they are its own.

        Raises:
            TaskError: There is no such task, or it reads the vector, by attention, or words.
        """
        module = self._module(name)
        if not isinstance(module, TaskModule):
            raise TaskError(f"task {name!r} reads the {self.task(name).reads}: it has no prompts and no pooler")
        return module

    def _module(self, name: str) -> TaskParts:
        if module_key(name) not in self.task_modules:
            select_tasks([name], self.task_names)
        return cast(TaskParts, self.task_modules[module_key(name)])

    def task_parameters(self, name: str) -> list[nn.Parameter]:
        """The parameters that belong to the task alone: not the prompts of a prompt group."""
        return list(self._module(name).parameters())

    def task_tensors(self, name: str) -> dict[str, Tensor]:
        """Copies of the parameters that the task reads: `prompts`, `pooler.weight`, `pooler.bias`, `head.weight`.

        The poolers of a model with `pooler_rank` have `pooler.down.weight`, `pooler.up.weight` and `pooler.up.bias`. A
        task with LoRA has `lora.A.<i>` and `lora.B.<i>` for each of the encoder's linear layers too. A task that reads
        the vector has `weight` (C, D) and `bias` (C) instead of all these, one that reads by attention the layers of an
        `AttentionHead`, one that reads words those of a `TokenHead`, and one that reads pooled outputs no prompts.
        """
        return {key: value.clone() for key, value in self._task_state(name).items()}

    def _task_state(self, name: str) -> dict[str, Tensor]:
        module = self._module(name)
        prompts = {"prompts": self.prompts(name).detach()} if self.reads_prompts(name) else {}
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

    def _is_isolated(self, task: str) -> bool:
        return bool(self._entry(task)["isolated"])

    def _tasks_changed(self) -> None:
        """Called when tasks have come or gone, for what a subclass keeps of them."""


def _task_entry(
    task: Task,
    num_prompts: int,
    isolated: bool,
    added: bool,
    lora_rank: int,
    prompt_group: str | None,
    attention: Mapping[str, int] | None,
    family: str | None,
) -> dict[str, Any]:
    """What the configuration says of a new task."""
    entry: dict[str, Any] = {"task": task.to_dict(), "prompts": num_prompts, "isolated": isolated}
    if not task.reads_prompts:
        entry |= {"prompts": 0, "isolated": True}
    elif lora_rank:
        entry["lora_rank"] = lora_rank
    if attention is not None:
        entry["attention"] = dict(attention)
    if prompt_group is not None and task.reads_prompts:
        entry["prompt_group"] = prompt_group
    if family is not None:
        entry["family"] = family
    return {**entry, "added": True} if added else entry


def _group_key(group: str | None) -> str:
    """A prompt group's key in the module dictionary; no group's for None."""
    return "" if group is None else f"group_{group}"


def _family_key(family: str) -> str:
    """A family's key in the module dictionary."""
    return f"family_{family}"
