"""What is known of a task after its evaluation."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from mtop_batch.data.repeats import RepeatedText, Repeats
from mtop_batch.tasks import Task
from mtop_batch.training.checkpoint import TaskMetrics
from mtop_batch.training.evaluation.label_report import LabelReport

_MAX_NAMED = 1000


@dataclass(frozen=True)
class EvaluatedTask:
    """How good a bundle is at a task, and what of the task's data to doubt.

    Args:
        task: Its definition in the bundle, with the metric that judged it.
        metrics: As `training.evaluation.evaluate.task_metrics` returns them.
        report: Label by label.
        errors: The examples that it gets wrong (`label_report.ERROR_COLUMNS`).
        repeats: Texts of its training and evaluation examples that are there more than once; None if these were not
            compared.
        not_compared: Why not; empty if nobody asked for it.
        suspects: Training examples that are likely to be labelled wrongly, with the same columns; None if nobody
            looked.
        no_suspects: Why not; empty if nobody asked for it.
    """

    task: Task
    metrics: TaskMetrics
    report: LabelReport
    errors: pa.Table
    repeats: Repeats | None = None
    not_compared: str = ""
    suspects: pa.Table | None = None
    no_suspects: str = ""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready but for NaN: metrics, the report, and what of the data to doubt; a thousand texts of each kind."""
        values = {**self.metrics, **asdict(self.report)}
        if self.repeats is not None:
            values |= {
                "training_examples": self.repeats.num_train,
                "overlap": self.repeats.num_overlap,
                "overlap_texts": _named(self.repeats.overlap),
                "contradictions": len(self.repeats.contradictions),
                "contradictory_texts": _named(self.repeats.contradictions),
            }
        if self.suspects is not None:
            values["suspects"] = len(self.suspects)
        reasons = {"not_compared": self.not_compared, "no_suspects": self.no_suspects}
        return {**values, **{key: why for key, why in reasons.items() if why}}


def _named(texts: Iterable[RepeatedText]) -> list[dict[str, Any]]:
    return [asdict(text) for text, _ in zip(texts, range(_MAX_NAMED), strict=False)]
