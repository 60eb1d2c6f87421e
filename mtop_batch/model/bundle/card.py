"""The model card of a bundle: what a person sees who opens its directory."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mtop_batch.families import EncoderPasses
from mtop_batch.json_text import to_json
from mtop_batch.lines import ends, listed
from mtop_batch.tasks import Task

_MAX_LABELS = 20


def model_card(
    name: str,
    kind: str,
    tasks: Sequence[Task],
    metrics: Mapping[str, Mapping[str, float]],
    training_config: Mapping[str, Any],
    backbone_name: str,
    text_limits: Mapping[str, int],
    passes: EncoderPasses,
    decisions: Mapping[str, Mapping[str, Any]] | None = None,
    plot: str = "",
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
        passes: Forward passes that tasks take.
        decisions: Task -> what was fitted to decide its labels.
        plot: Name of the reliability plot beside the card; empty if there is none.
    """
    num_passes = passes([task.name for task in tasks])
    by_name = {task.name: task for task in tasks}
    values = {task.name: metrics.get(task.name, {}).get(str(task.metric), math.nan) for task in tasks}
    rows = _rows(values, lambda name: _row(by_name[name], metrics.get(name, {})), "metrics.json")
    many = ends(values)[1]
    training_config = (
        {**training_config, "task": f"{len(tasks):,} tasks, in training.json"} if many else training_config
    )
    return f"""---
library_name: transformers
pipeline_tag: text-classification
tags: [{kind}, multi-task]
---

# {name}

One `{kind}` model for {_count(len(tasks), "task")}, in {_count(round(num_passes, 3), "forward pass", "es")}.
Backbone: `{backbone_name}`. {_reading(text_limits)}{_families(passes)}

| task | kind | reads | labels | text columns | on its evaluation data |
|---|---|---|---|---|---|
{rows}
{_decisions(decisions or {}, plot)}
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


def _decisions(decisions: Mapping[str, Mapping[str, Any]], plot: str) -> str:
    """How probabilities become labels, and how far they can be trusted, on the same data."""
    if not decisions:
        return ""

    def row(name: str) -> str:
        of = decisions[name]
        return (
            f"| {name} | {of['temperature']:.3g} | {_number(of['before']['error'])} | "
            f"{_number(of['after']['error'])} | {_number(of['after']['brier'])} | {_decides(of)} |"
        )

    rows = _rows({name: -of["after"]["error"] for name, of in decisions.items()}, row, "decisions.json")
    return f"""
## Decisions

A score is the probability of its label. On the evaluation data, by the expected calibration error (ECE) and the Brier
score:

| task | temperature | ECE before | ECE | Brier | decides |
|---|---|---|---|---|---|
{rows}
{f"{chr(10)}![How often a label is right, by its score]({plot}){chr(10)}" if plot else ""}"""


def _rows(values: Mapping[str, float], row: Callable[[str], str], rest: str) -> str:
    """The rows of a table; of many, those with the highest and the lowest values, and where the others are."""
    first, last = ends(values)
    more = [f"| ... {len(values) - len(first) - len(last):,} more, in `{rest}` |"] if last else []
    return "\n".join([*map(row, first), *more, *map(row, last)])


def _decides(of: Mapping[str, Any]) -> str:
    """In words."""
    words = []
    if of["wish"]:
        (key, value), *_ = of["wish"].items()
        reached = [
            f"{label['label']} from {label['threshold']:.3g} on (precision {_share(label['precision'])}, "
            f"recall {_share(label['recall'])})"
            for label in of["labels"][:_MAX_LABELS]
        ]
        more = len(of["labels"]) - len(reached)
        words.append(f"{key} {value}: {', '.join(reached)}{f', and {more} more labels' if more else ''}")
    if of["abstain_below"]:
        words.append(f"abstains below {of['abstain_below']:g} ({_share(of['abstained'])} of the examples)")
    words += [f"`{rule}`" for rule in of["rules"]]
    return "; ".join(words).replace("|", "\\|").replace("\n", " ") or "the likeliest"


def _share(value: float | None) -> str:
    return "undefined" if value is None or math.isnan(value) else f"{value:.1%}"


def _reading(text_limits: Mapping[str, int]) -> str:
    """How much of a text the model reads."""
    max_tokens, max_windows = text_limits["max_tokens"], text_limits["max_windows"]
    if max_windows == 1:
        return f"Texts are cut at {max_tokens} tokens."
    return (
        f"Longer texts than {max_tokens} tokens are read in up to {max_windows} windows of so many, each with "
        f"{text_limits['window_overlap']} tokens of the one before."
    )


def _families(passes: EncoderPasses) -> str:
    """Which tasks share layers of their own."""
    lines = [
        f"* `{family}`, LoRA in the last {layers} of {passes.num_layers} layers: "
        + listed([task for task, own in passes.family_of.items() if own == family])
        for family, layers in passes.layers.items()
    ]
    return "\n\nFamilies of tasks:\n\n" + "\n".join(lines) if lines else ""


def _count(number: float, noun: str, ending: str = "s") -> str:
    return f"{number:,g} {noun}{'' if number == 1 else ending}"


def _number(value: float) -> str:
    return "undefined" if math.isnan(value) else f"{value:.4g}"


def _row(task: Task, metrics: Mapping[str, float]) -> str:
    labels = listed(task.labels) if task.labels else "a number"
    values = ", ".join(f"{metric} {_number(value)}" for metric, value in metrics.items()) or "not evaluated"
    cells = (task.name, task.kind, task.reads, labels, ", ".join(task.text), values)
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
