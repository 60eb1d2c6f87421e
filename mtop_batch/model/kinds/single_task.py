"""Single task: a model of its own for each task, all kept together: an encoder, a pooler and a head each.

Each of them is an `MTDNNModel` of one task. Nothing is shared, so every task takes a pass of its own, and each trains
by itself and has a best checkpoint of its own (section 6.2 of Huang et al.).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Self, cast

from torch import Tensor, nn
from transformers import PreTrainedModel

from mtop_batch.model.encoder.inputs import Text
from mtop_batch.model.flops import ForwardFlops
from mtop_batch.model.kinds.base import MultiTaskModel, module_key
from mtop_batch.model.kinds.mt_dnn import MTDNNConfig, MTDNNModel
from mtop_batch.model.kinds.pooled import PooledConfig
from mtop_batch.tasks import Task, select_tasks


class SingleTaskConfig(PooledConfig):
    """What, besides weights, makes a `SingleTaskModel`."""

    model_type = "single-task"


class SingleTaskModel(MultiTaskModel):
    """The models; make them with `from_backbone` or load them with `from_pretrained`.

    Args:
        config: The backbones are built with random weights unless one is given.
        backbone: The encoder of the first task; the others get copies.
    """

    config_class = SingleTaskConfig
    config: SingleTaskConfig
    readers = ("pooled",)
    pass_per_task = True

    def __init__(self, config: SingleTaskConfig, backbone: PreTrainedModel | None = None) -> None:
        super().__init__(config, backbone)
        self.post_init()

    def _add_encoder(self, backbone: PreTrainedModel) -> None:
        self.models = nn.ModuleDict()
        for entry in self.config.tasks:
            encoder = copy.deepcopy(backbone) if self.models else backbone
            self.models[module_key(entry["task"]["name"])] = MTDNNModel(self._config_of(entry), encoder)

    def _config_of(self, entry: Mapping[str, Any]) -> MTDNNConfig:
        config = self.config
        return MTDNNConfig(
            backbone_config=config.backbone_config,
            tasks=[dict(entry)],
            max_tokens=config.max_tokens,
            dropout=config.dropout,
        )

    @classmethod
    def from_backbone(
        cls,
        backbone: PreTrainedModel,
        tasks: Sequence[Task],
        *,
        dropout: float = 0.1,
        max_tokens: int = 128,
        seed: int = 0,
    ) -> Self:
        """Models around a pretrained encoder and copies of it; arguments and errors are those of `MTDNNModel`'s."""
        return cls._around(backbone, tasks, max_tokens, seed, dropout=dropout)

    def initialise(self, seed: int) -> None:
        """Draw poolers and heads at random."""
        for name in self.task_names:
            self.model_of(name).initialise(seed)

    def model_of(self, task: str) -> MTDNNModel:
        """The task's own model.

        Raises:
            TaskError: There is no such task.
        """
        if module_key(task) not in self.models:
            select_tasks([task], self.task_names)
        return cast(MTDNNModel, self.models[module_key(task)])

    @property
    def backbone(self) -> PreTrainedModel:  # type: ignore[override]  # which is never set: there are several
        """The encoder of the first task, for what all encoders have in common."""
        return self.encoders[0]

    @property
    def encoders(self) -> list[PreTrainedModel]:
        """The encoders of all tasks."""
        return [self.encoder_of(name) for name in self.task_names]

    def encoder_of(self, task: str) -> PreTrainedModel:
        """The task's own encoder."""
        return self.model_of(task).backbone

    def task_logits(self, task: str, text: Text) -> Tensor:
        """(B, C) The logits of one task, by its model."""
        return self.model_of(task).task_logits(task, text)

    def task_tensors(self, name: str) -> dict[str, Tensor]:
        """Copies of the task's pooler and head."""
        return self.model_of(name).task_tensors(name)

    def task_parameters(self, name: str) -> list[nn.Parameter]:
        """All parameters of the task's model."""
        return list(self.model_of(name).parameters())

    def load_task(self, name: str, weights: Mapping[str, Tensor]) -> None:
        """Give a task's model its weights, the state of an `MTDNNModel` of that task."""
        self.model_of(name).load_state_dict(dict(weights))

    def forward_flops(self, tasks: Sequence[str], *, vectors: bool = False) -> ForwardFlops:
        """What labelling a text with these tasks costs."""
        del vectors
        own = [self.model_of(name).forward_flops([name]).per_text for name in tasks]
        return ForwardFlops.of_encoder(self.backbone, per_text=sum(own), num_passes=len(tasks))

    def fuse_layers(self) -> bool:
        """Fuse the layers of all encoders (`EncoderModel.fuse_layers`)."""
        return all(self.model_of(name).fuse_layers() for name in self.task_names)
