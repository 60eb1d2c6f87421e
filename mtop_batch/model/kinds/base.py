"""A model kind: what the rest of the package needs of a multi-task model, whatever the method.

Training, evaluation, bundles, fingerprints and labelling use this interface and nothing else of a model; how a model
begins, and adding tasks to it, are its kind's own. A new kind is one module with a configuration and a subclass, an
entry in `mtop_batch.model.kinds.by_name.KINDS`, and a section in `mtop_batch.config.model.MODEL_SECTIONS`.

Shapes: B texts, T text positions, n wanted tasks, C outputs of the task with the most, D hidden width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils.generic import ModelOutput

from mtop_batch.errors import ConfigError, TaskError
from mtop_batch.families import EncoderPasses
from mtop_batch.lines import listed
from mtop_batch.model.encoder.backbone import backbone_config_dict, check_backbone
from mtop_batch.model.encoder.inputs import Text
from mtop_batch.model.encoder.kv_cache import KVCache, use_kv_cache_attention
from mtop_batch.model.flops import ForwardFlops
from mtop_batch.model.kinds.config import KindConfig
from mtop_batch.model.kinds.encoder_model import EncoderModel
from mtop_batch.model.parts.document_vectors import join_logits
from mtop_batch.model.parts.losses import task_loss
from mtop_batch.model.parts.vector_inputs import PlacedVectors
from mtop_batch.model.parts.windows import combine_logits, combine_vectors
from mtop_batch.tasks import Reader, Task, check_task_names, select_tasks

INPUTS = "vector inputs"
"""What draws of the inputs' layers are named; no task can have that name."""


