"""Tables about entities beside texts, in which each family has a mean of its own."""

from __future__ import annotations

import json
from collections.abc import Sequence

from mtop_batch.experiments.methods.families import ENTITIES, TEXTS
from mtop_batch.experiments.methods.method import COMMON
from mtop_batch.experiments.page.markdown import bold, judged_by, markdown, spread_text
from mtop_batch.experiments.page.summary import ResultTable
from mtop_batch.experiments.runs.specs import RunSpec

FAMILY_NAMES = (ENTITIES, TEXTS)


def quality_of_families(table: ResultTable) -> str:
    """The paper has no such table; each family has a mean of its own."""
    names = [task.name for task in table.tasks]
    head = ["method", "seeds", *map(judged_by, table.tasks), *(f"mean, {family}" for family in FAMILY_NAMES), "mean"]
    rows = []
    for row in table.rows:
        cells = [spread_text(row.tasks.get(name)) for name in names]
        of_families = [row.families.get(family) for family in FAMILY_NAMES]
        means = [spread_text(None if of is None else of.spread) for of in of_families]
        rows.append([row.title, str(len(row.runs)), *cells, *means, bold(spread_text(row.mean))])
    return markdown(head, rows)


def notes_on_families(table: ResultTable) -> list[str]:
    """What the rows are, and what they learn from."""
    specs = [run.spec for row in table.rows for run in row.runs.values()]
    lora, before = (next((value for value in of if value), None) for of in _settings_of_families(specs))
    notes = [
        "All models have the same heads: of texts a pooler and a layer at the first token, of entities a layer at each "
        "word. *Task-primary LoRA* has LoRA of each family in the last layers of one encoder"
        f"{f' (`{json.dumps(lora)}`)' if lora else ''}. F1 of entities is that of `seqeval`, strict; whoever draws a "
        "test sentence for an interval draws all of its entities."
    ]
    if before:
        said = {key: value for key, value in before.items() if key != "sources" and COMMON.get(key) != value}
        what = (
            "source tasks of their own" if before["sources"] else "the very training examples of the tasks, no others"
        )
        notes.append(
            f"*Pre-finetuned*: the encoder learned before from {what}, from texts by supervised contrastive learning "
            f"and from entities by their tags, in the same way as the row shares (`{json.dumps(said)}`). That is done "
            "once for all seeds; its time counts in every run."
        )
    return notes


def _settings_of_families(specs: Sequence[RunSpec]) -> tuple[list[dict[str, object] | None], ...]:
    return [spec.families for spec in specs], [spec.prefinetune for spec in specs]
