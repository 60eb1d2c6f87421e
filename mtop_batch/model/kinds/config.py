"""What, besides weights, makes a model."""

from __future__ import annotations

from dataclasses import field
from typing import Any, Literal, get_args

from transformers import PreTrainedConfig

from mtop_batch.errors import ConfigError
from mtop_batch.model.foreign import foreign_settings

PromptAttention = Literal["joint", "isolated"]


class KindConfig(PreTrainedConfig):
    """What every kind of model has in its configuration; `model_type` names the kind.

    Args:
        backbone_config: Settings of the encoder, with its `model_type`.
        tasks: One entry per task, in order: `{"task": Task.to_dict()}` and what the kind adds.
        max_tokens: Longest text, or window of one, special tokens included, prompts not.
        max_windows: Of a text; with 1 texts are cut.
        window_overlap: Tokens that a window shares with the one before.
        inputs: What is read beside each text (`mtop_batch.tasks.VectorInput`, as a dictionary each).
    """

    backbone_config: dict[str, Any] | None = None
    tasks: list[dict[str, Any]] = field(default_factory=list)
    max_tokens: int = 128
    max_windows: int = 1
    window_overlap: int = 0
    inputs: list[dict[str, Any]] = field(default_factory=list)

    @property
    def text_limits(self) -> dict[str, int]:
        """How much of a text is read, as `TextTokenizer` takes it."""
        return {key: getattr(self, key) for key in ("max_tokens", "max_windows", "window_overlap")}

    def __post_init__(self, **kwargs: Any) -> None:
        kwargs.pop("bundle", None)  # it describes the files that the configuration came with, not the model
        for key, value in foreign_settings({"backbone_config": self.backbone_config, **kwargs}).items():
            raise ConfigError(f"{key} = {value!r} asks for other code or weights than the model's own; remove it")
        super().__post_init__(**kwargs)


class MTOPConfig(KindConfig):
    """What, besides weights, makes an `MTOPModel`.

    Args:
        tasks: To an entry of `KindConfig` are added `"prompts": how many, "isolated": bool`, and
            `"prompt_group": name` where the task shares the prompts of a prompt group, `"lora_rank"` where it has LoRA,
            `"family": name` where it is of a family, and `"added": True` where it was added later. A task that reads
            the vector has no prompts and counts as isolated.
        families: `Family` as a dictionary, of each family.
        shared_prompts: How many prompts belong to no task.
        prompt_attention: "joint" (the paper) or "isolated"; what the model was made with. What counts for a task
            is its own `isolated`, because tasks added later are isolated in joint models too.
        pooler_rank: Of the poolers' kernels; 0 for full ones.
        stop_gradient: Whether a step on one task leaves the other tasks' prompts alone (section 4.2).
        prompt_layers: The last so many layers are all that isolated prompts go through; 0 for all layers.
    """

    model_type = "mtop"

    families: list[dict[str, Any]] = field(default_factory=list)
    shared_prompts: int = 0
    prompt_attention: str = "joint"
    pooler_rank: int = 0
    stop_gradient: bool = True
    prompt_layers: int = 0

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        allowed = get_args(PromptAttention)
        if self.prompt_attention not in allowed:
            raise ConfigError(f"model.prompt_attention = {self.prompt_attention!r} is not one of {', '.join(allowed)}")
        if self.shared_prompts < 0:
            raise ConfigError(f"model.shared_prompts = {self.shared_prompts} is negative; allowed: 0 or more")
        if self.pooler_rank < 0:
            raise ConfigError(f"model.pooler_rank = {self.pooler_rank} is negative; allowed: 0 or more")
        if self.prompt_layers and (self.prompt_attention != "isolated" or self.shared_prompts):
            raise ConfigError(
                f"model.prompt_layers = {self.prompt_layers} is for prompts that the text does not see; set "
                'model.prompt_attention = "isolated" and model.shared_prompts = 0, or remove it'
            )