@dataclass
class TaskOutput(ModelOutput):
    """What `MultiTaskModel.forward` returns.

    Args:
        loss: () The batch's loss, where labels were given.
        logits: (B, C) of the one task, or (B, n, C) of all tasks; of a regression the value.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None


class Outputs(NamedTuple):
    """What a model puts out for B texts.

    Args:
        logits: (B, n, C) Of the n wanted tasks that say something of a text, in the wanted order.
        vectors: (B, D) float16 The document vectors, or (B, 0) where they are not wanted.
        at_tokens: (B, T, C) float32 The logits of each wanted token task, by its name.
    """

    logits: Tensor
    vectors: Tensor
    at_tokens: Mapping[str, Tensor] = MappingProxyType({})


class MultiTaskModel(EncoderModel):
    """A model that gives labels of several tasks.

    A kind defines `from_backbone`, `task_logits` and `task_tensors`, `outputs` unless it has a pass per task, and the
    other methods where the defaults do not fit.

    Args:
        config: Its backbone is built with random weights unless one is given.
        backbone: The encoder to use.
    """

    readers: ClassVar[tuple[Reader, ...]] = ()
    """What a task of this kind of model can read; the first is what it reads unless it says otherwise."""
    pass_per_task: ClassVar[bool] = False
    """Whether a text goes through an encoder once for each task. There is no document vector of it then."""

    def __init__(self, config: KindConfig, backbone: PreTrainedModel | None = None) -> None:
        super().__init__(config, backbone)
        self._kept_scales: tuple[tuple[tuple[float, float], ...], torch.device, Tensor] | None = None

    @classmethod
    def from_backbone(cls, *args: Any, **settings: Any) -> Self:
        """A new model around a pretrained encoder, in evaluation mode; the backbone is taken over, not copied.

        Args:
            args: The backbone and the tasks.
            settings: `max_tokens`, `seed`, and the settings of the kind, as its section of a configuration has them.
        """
        raise NotImplementedError

    @classmethod
    def _around(
        cls, backbone: PreTrainedModel, tasks: Sequence[Task], max_tokens: int, seed: int, **settings: Any
    ) -> Self:
        """A new model with these settings of its configuration, for the `from_backbone` of kinds whose tasks all come
        at once.

        Raises:
            ConfigError: The backbone or a setting cannot work.
            TaskError: There is no task, two have the same name, or one reads what the kind does not have.
        """
        if not tasks:
            raise TaskError("no task is given; give at least one [[task]]")
        cls.check_readers(tasks)
        check_task_names(task.name for task in tasks)
        use_kv_cache_attention(backbone)
        check_backbone(backbone, max_tokens)
        cls.check_encoder(backbone)
        config = cls.config_class(
            backbone_config=backbone_config_dict(backbone.config),
            tasks=[{"task": task.to_dict()} for task in tasks],
            max_tokens=max_tokens,
            **settings,
        )
        model = cls(config, backbone)
        model.initialise(seed)
        return model.to(device=backbone.device, dtype=backbone.dtype).eval()  # type: ignore[call-arg]

    def settle(self) -> None:
        """Decide what is open while the model trains; called when that is over."""

    def initialise(self, seed: int) -> None:
        """Draw all but the backbone at random; a task's draws depend on the seed and its name only."""
        raise NotImplementedError

    def task_logits(self, task: str, text: Text) -> Tensor:
        """(B, C) What one task's head puts out, with gradients for what a step on this task may move.

        Of a token task they are (B, T, C). The head computes in float32; a regression puts out standard deviations
        from the mean (`Task.mean`).
        """
        raise NotImplementedError

    def outputs(self, wanted: tuple[str, ...], text: Text, *, vectors: bool) -> Outputs:
        """What these tasks put out, for inference; by default each task by itself, as in `pass_per_task`.

        Args:
            wanted: Tasks of this model, in the wanted order; may be none where vectors are wanted.
            text: Of B texts.
            vectors: Whether the vectors are wanted.

        Returns:
            What the heads put out, as in `task_logits`, -inf beyond a task's own labels; and the vectors.

        Raises:
            ConfigError: Vectors are wanted, and there are none.
        """
        if vectors:
            raise ConfigError(self.no_vectors(self.config.model_type))
        logits = [self.task_logits(name, text)[:, None] for name in wanted]
        return Outputs(join_logits(logits, None), logits[0].new_empty(len(logits[0]), 0))

    @staticmethod
    def no_vectors(kind: str) -> str:
        """Why a kind of model with a pass per task refuses to give document vectors."""
        return (
            f"a {kind!r} model reads a text once for each task, so there is no document vector of the text itself; "
            "leave vectors out, or train an 'mtop' or 'mt-dnn' model"
        )

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
        return self.input_tensors()

    def shared_tensors(self, name: str) -> Iterable[tuple[str, Tensor]]:
        """The parameters besides all these that the task's output depends on and that it shares with some others."""
        del name
        return ()

    @property
    def passes(self) -> EncoderPasses:
        """How often the text goes through an encoder for some tasks, parts of a pass included."""
        return EncoderPasses(per_task=self.pass_per_task)

    def num_positions(self, tasks: Sequence[str]) -> int:
        """How many positions these tasks add to the sequence of every text, in each pass."""
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
            num_passes=len(tasks) if self.pass_per_task else 1,
        )

    def has_fixed_cache(self, tasks: Sequence[str]) -> bool:
        """Whether training these tasks leaves what `cache` returns as it is, so that it can be kept over epochs."""
        del tasks
        return False

    def cache(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        input_vectors: PlacedVectors | None = None,
        *,
        tasks: Sequence[str] = (),
    ) -> KVCache:
        """The KV cache of texts that these tasks read, for kinds in which they do (`has_fixed_cache`)."""
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
        class_weights: Tensor | None = None,
        num_windows: Tensor | None = None,
        input_vectors: PlacedVectors | None = None,
    ) -> TaskOutput:
        """The logits of one task, and its loss, or the logits of all tasks.

        Args:
            input_ids: (B, T) Padded on the right.
            attention_mask: (B, T) 1 for tokens, 0 for padding.
            token_type_ids: (B, T) 0 and 1 for the two texts of a pair.
            kv_cache: What `cache` returned for the texts, in place of the three above.
            task: The one task wanted; None for all.
            labels: (B,) Label indices or regression values of that task; (B, C) which labels a text has, of a
                multi-label task; (B, T) the tags of a token task (`model.parts.losses`).
            class_weights: (C,) What an example of each label counts in the loss; None for 1 each.
            num_windows: (R,) int64 How many of the B rows, one after the other, are windows of one text. Labels, logits
                and loss are of R texts then; of a token task those of the windows, as always. None for one each.
            input_vectors: What stands beside the texts (`text`).

        Raises:
            TaskError: There is no such task, labels or a KV cache are given without one, or the task cannot use it.
        """
        if task is None:
            if labels is not None or input_ids is None:
                raise TaskError("labels or a KV cache are given without the task they belong to; pass task=NAME")
            return TaskOutput(
                logits=self.all_tasks(input_ids, attention_mask, token_type_ids, input_vectors=input_vectors)
            )
        definition = self.task(task)
        if num_windows is not None and definition.reads_vector and input_ids is not None:
            found = self.all_tasks_and_vectors(
                input_ids, attention_mask, token_type_ids, (), input_vectors=input_vectors
            )[1]
            logits = self.vector_outputs((task,), combine_vectors(found, num_windows))[:, 0]
        elif kv_cache is not None:
            logits = self.cached_logits(task, kv_cache)
        elif input_ids is not None:
            text = self.text(input_ids, attention_mask, token_type_ids, input_vectors=input_vectors)
            logits = self.task_logits(task, text)
        else:
            raise TaskError(f"task {task!r} is given neither texts nor their KV cache; pass input_ids")
        if num_windows is not None and not definition.reads_vector and not definition.is_token:
            logits = combine_logits(logits, num_windows, definition.combine)
        loss = None if labels is None else task_loss(definition, logits, labels, class_weights)
        return TaskOutput(loss=loss, logits=self._in_units((task,), logits[:, None])[:, 0])

    def vector_outputs(self, wanted: tuple[str, ...], vectors: Tensor) -> Tensor:
        """(B, n, C) What tasks that read the vector put out, as in `outputs`, for kinds that have such tasks.

        Args:
            wanted: Tasks of this model that read the vector, at least one.
            vectors: (B, D) float16
        """
        raise NotImplementedError

    def all_tasks_from_vectors(self, vectors: Tensor, tasks: Sequence[str]) -> Tensor:
        """(B, n, C) What `all_tasks` returns for tasks that read the vector, from (B, D) vectors."""
        return self._in_units(tasks, self.vector_outputs(tuple(tasks), vectors))

    def all_tasks(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        tasks: Sequence[str] | None = None,
        num_tokens: int | None = None,
        input_vectors: PlacedVectors | None = None,
    ) -> Tensor:
        """The logits of several tasks.

        Args:
            input_ids: (B, T) Padded on the right.
            attention_mask: (B, T) 1 for tokens, 0 for padding.
            token_type_ids: (B, T) 0 and 1 for the two texts of a pair.
            tasks: The wanted ones, in the wanted order; None for all but token tasks.
            num_tokens: How many ones the mask has, as far as that is known: then a GPU computes nothing at padding.
            input_vectors: What stands beside the texts (`text`).

        Returns:
            (B, n, C) logits of the n wanted tasks; -inf beyond a task's own labels; a regression's value comes first.

        Raises:
            TaskError: A wanted task does not exist or is a token task, or none is wanted.
        """
        wanted = self._of_texts(tasks)
        if not wanted:
            raise TaskError(f"no task is wanted; tasks: {listed(self.task_names)}")
        text = self.text(input_ids, attention_mask, token_type_ids, num_tokens, input_vectors)
        return self._in_units(wanted, self.outputs(wanted, text, vectors=False).logits)

    def all_tasks_and_vectors(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        tasks: Sequence[str] | None = None,
        num_tokens: int | None = None,
        input_vectors: PlacedVectors | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The logits of several tasks, or of none, and the document vectors.

        Args:
            input_ids: As for `all_tasks`, like the others.

        Returns:
            (B, n, C) logits, and (B, D) vectors in float16 (`mtop_batch.model.parts.document_vectors`).

        Raises:
            TaskError: A wanted task does not exist or is a token task.
        """
        wanted = self._of_texts(tasks)
        text = self.text(input_ids, attention_mask, token_type_ids, num_tokens, input_vectors)
        found = self.outputs(wanted, text, vectors=True)
        return self._in_units(wanted, found.logits), found.vectors

    def all_outputs(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        tasks: Sequence[str] = (),
        num_tokens: int | None = None,
        input_vectors: PlacedVectors | None = None,
        *,
        vectors: bool = False,
    ) -> Outputs:
        """What tasks of all kinds put out: as `all_tasks` and `all_tasks_and_vectors`, and token tasks too.

        Args:
            input_ids: As for `all_tasks`, like the others.
            vectors: Whether document vectors are wanted.

        Raises:
            TaskError: A wanted task does not exist.
        """
        select_tasks(tasks, self.task_names)
        text = self.text(input_ids, attention_mask, token_type_ids, num_tokens, input_vectors)
        found = self.outputs(tuple(tasks), text, vectors=vectors)
        of_texts = [name for name in tasks if name not in self.token_tasks]
        return found._replace(logits=self._in_units(of_texts, found.logits))

    def _of_texts(self, tasks: Sequence[str] | None) -> tuple[str, ...]:
        """The wanted tasks, all of which say something of a text; None for all of these."""
        at_tokens = self.token_tasks
        if tasks is None:
            return tuple(name for name in self.task_names if name not in at_tokens)
        for name in tasks:
            if name in at_tokens:
                raise TaskError(f"task {name!r} is a token task, which says something of each word; use all_outputs")
        return tuple(tasks)

    def _in_units(self, wanted: Sequence[str], logits: Tensor) -> Tensor:
        """(B, n, C) The logits of the wanted tasks, in which those of regressions are values, as the labels were."""
        tasks = {entry["task"]["name"]: entry["task"] for entry in self.config.tasks}
        if all(tasks[name]["kind"] != "regression" for name in wanted):
            return logits
        std, mean = self._label_scales([tasks[name] for name in wanted], logits.device)
        values = logits[..., :1].float() * std[:, None] + mean[:, None]
        return torch.cat([values, logits[..., 1:].float()], dim=-1)

    def _label_scales(self, tasks: Sequence[Mapping[str, Any]], device: torch.device) -> Tensor:
        """(2, n) Standard deviation and mean of each task's labels; kept, for a new tensor would make a GPU wait."""
        scales = tuple((task.get("std", 1.0), task.get("mean", 0.0)) for task in tasks)
        if self._kept_scales is None or self._kept_scales[:2] != (scales, device):
            with torch.inference_mode(False):  # training may use it after evaluation
                self._kept_scales = scales, device, torch.tensor(scales, device=device).T.contiguous()
        return self._kept_scales[2]

    @property
    def tasks(self) -> list[Task]:
        """The tasks in the order of the outputs."""
        return [Task.from_dict(entry["task"]) for entry in self.config.tasks]

    def set_tasks(self, tasks: Iterable[Task]) -> None:
        """Replace definitions of tasks by others that differ in what outputs do not depend on, such as decisions."""
        changed = {task.name: task.to_dict() for task in tasks}
        self.config.tasks = [
            {**entry, "task": changed.get(entry["task"]["name"], entry["task"])} for entry in self.config.tasks
        ]

    @property
    def task_names(self) -> list[str]:
        """The tasks' names in the order of the outputs."""
        return [entry["task"]["name"] for entry in self.config.tasks]

    @property
    def token_tasks(self) -> frozenset[str]:
        """The names of those that find entities."""
        return frozenset(entry["task"]["name"] for entry in self.config.tasks if entry["task"]["kind"] == "token")

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


def module_key(name: str) -> str:
    """A task's key in a module dictionary; the prefix keeps names such as "type" or "keys" from its attributes."""
    return f"task_{name}"


def generator_of(seed: int, name: str) -> torch.Generator:
    """A source of draws that depends on the seed and a name only, such as a task's."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
