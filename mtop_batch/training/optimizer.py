"""What the optimiser moves, at which rate, and how its work is kept cheap."""

from __future__ import annotations

from typing import Any

from torch.optim import AdamW
from transformers import PreTrainedModel

from mtop_batch.errors import ConfigError
from mtop_batch.model.encoder.inputs import encoder_layers, word_embeddings
from mtop_batch.model.kinds.base import MultiTaskModel
from mtop_batch.training.schedules import RateFactors
from mtop_batch.training.settings import TrainSettings

# A task has few steps to choose a prompt group in, and Adam moves a logit by about its rate in each.
_CHOICE_RATE = 0.05


def freeze_backbone(model: MultiTaskModel) -> None:
    """Train prompts, poolers and heads only (section 4.3)."""
    for encoder in model.encoders:
        encoder.requires_grad_(False)


def freeze_word_embeddings(model: MultiTaskModel) -> None:
    """Leave the word-embedding table as pretrained; its dense gradient takes time in a step on a small backbone."""
    for encoder in model.encoders:
        word_embeddings(encoder).requires_grad_(False)


def check_num_layers(backbone: PreTrainedModel, num_layers: int) -> None:
    """Refuse to freeze more layers than there are.

    Raises:
        ConfigError: They are more.
    """
    if num_layers > (most := len(encoder_layers(backbone))):
        raise ConfigError(
            f"train.freeze_layers = {num_layers} is more than the layers of {type(backbone).__name__}; "
            f"allowed: up to {most}"
        )


def freeze_layers(model: MultiTaskModel, num_layers: int) -> None:
    """Leave the lowest layers of the encoder as pretrained; its embeddings train."""
    for encoder in model.encoders:
        for layer in encoder_layers(encoder)[:num_layers]:
            layer.requires_grad_(False)


def make_optimizer(model: MultiTaskModel, settings: TrainSettings) -> AdamW:
    """AdamW over the parameters that train.

    A parameter without a gradient is not touched by a step: not by its momentum and not by decay. With
    `zero_grad(set_to_none=True)` this is what leaves the other tasks' parameters alone.

    Returns:
        The optimiser; each group keeps its peak rate under "peak_lr", and "backbone" says whether it is the encoder's.
    """
    return AdamW(_parameter_groups(model, settings), lr=settings.learning_rate, fused=True)


def set_learning_rates(optimizer: AdamW, factors: RateFactors) -> None:
    """Let every group run at its share of its peak rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * (factors.backbone if group["backbone"] else factors.heads)


def leave_backbone(optimizer: AdamW) -> None:
    """Drop the gradients of the encoder: neither a step nor its moments nor the norm of all gradients knows them."""
    for group in optimizer.param_groups:
        if group["backbone"]:
            for parameter in group["params"]:
                parameter.grad = None


def _parameter_groups(model: MultiTaskModel, settings: TrainSettings) -> list[dict[str, Any]]:
    """Groups by rate and decay: backbone or head rate, and no decay for biases, layer norms and prompts; the logits of
    a choice of prompt groups have a rate of their own.
    """
    rates = {True: settings.learning_rate, False: settings.head_learning_rate or settings.learning_rate}
    in_backbone = {id(parameter) for encoder in model.encoders for parameter in encoder.parameters()}
    groups: dict[tuple[bool, bool, bool], list[Any]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.numel():
            decays = parameter.ndim > 1 and not name.endswith("prompts")
            chooses = name.endswith("choice.logits")
            groups.setdefault((id(parameter) in in_backbone, decays, chooses), []).append(parameter)
    return [
        {
            "params": parameters,
            "peak_lr": _CHOICE_RATE if chooses else rates[backbone],
            "backbone": backbone,
            "weight_decay": settings.weight_decay if decays else 0.0,
        }
        for (backbone, decays, chooses), parameters in groups.items()
    ]
