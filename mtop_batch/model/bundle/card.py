"""The model card of a bundle: what a person sees who opens its directory."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from mtop_batch.json_text import to_json
from mtop_batch.tasks import Task


def model_card(
    name: str,
    kind: str,
    tasks: Sequence[Task],
    metrics: Mapping[str, Mapping[str, float]],
    training_config: Mapping[str, Any],
    backbone_name: str,
    text_limits: Mapping[str, int],
    num_passes: int,
) -> str:
    """The card as Markdown.

    Args:
        name: Of the bundle.
        kind: Of the model.
        tasks: In the model's order.
        metrics: Task -> metric -> value on its evaluation data; tasks without any are listed all the same.
        training_config: The resolved configuration.
        backbone_name: As in the configuration.
        text_limits: How much of a text is read, as the model's configuration has them.
        num_passes: Forward passes that all tasks take.
    """
    rows = "\n".join(_row(task, metrics.get(task.name, {})) for task in tasks)
    return f"""---
library_name: transformers
pipeline_tag: text-classification
tags: [{kind}, multi-task]
---

# {name}

One `{kind}` model for {_count(len(tasks), "task")}, in {_count(num_passes, "forward pass", "es")}.
Backbone: `{backbone_name}`. {_reading(text_limits)}

| task | kind | reads | labels | text columns | on its evaluation data |
|---|---|---|---|---|---|
{rows}

## Use

    mtop predict --model {name} "Some text"
    mtop label --model {name} --corpus articles/ --labels labels/

```python
from mtop_batch import Predictor

Predictor.load("{name}").predict(["Some text"])
```

`transformers.AutoModel` and `AutoTokenizer` load the parts from a local copy, once `mtop_batch` is imported.

## Training configuration

```json
{to_json(training_config, indent=2)}
```
"""


def _reading(text_limits: Mapping[str, int]) -> str:
    """How much of a text the model reads."""
    max_tokens, max_windows = text_limits["max_tokens"], text_limits["max_windows"]
    if max_windows == 1:
        return f"Texts are cut at {max_tokens} tokens."
    return (
        f"Longer texts than {max_tokens} tokens are read in up to {max_windows} windows of so many, each with "
        f"{text_limits['window_overlap']} tokens of the one before."
    )


def _count(number: int, noun: str, ending: str = "s") -> str:
    return f"{number} {noun}{'' if number == 1 else ending}"


def _number(value: float) -> str:
    return "undefined" if math.isnan(value) else f"{value:.4g}"


def _row(task: Task, metrics: Mapping[str, float]) -> str:
    labels = ", ".join(task.labels) if task.labels else "a number"
    values = ", ".join(f"{metric} {_number(value)}" for metric, value in metrics.items()) or "not evaluated"
    cells = (task.name, task.kind, task.reads, labels, ", ".join(task.text), values)
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
