"""The result of a run: counts that add up, and everything that was not done, with reasons.

<labels>/_runs/<run>/report.json, and report.html for people
"""

from __future__ import annotations

import json
import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from mtop_batch import storage
from mtop_batch.json_text import to_json
from mtop_batch.labelling.plan.work import Plan
from mtop_batch.labelling.report.page import run_page
from mtop_batch.labelling.report.stragglers import Stragglers
from mtop_batch.labelling.report.throughput import Performance
from mtop_batch.lines import counted
from mtop_batch.table.definition import Definition
from mtop_batch.table.gate.rules import Verdict
from mtop_batch.table.lake.sync import LakeCommit
from mtop_batch.table.publisher import Published
from mtop_batch.table.runs import list_runs, new_run_id, run_uri, write_run

if TYPE_CHECKING:
    from mtop_batch.labelling.run.stages import UnitResult

__all__ = ["RunReport", "new_run_id", "write_report", "write_run"]

_FORMAT = 1
_MAX_EXAMPLES = 20


@dataclass
class RunReport:
    """Adds up the results of a run's units.

    `rows == labelled + errors` at any time. `documents_per_s` counts rows over the wall-clock time of the run so far.

    Args:
        run: The run's id.
        definition: What the run wants.
        plan: What it is to do.
        status: "running", and in the end "done", "gate closed" or "failed".
        failure: Why it failed.
        num_actors: Labelling actors that there are to be.
        start_up_s: Seconds until the first of them was ready.
        gate: What the gate says of what is to be published; None if it was not asked.
        price_per_hour: Of a device, if costs are to be told.
        published: What it published; None before that, or where the gate is closed.
        rows_from: Rows by what they were computed from: "texts", "vectors" or "scores".
        cells_from: Cells likewise.
        abstained: Task -> articles without a label because it is too unsure.
        corrected: Task -> articles whose label a rule has changed.
        lake: What it committed to a Delta or Iceberg table; None before that, or if there is none.
    """

    run: str
    definition: Definition
    plan: Plan
    status: str = "running"
    failure: str | None = None
    rows: int = 0
    labelled: int = 0
    errors: int = 0
    cells_done: int = 0
    rows_from: Counter[str] = field(default_factory=Counter)
    cells_from: Counter[str] = field(default_factory=Counter)
    units_done: int = 0
    texts_cut: int = 0
    texts_in_windows: int = 0
    num_tokens: int = 0
    num_padded_tokens: int = 0
    num_bytes: int = 0
    flops: float = 0.0
    peak_flops_per_s: float = 0.0
    num_actors: int = 0
    start_up_s: float | None = None
    retries: int = 0
    price_per_hour: float | None = None
    gate: Verdict | None = None
    published: Published | None = None
    lake: LakeCommit | None = None
    error_reasons: Counter[str] = field(default_factory=Counter)
    error_examples: list[dict[str, Any]] = field(default_factory=list)
    label_counts: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    list_counts: Counter[str] = field(default_factory=Counter)
    abstained: Counter[str] = field(default_factory=Counter)
    corrected: Counter[str] = field(default_factory=Counter)
    stage_seconds: Counter[str] = field(default_factory=Counter)
    stragglers: Stragglers = field(default_factory=Stragglers)
    unreadable: dict[str, str] = field(init=False)
    started: datetime = field(default_factory=lambda: datetime.now(UTC))
    _clock_s: float = field(default_factory=time.monotonic)
    _seconds: float | None = None

    def __post_init__(self) -> None:
        self.unreadable = dict(self.plan.unreadable)

    def add(self, result: UnitResult) -> bool:
        """Count a unit's result; whether it took much longer than those before it."""
        self.retries += result.retries
        self.stage_seconds.update(result.seconds)
        is_straggler = self.stragglers.add(result.unit, result.seconds)
        if result.unreadable is not None:
            self.unreadable.setdefault(result.source, result.unreadable)
            return is_straggler
        self.units_done += 1
        self.rows += result.rows
        self.labelled += result.labelled
        self.errors += result.errors
        self.cells_done += result.cells
        self.rows_from[result.computed_from] += result.rows
        self.cells_from[result.computed_from] += result.cells
        self.texts_cut += result.texts_cut
        self.texts_in_windows += result.texts_in_windows
        self.num_tokens += result.num_tokens
        self.num_padded_tokens += result.num_padded_tokens
        self.num_bytes += result.num_bytes
        self.flops += result.flops
        self.peak_flops_per_s = max(self.peak_flops_per_s, result.peak_flops_per_s)
        self.error_reasons.update(result.error_reasons)
        self.error_examples += result.error_examples[: _MAX_EXAMPLES - len(self.error_examples)]
        for task, counts in result.label_counts.items():
            self.label_counts[task].update(counts)
        self.list_counts.update(result.list_counts)
        self.abstained.update(result.abstained)
        self.corrected.update(result.corrected)
        return is_straggler

    def actor_started(self) -> None:
        """Note when the first labelling actor is ready."""
        if self.start_up_s is None:
            self.start_up_s = self.seconds

    def finish(self, failure: str | None = None) -> None:
        """Stop the clock; with a failure, say why the run did not do all it could."""
        self._seconds = self.seconds
        is_closed = self.gate is not None and not self.gate.is_open
        self.status = "failed" if failure is not None else "gate closed" if is_closed else "done"
        self.failure = failure

    @property
    def seconds(self) -> float:
        """Wall-clock seconds of the run, so far or in all."""
        return time.monotonic() - self._clock_s if self._seconds is None else self._seconds

    @property
    def device_hours(self) -> float:
        """Hours of the run times devices: GPUs, or CPU cores where there are none; 0 if nothing was computed."""
        return self.num_actors * self.seconds / 3600

    @property
    def documents_per_s(self) -> float:
        """Rows per second of wall-clock time."""
        return self.rows / self.seconds if self.seconds > 0 else 0.0

    @property
    def performance(self) -> Performance | None:
        """How fast the run labels texts; None if it has read none."""
        if not self.num_tokens:
            return None
        return Performance(
            seconds=self.seconds,
            start_up_s=self.start_up_s or 0.0,
            num_actors=self.num_actors,
            num_tokens=self.num_tokens,
            num_padded_tokens=self.num_padded_tokens,
            stage_seconds=self.stage_seconds,
            flops=self.flops,
            peak_flops_per_s=self.peak_flops_per_s,
        )

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-ready values."""
        plan = self.plan
        return {
            "format": _FORMAT,
            "run": self.run,
            "status": self.status,
            "failure": self.failure,
            "started": self.started.isoformat(timespec="seconds"),
            "corpus": plan.corpus,
            "labels": plan.labels,
            "bundle": self.definition.bundle_uri,
            "tasks": list(self.definition.fingerprints),
            "rows": self.rows,
            "labelled": self.labelled,
            "errors": self.errors,
            "error_reasons": dict(self.error_reasons.most_common()),
            "error_examples": self.error_examples,
            "articles": plan.num_articles,
            "files": plan.num_files,
            "cells_planned": plan.cells_planned,
            "cells_done": self.cells_done,
            "rows_from_vectors": self.rows_from["vectors"],
            "cells_from_vectors": self.cells_from["vectors"],
            "rows_from_scores": self.rows_from["scores"],
            "cells_from_scores": self.cells_from["scores"],
            "cells_already_current": plan.cells_current,
            "planned_reasons": dict(plan.reasons.most_common()),
            "units_planned": len(plan.units),
            "passes_per_text": plan.passes_per_text,
            "units_done": self.units_done,
            "unreadable_files": [{"path": path, "reason": reason} for path, reason in sorted(self.unreadable.items())],
            "ignored_files": list(plan.ignored_files),
            "hidden_files": list(plan.hidden_files),
            "other_corpus": plan.other_corpus,
            "orphaned_files": list(plan.orphaned),
            "removed_files": list(self.published.removed) if self.published else [],
            "gate": None if self.gate is None else self.gate.to_dict(),
            "published": None if self.published is None else self.published.to_dict(),
            "lake": None if self.lake is None else self.lake.to_dict(),
            "label_counts": {task: dict(counts.most_common()) for task, counts in sorted(self.label_counts.items())},
            "list_counts": dict(sorted(self.list_counts.items())),
            "abstained": dict(sorted(self.abstained.items())),
            "corrected": dict(sorted(self.corrected.items())),
            "text_limits": dict(plan.text_limits),
            "texts_cut": self.texts_cut,
            "texts_in_windows": self.texts_in_windows,
            "num_tokens": self.num_tokens,
            "num_padded_tokens": self.num_padded_tokens,
            "num_bytes": self.num_bytes,
            "retries": self.retries,
            "seconds": round(self.seconds, 3),
            "stage_seconds": {stage: round(seconds, 3) for stage, seconds in sorted(self.stage_seconds.items())},
            "device_hours": round(self.device_hours, 4),
            "cost": None if self.price_per_hour is None else round(self.device_hours * self.price_per_hour, 2),
            "documents_per_s": round(self.documents_per_s, 2),
            "performance": None if self.performance is None else self.performance.to_dict(),
            "stragglers": self.stragglers.slowest(),
        }

    def line(self) -> str:
        """The run in one line, for the end of a log."""
        plan = self.plan
        parts = [
            f"run {self.run} {self.status}",
            f"{counted(self.rows, 'article')} in {self.seconds:,.1f} s ({self.documents_per_s:,.1f} documents/s)",
            f"{self.cells_done:,} of {plan.cells_planned:,} cells done, {plan.cells_current:,} already current",
            f"{counted(self.errors, 'row')} with errors",
        ]
        if plan.passes_per_text > 1:
            parts.append(f"{plan.passes_per_text:.3g} forward passes per text")
        if self.texts_in_windows:
            parts.append(f"{counted(self.texts_in_windows, 'text')} in windows, {self.texts_cut:,} not read to the end")
        if self.price_per_hour is not None and self.num_actors:
            cost = self.device_hours * self.price_per_hour
            parts.append(f"{self.device_hours:.2f} device hours at {self.price_per_hour:g}: {cost:,.2f}")
        parts += self._decisions()
        if self.unreadable:
            parts.append(f"{counted(len(self.unreadable), 'source file')} not readable")
        if self.gate is not None and not self.gate.is_open:
            parts.append("nothing published, for the gate is closed")
        if self.published is not None:
            parts.append(self.published.summary())
        if self.lake is not None:
            parts.append(self.lake.summary())
        if plan.orphaned and not plan.prune:
            parts.append(f"{counted(len(plan.orphaned), 'published file')} without a source file")
        if self.failure:
            parts.append(self.failure)
        return "; ".join(parts)

    def _decisions(self) -> list[str]:
        """What was not computed from texts, and what was decided otherwise than by the likeliest label."""
        stored = {source: self.cells_from[source] for source in ("vectors", "scores")}
        parts = [f"{counted(cells, 'cell')} from stored {source}" for source, cells in stored.items() if cells]
        counts = {"too unsure for a label": self.abstained, "corrected by a rule": self.corrected}
        return [*parts, *(f"{counted(of.total(), 'cell')} {what}" for what, of in counts.items() if of)]


def write_report(report: RunReport) -> str:
    """Write `report.json` into the label table, and `report.html` beside it; returns the URI of the first.

    Raises:
        StorageError: The storage cannot be reached or refuses; a report written earlier in the run is still there.
    """
    return write_report_files(report.plan.labels, report.to_dict())


def write_report_files(labels: str, report: Mapping[str, Any]) -> str:
    """The same for a report's content."""
    uri = run_uri(labels, report["run"], "report.json")
    storage.write_bytes(uri, (to_json(report, indent=2) + "\n").encode())
    page = run_page(report, earlier_reports(labels, report["run"]))
    storage.write_bytes(run_uri(labels, report["run"], "report.html"), page.encode())
    return uri


def earlier_reports(labels: str, run: str, most: int = 7) -> list[dict[str, Any]]:
    """The reports of the last runs before this one that have any, the oldest first."""

    def read(earlier: str) -> dict[str, Any] | None:
        try:
            found = json.loads(storage.read_bytes(run_uri(labels, earlier, "report.json")))
        except (FileNotFoundError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    runs = [earlier for earlier in list_runs(labels) if earlier < run][:most]
    return [found for found in storage.in_threads(read, reversed(runs)) if found is not None]
