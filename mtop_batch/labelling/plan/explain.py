"""A plan in words and numbers, for `mtop label --plan` and the head of every run's log."""

from __future__ import annotations

import json
from typing import Any

from mtop_batch import storage
from mtop_batch.corpus.paths import shown
from mtop_batch.labelling.plan.work import Plan
from mtop_batch.table.runs import list_runs, run_uri

_MAX_NAMED = 5
_RUNS_LOOKED_AT = 10


def explain_plan(plan: Plan, seconds: float | None) -> str:
    """The plan for people, a few lines."""
    lines = [
        f"corpus {plan.corpus}: {plan.num_articles:,} articles in {plan.num_files:,} files",
        f"cells (articles x tasks): {plan.cells_total:,} wanted, {plan.cells_current:,} current, "
        f"{plan.cells_planned:,} to compute",
    ]
    if plan.units:
        duration = "no earlier run to estimate the time from" if seconds is None else f"about {_duration(seconds)}"
        lines.append(f"work: {len(plan.units):,} units, {plan.num_articles_planned:,} articles, {duration}")
        lines += [f"  {reason}: {count:,} cells" for reason, count in plan.reasons.most_common()]
        if from_vectors := len(plan.units_from_vectors):
            lines.append(
                f"  from stored vectors, without texts: {from_vectors:,} units, {plan.cells_from_vectors:,} cells"
            )
    else:
        lines.append(f"nothing to {'compute' if plan.has_work else 'do'}: every readable cell is current")
    if plan.to_publish:
        lines.append(f"to publish: {len(plan.to_publish):,} files")
    lines += _named("not readable", [f"{path}: {reason}" for path, reason in plan.unreadable])
    lines += _named("ignored, not named as Parquet", plan.ignored_files)
    outcome = "to be removed" if plan.prune else "they stay, --prune removes them"
    lines += _named(f"label files without a source file ({outcome})", plan.orphaned)
    return "\n".join(lines)


def plan_dict(plan: Plan) -> dict[str, Any]:
    """The plan as JSON-ready values."""
    return {
        "corpus": plan.corpus,
        "labels": plan.labels,
        "files": plan.num_files,
        "articles": plan.num_articles,
        "articles_planned": plan.num_articles_planned,
        "units_planned": len(plan.units),
        "cells_wanted": plan.cells_total,
        "cells_planned": plan.cells_planned,
        "cells_already_current": plan.cells_current,
        "planned_reasons": dict(plan.reasons.most_common()),
        "planned_per_task": dict(plan.planned_per_task),
        "units_from_vectors": len(plan.units_from_vectors),
        "cells_from_vectors": plan.cells_from_vectors,
        "unreadable_files": [{"path": path, "reason": reason} for path, reason in plan.unreadable],
        "ignored_files": list(plan.ignored_files),
        "orphaned_files": list(plan.orphaned),
        "damaged_files": list(map(str, plan.damaged)),
        "files_to_publish": len(plan.to_publish),
        "files_to_remove": list(plan.removals),
        "estimated_seconds": estimate_s(plan),
    }


def estimate_s(plan: Plan) -> float | None:
    """Seconds that the plan's units will take, at the rate of the last run that labelled something; None if none did.

    Stored vectors are many times faster than texts: runs that read no text have a rate of their own, and beside texts
    the rows from vectors are not counted.
    """
    from_vectors = sum(unit.num_rows for unit in plan.units_from_vectors)
    from_texts = plan.num_articles_planned - from_vectors
    for run in list_runs(plan.labels)[:_RUNS_LOOKED_AT]:
        try:
            report = json.loads(storage.read_bytes(run_uri(plan.labels, run, "report.json")))
        except (FileNotFoundError, ValueError):
            continue
        if report.get("documents_per_s") and bool(from_texts) == bool(
            report["rows"] - report.get("rows_from_vectors", 0)
        ):
            return (from_texts or from_vectors) / float(report["documents_per_s"])
    return None


def _named(what: str, names: tuple[str, ...] | list[str]) -> list[str]:
    if not names:
        return []
    more = [f"  ... and {len(names) - _MAX_NAMED:,} more"] if len(names) > _MAX_NAMED else []
    return [f"{len(names):,} {what}:", *(f"  {shown(name)}" for name in names[:_MAX_NAMED]), *more]


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
