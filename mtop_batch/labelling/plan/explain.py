"""A plan in words and numbers, for `mtop label --plan` and the head of every run's log."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from mtop_batch import storage
from mtop_batch.labelling.plan.work import Plan, described_inputs
from mtop_batch.lines import counted, shown
from mtop_batch.table.runs import list_runs, run_uri

_MAX_NAMED = 5
_RUNS_LOOKED_AT = 10


@dataclass(frozen=True)
class Estimate:
    """What a plan's units take.

    Args:
        seconds: Wall-clock time.
        device_hours: These times the devices of the run that it is estimated from: GPUs, or CPU cores.
        tokens_per_text: That the model read there, of all windows of a text; 0 if it read none.
    """

    seconds: float
    device_hours: float
    tokens_per_text: float = 0.0

    def cost(self, price_per_hour: float) -> float:
        """At this price of a device hour."""
        return self.device_hours * price_per_hour

    def explained(self, price_per_hour: float | None) -> str:
        """In a few words."""
        words = f"about {_duration(self.seconds)}"
        if self.device_hours:
            words += f", {self.device_hours:.2g} device hours"
        if price_per_hour is not None:
            words += f", {self.cost(price_per_hour):,.2f} at {price_per_hour:g} an hour"
        return words


def explain_plan(plan: Plan, expected: Estimate | None, price_per_hour: float | None = None) -> str:
    """The plan for people, a few lines.

    Args:
        plan: The plan.
        expected: What it takes; None if there was no run to estimate it from.
        price_per_hour: Of a device.
    """
    lines = [
        f"corpus {plan.corpus}: {counted(plan.num_articles, 'article')} in {counted(plan.num_files, 'file')}",
        f"cells (articles x tasks): {plan.cells_total:,} wanted, {plan.cells_current:,} current, "
        f"{plan.cells_planned:,} to compute",
        f"texts: {described_inputs(plan.inputs)}"
        + (f": {len(plan.inputs)} passes, one for each" if len(plan.inputs) > 1 else ""),
    ]
    if plan.other_corpus:
        lines.append(
            f"warning: the newest run on {plan.labels} labelled another corpus, {plan.other_corpus}; files of the same "
            "names are taken for new content of these, and their published labels are replaced"
        )
    if plan.units:
        duration = "no earlier run to estimate the time from"
        if expected is not None:
            duration = expected.explained(price_per_hour)
        passes = plan.passes_per_text
        lines.append(
            f"work: {counted(len(plan.units), 'unit')}, {counted(plan.num_articles_planned, 'article')}, "
            f"{passes:.3g} forward {'pass' if passes == 1 else 'passes'} per text, {duration}"
        )
        if reading := _windows(plan, expected):
            lines.append(reading)
        lines += [f"  {reason}: {counted(count, 'cell')}" for reason, count in plan.reasons.most_common()]
        for source in ("vectors", "scores"):
            if num_units := len(plan.units_from(source)):
                what = f"{counted(num_units, 'unit')}, {counted(plan.cells_from(source), 'cell')}"
                lines.append(f"  from stored {source}, without texts: {what}")
    else:
        lines.append(f"nothing to {'compute' if plan.has_work else 'do'}: every readable cell is current")
    if plan.to_publish:
        lines.append(f"to publish: {counted(len(plan.to_publish), 'file')}")
    lines += _named("not readable", [f"{shown(path)}: {shown(reason)}" for path, reason in plan.unreadable])
    lines += _named("ignored, not named as Parquet", list(map(shown, plan.ignored_files)))
    lines += _named("ignored, hidden by a name that starts with '_' or '.'", list(map(shown, plan.hidden_files)))
    lines += _named(
        "published files make way, because their path is now a directory's, or the other way round",
        list(map(shown, plan.displaced)),
    )
    outcome = "to be removed" if plan.prune else "they stay, --prune removes them"
    lines += _named(f"label files without a source file ({outcome})", list(map(shown, plan.orphaned)))
    return "\n".join(lines)


def plan_dict(plan: Plan, price_per_hour: float | None = None) -> dict[str, Any]:
    """The plan as JSON-ready values."""
    expected = estimate(plan)
    return {
        "corpus": plan.corpus,
        "labels": plan.labels,
        "files": plan.num_files,
        "articles": plan.num_articles,
        "articles_planned": plan.num_articles_planned,
        "inputs": [{"text_columns": list(columns), "tasks": list(tasks)} for columns, tasks in plan.inputs.items()],
        "units_planned": len(plan.units),
        "passes_per_text": plan.passes_per_text,
        "text_limits": dict(plan.text_limits),
        "tokens_per_text": None if expected is None else expected.tokens_per_text,
        "cells_wanted": plan.cells_total,
        "cells_planned": plan.cells_planned,
        "cells_already_current": plan.cells_current,
        "planned_reasons": dict(plan.reasons.most_common()),
        "planned_per_task": dict(plan.planned_per_task),
        "units_from_vectors": len(plan.units_from("vectors")),
        "cells_from_vectors": plan.cells_from("vectors"),
        "units_from_scores": len(plan.units_from("scores")),
        "cells_from_scores": plan.cells_from("scores"),
        "unreadable_files": [{"path": path, "reason": reason} for path, reason in plan.unreadable],
        "ignored_files": list(plan.ignored_files),
        "hidden_files": list(plan.hidden_files),
        "displaced_files": list(plan.displaced),
        "other_corpus": plan.other_corpus,
        "orphaned_files": list(plan.orphaned),
        "damaged_files": list(map(str, plan.damaged)),
        "files_to_publish": len(plan.to_publish),
        "files_to_remove": list(plan.removals),
        "estimated_seconds": None if expected is None else expected.seconds,
        "estimated_device_hours": None if expected is None else expected.device_hours,
        "estimated_cost": None if expected is None or price_per_hour is None else expected.cost(price_per_hour),
    }


def estimate(plan: Plan) -> Estimate | None:
    """What the plan's units will take, at the rate of the last run that labelled something; None if none did.

    The start takes as long as it did then, and is no part of the rate. Stored vectors and scores are many times faster
    than texts: runs that read no text have a rate of their own, and beside texts their rows are not counted. A text
    costs its tokens, so a run counts only if its model read as much of a text: as many tokens, in as many windows.
    """
    from_texts = plan.num_rows_from_texts
    from_stored = plan.num_rows_planned - from_texts
    for run in list_runs(plan.labels)[:_RUNS_LOOKED_AT]:
        try:
            report = json.loads(storage.read_bytes(run_uri(plan.labels, run, "report.json")))
        except (FileNotFoundError, ValueError):
            continue
        if not report.get("documents_per_s"):
            continue
        of_texts = report["rows"] - report.get("rows_from_vectors", 0) - report.get("rows_from_scores", 0)
        reads_alike = not of_texts or report.get("text_limits", plan.text_limits) == plan.text_limits
        if reads_alike and bool(from_texts) == bool(of_texts):
            start_up_s = (report.get("performance") or {}).get("start_up_s", 0.0)
            rate = (of_texts or report["rows"]) / max(report["seconds"] - start_up_s, 1e-3)
            seconds = start_up_s + (from_texts or from_stored) / rate
            tokens_per_text = report.get("num_tokens", 0) / of_texts if of_texts else 0.0
            return Estimate(seconds, report.get("device_hours", 0.0) / report["seconds"] * seconds, tokens_per_text)
    return None


def _windows(plan: Plan, expected: Estimate | None) -> str:
    """How long texts are read, if in windows."""
    limits = plan.text_limits
    if limits.get("max_windows", 1) == 1:
        return ""
    known = expected.tokens_per_text if expected is not None else 0.0
    return f"  long texts: up to {limits['max_windows']} windows of {limits['max_tokens']} tokens" + (
        f", {known:,.0f} tokens a text in the run that the time is estimated from" if known else ""
    )


def _named(what: str, names: list[str]) -> list[str]:
    if not names:
        return []
    more = [f"  ... and {len(names) - _MAX_NAMED:,} more"] if len(names) > _MAX_NAMED else []
    return [f"{len(names):,} {what}:", *(f"  {name}" for name in names[:_MAX_NAMED]), *more]


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
