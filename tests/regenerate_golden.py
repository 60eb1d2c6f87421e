"""Write the golden files anew: `python -m tests.regenerate_golden`, after a change that is meant to change outputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import torch

from mtop_batch.model.kinds.config import PromptAttention
from mtop_batch.model.kinds.mtop import MTOPModel
from mtop_batch.model.parts.prompts import INIT_STD
from mtop_batch.tasks import Task
from mtop_batch.training.loop import fit
from mtop_batch.training.settings import Worker
from tests.conftest import make_backbone
from tests.training.toy import make_data, make_model, make_settings

LOGITS = Path(__file__).parent / "model" / "kinds" / "golden" / "logits.json"
LOSSES = Path(__file__).parent / "training" / "golden" / "losses.json"


def golden_logits() -> dict[str, list[list[list[float]]]]:
    """Logits (B, N, C) of fixed models of both kinds of attention, with one task added later, on fixed tokens."""
    tasks = [Task("topic", labels=("a", "b")), Task("style", labels=("no", "yes"))]
    input_ids = torch.tensor([[2, 9, 30, 41, 8, 3], [2, 17, 25, 3, 0, 0]])
    logits = {}
    for attention in ("joint", "isolated"):
        model = MTOPModel.from_backbone(
            make_backbone(), tasks, prompt_attention=attention, shared_prompts=1, max_tokens=16
        )
        model.add_tasks([Task("added", labels=("x", "y"))], prompts_per_task=3)
        with torch.no_grad():
            for name in model.task_names:
                model.prompts(name).div_(INIT_STD)
            outputs = model(input_ids, (input_ids > 0).long()).logits
        logits[attention] = [[[round(v, 6) for v in task] for task in row] for row in outputs.tolist()]
    return logits


def golden_losses() -> dict[str, list[float]]:
    """The loss of each of the first steps on the toy tasks, for both kinds of attention, without dropout."""
    settings = make_settings(epochs=2, checkpoint_steps=1)
    losses = {}
    for attention in get_args(PromptAttention):
        events: list[dict[str, Any]] = []
        model = make_model(prompt_attention=attention)
        fit(model, make_data(), settings, worker=Worker(event_sink=events.append))
        losses[attention] = [round(event["loss"], 6) for event in events if event["event"] == "step"]
    return losses


if __name__ == "__main__":
    LOGITS.parent.mkdir(exist_ok=True)
    LOSSES.parent.mkdir(exist_ok=True)
    LOSSES.write_text(json.dumps(golden_losses(), indent=1) + "\n")
    LOGITS.write_text(json.dumps(golden_logits(), indent=1) + "\n")
