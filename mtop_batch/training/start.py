"""What a training begins with: the settings that a configuration says, and the model.

Nothing here knows what runs the training: the caller learns the tasks alone, side by side or one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mtop_batch.config.model import MTOPModelConfig, PromptedModelConfig
from mtop_batch.config.sections import Config
from mtop_batch.config.train import OptimizerConfig, TrainConfig
from mtop_batch.data.examples import token_counts
from mtop_batch.errors import ConfigError
from mtop_batch.families import check_families
from mtop_batch.model.encoder.backbone import check_backbone, check_prompt_layers
from mtop_batch.model.encoder.families import check_families as check_encoder_has
from mtop_batch.model.encoder.inputs import hidden_size
from mtop_batch.model.kinds.base import MultiTaskModel
from mtop_batch.model.kinds.by_name import model_class
from mtop_batch.model.kinds.mtop import MTOPModel
from mtop_batch.model.kinds.p_tuning import PromptedModel
from mtop_batch.model.parts.text_heads import dynamic_widths
from mtop_batch.model.prefinetuned import check_prefinetuned, load_prefinetuned, read_families
from mtop_batch.training.optimizer import check_num_layers, freeze_backbone, freeze_layers, freeze_word_embeddings
from mtop_batch.training.schedules import RateSchedule
from mtop_batch.training.settings import TaskData, TrainSettings
from mtop_batch.training.warm_start import initialise, start_from_tokens

_MAX_NEW_HEAD_RATE = 1e-3
LearnAlone = Callable[[MTOPModel, Mapping[str, Any]], Mapping[str, Mapping[str, Tensor]]]
"""Given a model without tasks, and the arguments of `MTOPModel.add_tasks`, the tensors that each task learns alone."""


def check_readers(config: Config) -> None:
    """Refuse tasks and families that the model cannot have, and tasks that read the vector of a trained encoder.

    Raises:
        ConfigError, TaskError: Names the task.
    """
    model_class(config.model.kind).check_readers(config.tasks())
    check_families(config.families(), config.family_of())
    probes = [task.name for task in config.tasks() if task.reads_vector]
    if probes:
        raise ConfigError(
            f"task {probes[0]!r} reads the vector of a trained encoder, so it cannot be trained together with other "
            "tasks; train these first, then add it with `mtop add-tasks`"
        )


def check_encoder(config: Config, backbone: PreTrainedModel) -> None:
    """Refuse a backbone that the configuration's model cannot have.

    Raises:
        ConfigError: Says why.
    """
    check_backbone(backbone, config.backbone.max_tokens, config.model.settings().get("pooler_rank", 0))
    check_prompt_layers(backbone, config.model.settings().get("prompt_layers", 0))
    model_class(config.model.kind).check_encoder(backbone)
    check_num_layers(backbone, config.train.freeze_layers)
    check_encoder_has(backbone, {family.name: family.layers for family in config.family})
    check_prefinetuned(config.backbone.name, config.families())


def first_model(
    config: Config,
    backbone: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    data: Sequence[TaskData],
    learn_alone: LearnAlone,
) -> MultiTaskModel:
    """What the training of all tasks begins with.

    Args:
        config: Says which model, and how it begins.
        backbone: Becomes the model's.
        tokenizer: Of the backbone.
        data: Of every task, in the order of the configuration.
        learn_alone: Called where the model begins with what each task learns alone (paper, section 4.3).

    Raises:
        MtopError: A task cannot be learned alone, or the settings do not fit.
    """
    section = config.model
    settings = {"max_tokens": config.backbone.max_tokens, "seed": config.train.seed, **section.settings()}
    warm: Mapping[str, Mapping[str, Tensor]] = {}
    if isinstance(section, MTOPModelConfig):
        if section.needs_warm_start and any(item.task.reads_prompts for item in data):
            warm = _warm_start(config, section, backbone, learn_alone)
        settings["prompt_groups"] = config.prompt_groups()
        settings["families"], settings["family_of"] = config.families(), config.family_of()
        settings["attention_widths"] = _attention_widths(section, backbone, data)
    tasks = [item.task for item in data]
    model = model_class(section.kind).from_backbone(backbone, tasks, **settings)
    for key, value in config.backbone.text_limits.items():
        setattr(model.config, key, value)
    counts = None
    if isinstance(section, MTOPModelConfig | PromptedModelConfig) and section.prompt_init == "token":
        counts = token_counts((item.train.tokens for item in data), model.word_embeddings.num_embeddings)
    special_ids = tuple(tokenizer.all_special_ids)
    if isinstance(section, MTOPModelConfig) and isinstance(model, MTOPModel):
        initialise(
            model,
            prompt_init=section.prompt_init,
            pooler_init=section.pooler_init,
            warm=warm,
            token_counts=counts,
            special_ids=special_ids,
            cls_id=tokenizer.cls_token_id,
            seed=config.train.seed,
        )
        load_prefinetuned(model, read_families(config.backbone.name))
        model.open_groups(config.choosing_tasks())
    elif isinstance(model, PromptedModel) and counts is not None:
        start_from_tokens(model, counts, special_ids, config.train.seed)
    freeze(model, config.train)
    return model


def _attention_widths(section: MTOPModelConfig, backbone: PreTrainedModel, data: Sequence[TaskData]) -> dict[str, int]:
    """Task -> width, of those that read by attention."""
    reading = [item for item in data if item.task.reads == "attention"]
    if not reading:
        return {}
    names = [item.task.name for item in reading]
    if section.attention_width != "dypa":
        return dict.fromkeys(names, section.attention_width)
    widths = dynamic_widths([len(item.train) for item in reading], hidden_size(backbone), section.attention_heads)
    return dict(zip(names, widths, strict=True))


def warm_start_settings(train: TrainConfig) -> TrainSettings:
    """Those of the single-task phase; it ends with its last weights, and is short, so it takes no checkpoints."""
    changes = {
        **train.warm_start.model_dump(),
        "head_learning_rate": None,
        "schedule": RateSchedule(),
        "evaluate": False,
        "patience": None,
    }
    return train_settings(train, **changes)


def all_tasks_settings(config: Config, *, evaluate: bool) -> TrainSettings:
    """How all tasks train together: new heads of an `mtop` model need larger steps than its encoder."""
    train, model = config.train, config.model
    rate = train.head_learning_rate
    if rate is None and isinstance(model, MTOPModelConfig) and model.pooler_init != "single-task":
        rate = max(train.learning_rate, min(10 * train.learning_rate, _MAX_NEW_HEAD_RATE))
    return train_settings(train, head_learning_rate=rate, evaluate=evaluate)


def train_settings(section: OptimizerConfig, **changes: Any) -> TrainSettings:
    """How a section of the configuration says to train, but for some changes."""
    known = {field.name for field in fields(TrainSettings)}
    values = {key: value for key, value in section.model_dump().items() if key in known}
    if "schedule" in values:
        values["schedule"] = RateSchedule(**values["schedule"])
    return TrainSettings(**{**values, **changes})


def _warm_start(
    config: Config, section: MTOPModelConfig, backbone: PreTrainedModel, learn_alone: LearnAlone
) -> Mapping[str, Mapping[str, Tensor]]:
    """What each task learns alone, without shared prompts: those belong to no single task. The LoRA of its family is
    what the training of all begins with, and stays so.
    """
    start = MTOPModel.without_tasks(
        backbone,
        prompt_attention=section.prompt_attention,
        pooler_rank=section.pooler_rank,
        prompt_layers=section.prompt_layers,
        max_tokens=config.backbone.max_tokens,
    )
    start.add_families(config.families(), config.train.seed)
    load_prefinetuned(start, read_families(config.backbone.name))
    return learn_alone(start, {"prompts_per_task": section.prompts_per_task, "seed": config.train.seed})


def freeze(model: MultiTaskModel, train: TrainConfig) -> None:
    """Leave as pretrained what the configuration says so of."""
    freeze_layers(model, train.freeze_layers)
    if train.freeze_word_embeddings:
        freeze_word_embeddings(model)
    if train.freeze_backbone:
        freeze_backbone(model)
