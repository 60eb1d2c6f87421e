"""A model kind: what the rest of the package needs of a multi-task model, whatever the method.

Training, evaluation, bundles, fingerprints and labelling use this interface and nothing else of a model; how a model
begins, and adding tasks to it, are its kind's own. A new kind is one module with a configuration and a subclass, an
entry in `mtop_batch.model.kinds.by_name.KINDS`, and a section in `mtop_batch.config.sections.MODEL_SECTIONS`.

Shapes: B texts, T text positions, n wanted tasks, C outputs of the task with the most, D hidden width.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils.generic import ModelOutput

from mtop_batch.errors import ConfigError, TaskError
from mtop_batch.model.encoder.backbone import build_backbone
from mtop_batch.model.encoder.inputs import Text, word_embeddings
from mtop_batch.model.encoder.kv_cache import KVCache
from mtop_batch.model.flops import ForwardFlops
from mtop_batch.model.kinds.config import KindConfig
from mtop_batch.model.parts.losses import task_loss
from mtop_batch.tasks import Reader, Task, select_tasks


@dataclass
class TaskOutput(ModelOutput):
    """What `MultiTaskModel.forward` returns.

    Args:
        loss: () The batch's loss, where labels were given.
        logits: (B, C) of the one task, or (B, n, C) of all tasks.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None


class MultiTaskModel(PreTrainedModel):
    """A backbone, and what reads it for several tasks.

    A kind defines `from_backbone`, `task_logits`, `outputs` and `task_tensors`; the other methods where the defaults do
    not fit.

    Args:
        config: Its backbone is built with random weights unless one is given.
        backbone: The encoder to use.
    """

    config_class = KindConfig
    config: KindConfig
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    readers: ClassVar[tuple[Reader, ...]] = ()
    """What a task of this kind of model can read; the first is what it reads unless it says otherwise."""

    def __init__(self, config: KindConfig, backbone: PreTrainedModel | None = None) -> None:
        super().__init__(config)
        if config.backbone_config is None:
            raise ConfigError(
                f"a {type(config).__name__} without backbone_config makes no model; use {type(self).__name__}."
                "from_backbone"
            )
        self.backbone = build_backbone(config.backbone_config) if backbone is None else backbone

    @classmethod
    def from_backbone(cls, *args: Any, **settings: Any) -> Self:
        """A new model around a pretrained encoder, in evaluation mode; the backbone is taken over, not copied.

        Args:
            args: The backbone and the tasks.
            settings: `max_tokens`, `seed`, and the settings of the kind, as its section of a configuration has them.
        """
        raise NotImplementedError

    def task_logits(self, task: str, text: Text) -> Tensor:
        """(B, C) The logits of one task, with gradients for what a step on this task may move."""
        raise NotImplementedError

    def outputs(self, wanted: tuple[str, ...], text: Text, *, vectors: bool) -> tuple[Tensor, Tensor]:
        """Logits and document vectors, for inference.

        Args:
            wanted: Tasks of this model, in the wanted order; may be none where vectors are wanted.
            text: Of B texts.
            vectors: Whether the vectors are wanted.

        Returns:
            (B, n, C) logits, -inf beyond a task's own labels; and (B, D) vectors, or (B, 0) where they are not wanted.
        """
        raise NotImplementedError

    def task_tensors(self, name: str) -> dict[str, Tensor]:
        """Copies of the parameters, besides backbone and `context_tensors`, that the task's output depends on."""
        raise NotImplementedError

    def task_parameters(self, name: str) -> list[nn.Parameter]:
        """The parameters that belong to the task alone."""
        raise NotImplementedError

    def task_settings(self, name: str) -> dict[str, Any]:
        """JSON-ready settings that the task's output depends on; they tell the kind of model."""
        del name
        return {"model_kind": self.config.model_type}

    def context_tensors(self) -> Iterable[tuple[str, Tensor]]:
        """The parameters, besides the backbone, that the encoder's outputs at the text depend on."""
        return ()

    def num_passes(self, tasks: Sequence[str]) -> int:
        """How often the text goes through the encoder for these tasks."""
        del tasks
        return 1

    def num_positions(self, tasks: Sequence[str]) -> int:
        """How many positions these tasks add to the sequence of every text."""
        del tasks
        return 0

    def tasks_that_size_batches(self, tasks: Sequence[str]) -> Sequence[str]:
        """Those of the tasks that the size of a batch is chosen for."""
        return tasks

    def forward_flops(self, tasks: Sequence[str], *, vectors: bool = False) -> ForwardFlops:
        """What labelling a text with these tasks, and its vector if that is wanted, costs."""
        del vectors
        heads = {id(p): p.numel() for name in tasks for p in self.task_parameters(name) if p.ndim > 1}
        return ForwardFlops.of_encoder(
            self.backbone,
            per_text=2.0 * sum(heads.values()),
            num_context_prompts=self.num_positions(tasks),
            num_passes=self.num_passes(tasks),
        )

    def fuse_layers(self) -> bool:
        """Make inference faster where the device allows it; returns whether anything changed."""
        return False

    def has_fixed_cache(self, tasks: Sequence[str]) -> bool:
        """Whether training these tasks leaves what `cache` returns as it is, so that it can be kept over epochs."""
        del tasks
        return False

    def cache(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> KVCache:
        """The KV cache of texts, for kinds in which tasks read it (`has_fixed_cache`)."""
        raise NotImplementedError

    def cached_logits(self, task: str, kv_cache: KVCache) -> Tensor:
        """(B, C) The logits of one task from what `cache` returned."""
        raise NotImplementedError

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        *,
        kv_cache: KVCache | None = None,
        task: str | None = None,
        labels: Tensor | None = None,
    ) -> TaskOutput:
        """The logits of one task, and its loss, or the logits of all tasks.

        Args:
            input_ids: (B, T) Padded on the right.
            attention_mask: (B, T) 1 for tokens, 0 for padding.
            token_type_ids: (B, T) 0 and 1 for the two texts of a pair.
            kv_cache: What `cache` returned for the texts, in place of the three above.
            task: The one task wanted; None for all.
            labels: (B,) Label indices or regression values of that task.

        Raises:
            TaskError: There is no such task, labels or a KV cache are given without one, or the task cannot use it.
        """
        if task is None:
            if labels is not None or input_ids is None:
                raise TaskError("labels or a KV cache are given without the task they belong to; pass task=NAME")
            return TaskOutput(logits=self.all_tasks(input_ids, attention_mask, token_type_ids))
        definition = self.task(task)
        if kv_cache is not None:
            logits = self.cached_logits(task, kv_cache)
        elif input_ids is not None:
            logits = self.task_logits(task, Text(input_ids, attention_mask, token_type_ids))
        else:
            raise TaskError(f"task {task!r} is given neither texts nor their KV cache; pass input_ids")
        loss = None if labels is None else task_loss(definition, logits, labels)
        return TaskOutput(loss=loss, logits=logits)

    def all_tasks(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        tasks: Sequence[str] | None = None,
        num_tokens: int | None = None,
    ) -> Tensor:
        """The logits of several tasks.

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
        return self.outputs(wanted, text, vectors=False)[0]

    def all_tasks_and_vectors(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        tasks: Sequence[str] | None = None,
        num_tokens: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The logits of several tasks, or of none, and the document vectors.

        Args:
            input_ids: As for `all_tasks`, like the others.

        Returns:
            (B, n, C) logits, and (B, D) vectors in float16 (`mtop_batch.model.parts.document_vectors`).

        Raises:
            TaskError: A wanted task does not exist.
        """
        wanted = tuple(self.task_names if tasks is None else tasks)
        text = Text(input_ids, attention_mask, token_type_ids, num_tokens)
        return self.outputs(wanted, text, vectors=True)

    @property
    def tasks(self) -> list[Task]:
        """The tasks in the order of the outputs."""
        return [Task.from_dict(entry["task"]) for entry in self.config.tasks]

    @property
    def task_names(self) -> list[str]:
        """The tasks' names in the order of the outputs."""
        return [entry["task"]["name"] for entry in self.config.tasks]

    def task(self, name: str) -> Task:
        """The definition of a task.

        Raises:
            TaskError: There is no such task.
        """
        return Task.from_dict(self._entry(name)["task"])

    def _entry(self, name: str) -> Mapping[str, Any]:
        """What the configuration says of a task."""
        for entry in self.config.tasks:
            if entry["task"]["name"] == name:
                return entry
        select_tasks([name], self.task_names)
        raise TaskError(f"there is no task {name!r}")

    @classmethod
    def check_readers(cls, tasks: Iterable[Task]) -> None:
        """Refuse tasks that read what this kind of model does not have.

        Raises:
            TaskError: Names the task, and what is allowed.
        """
        for task in tasks:
            if task.reads not in cls.readers:
                raise TaskError(
                    f"task {task.name!r}: reads = {task.reads!r} is not what a {cls.config_class.model_type!r} model "
                    f"has; allowed: {', '.join(cls.readers)}"
                )

    @property
    def word_embeddings(self) -> nn.Embedding:
        """The backbone's table of input embeddings."""
        return word_embeddings(self.backbone)

    def get_input_embeddings(self) -> nn.Embedding:
        """The same, under the name that transformers uses."""
        return word_embeddings(self.backbone)

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the backbone's table of input embeddings."""
        self.backbone.set_input_embeddings(value)

    def _init_weights(self, module: nn.Module) -> None:
        """Do nothing: `from_backbone` draws new parameters, checkpoints hold all others."""
