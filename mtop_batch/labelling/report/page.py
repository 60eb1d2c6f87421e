"""Reports as one HTML page each, for people: nothing is fetched, nothing is executed, everything from files is escaped.

The tasks that change most are shown in full; of a thousand tasks the others are a line each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mtop_batch.html_page import COLORS, escaped, html_page, html_table, svg_bar

_MAX_DETAILED, _MAX_LABELS, _MAX_ROWS = 12, 8, 50


def run_page(report: Mapping[str, Any], history: Sequence[Mapping[str, Any]] = ()) -> str:
    """The page of a labelling run, or of `mtop publish`.

    Args:
        report: The content of its report.json.
        history: Reports of earlier runs, the oldest first.
    """
    gate, where = report.get("gate"), report.get("corpus") or report.get("labels", "")
    parts = [
        f"<h1>Run {escaped(report['run'])}: {_status(report['status'])}</h1>",
        f"<p class=quiet>{escaped(report.get('bundle', ''))} on {escaped(where)}</p>",
        _box(report.get("failure")),
        _gate(gate),
        _numbers(report),
        _counts("Why", report.get("planned_reasons", {}), "cells"),
        _stages(report),
        _errors(report),
        _tasks(report, gate["tasks"] if gate else {}, history),
    ]
    return html_page(f"run {report['run']}", parts)


def comparison_page(comparison: Mapping[str, Any]) -> str:
    """The page of `mtop compare`."""
    parts = [
        "<h1>Two bundles on the same articles</h1>",
        f"<p>{comparison['articles']:,} articles of {escaped(comparison['corpus'])}.<br>"
        f"Old: {escaped(comparison['model'])}<br>New: {escaped(comparison['with'])}</p>",
        _gate(comparison["gate"]),
        *(_task(name, task, []) for name, task in _most_changed(comparison["tasks"])),
        _task_table(comparison["tasks"]),
    ]
    return html_page("comparison", parts)


def _status(status: str) -> str:
    return f"<span class={'done' if status == 'done' else 'failed'}>{escaped(status)}</span>"


def _box(text: str | None) -> str:
    return f"<div class=box>{escaped(text, 2000)}</div>" if text else ""


def _gate(gate: Mapping[str, Any] | None) -> str:
    if gate is None:
        return ""
    reasons = [f"<li>{escaped(reason['text'])}</li>" for reason in gate["reasons"][:_MAX_ROWS]]
    if not reasons:
        return "<p>Gate: <b class=open>open</b></p>"
    opened = f"opened by {escaped(gate['opened_by'])}" if gate.get("opened_by") else ""
    more = f"<li>and {len(gate['reasons']) - _MAX_ROWS:,} more</li>" if len(gate["reasons"]) > _MAX_ROWS else ""
    return f"<div class=box>Gate: <b class=closed>{opened or 'closed'}</b><ul>{''.join(reasons)}{more}</ul></div>"


def _numbers(report: Mapping[str, Any]) -> str:
    published, performance, lake = report.get("published"), report.get("performance"), report.get("lake")
    found = {
        "articles labelled": report.get("labelled"),
        "articles with errors": report.get("errors"),
        "cells computed": report.get("cells_done"),
        "cells already current": report.get("cells_already_current"),
        "seconds": report.get("seconds"),
        "articles per second": report.get("documents_per_s"),
        "files published": published["files"] if published else "none",
        "articles published": published["rows"] if published else None,
        "committed": lake and lake["summary"],
        "source files not readable": len(report.get("unreadable_files", ())) or None,
        "texts in several windows": report.get("texts_in_windows") or None,
        "texts not read to their end": report.get("texts_cut") or None,
        "tokens per second": performance and performance["tokens_per_s"],
        "bottleneck": performance and performance["bottleneck"],
        "device hours": report.get("device_hours"),
        "cost": report.get("cost"),
    }
    rows = [(name, escaped(f"{value:,}" if isinstance(value, int | float) else value)) for name, value in found.items()]
    return "<h2>What was done</h2>" + html_table(("", ""), [row for row in rows if row[1] != "None"])


def _counts(title: str, counts: Mapping[str, int], what: str) -> str:
    if not counts:
        return ""
    rows = [
        (escaped(name), f"{count:,}", svg_bar(count / max(counts.values())))
        for name, count in list(counts.items())[:_MAX_ROWS]
    ]
    return f"<h2>{title}</h2>" + html_table(("", what, ""), rows, numbers=(1,))


def _stages(report: Mapping[str, Any]) -> str:
    seconds = report.get("stage_seconds") or {}
    longest = max(seconds.values(), default=0) or 1
    rows = [(escaped(name), f"{value:,.1f}", svg_bar(value / longest)) for name, value in seconds.items()]
    return "<h2>Stages</h2>" + html_table(("", "seconds, all processes", ""), rows, numbers=(1,)) if rows else ""


def _errors(report: Mapping[str, Any]) -> str:
    parts = [_counts("Errors", report.get("error_reasons", {}), "articles")]
    if examples := report.get("error_examples"):
        rows = [(escaped(of["source"]), f"{of['row']:,}", escaped(of["error"])) for of in examples[:_MAX_ROWS]]
        parts.append(html_table(("source file", "row", "error"), rows, numbers=(1,)))
    if unreadable := report.get("unreadable_files"):
        files = [(escaped(of["path"]), escaped(of["reason"])) for of in unreadable[:_MAX_ROWS]]
        parts += [
            f"<h2>Source files that cannot be read: {len(unreadable):,}</h2>",
            html_table(("file", "reason"), files),
        ]
    return "".join(parts)


def _tasks(report: Mapping[str, Any], tasks: Mapping[str, Any], history: Sequence[Mapping[str, Any]]) -> str:
    parts = [_task(name, task, _shares_of_runs(name, report, history)) for name, task in _most_changed(tasks)]
    parts.append(_task_table(tasks))
    only_counted = {name: counts for name, counts in report.get("label_counts", {}).items() if name not in tasks}
    if only_counted:
        rows = [(escaped(name), _shares(counts, _articles(name, report))) for name, counts in only_counted.items()]
        parts += ["<h2>Labels of this run</h2>", html_table(("task", "shares"), rows)]
    return "\n".join(parts)


def _most_changed(tasks: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    def change(task: Mapping[str, Any]) -> float:
        return max(task["disagreement"], task["stability"] or 0.0, task["fresh_stability"] or 0.0)

    return sorted(tasks.items(), key=lambda item: -change(item[1]))[:_MAX_DETAILED]


def _task_table(tasks: Mapping[str, Any]) -> str:
    """One line per task."""
    if not tasks:
        return ""
    rows = [
        (
            escaped(name),
            _shares(task["old_counts"], task["same_articles"]),
            _shares(task["new_counts"], task["same_articles"]),
            f"{task['disagreement']:.1%}" if task["same_articles"] else "",
            "" if task["stability"] is None else f"{task['stability']:.3f}",
            _shares(task["fresh_counts"], task["fresh_articles"]),
            "" if task["fresh_stability"] is None else f"{task['fresh_stability']:.3f}",
        )
        for name, task in tasks.items()
    ]
    head = ("task", "old", "new", "flips", "stability", "new articles", "their stability")
    return "<h2>All tasks</h2>" + html_table(head, rows, numbers=(3, 4, 6))


def _task(name: str, task: Mapping[str, Any], runs: Sequence[_Run]) -> str:
    """One task in full: label shares old, new and over the last runs; scores; flips with examples."""
    parts = [f"<h2>{escaped(name)}</h2>"]
    labels = list(dict.fromkeys([*task["new_counts"], *task["old_counts"], *task["fresh_counts"]]))[:_MAX_LABELS]
    same = task["same_articles"]
    totals = {"old_counts": same, "new_counts": same}
    totals |= {"usual_counts": task["usual_articles"], "fresh_counts": task["fresh_articles"]}
    if task["kind"] != "regression":
        rows = []
        for label in labels:
            shares = [task[key].get(label, 0) / max(1, total) for key, total in totals.items()]
            rows.append((escaped(label), *(f"{share:.1%} {svg_bar(share, 80)}" for share in shares)))
        parts.append(html_table(("label", "old", "new", "last runs", "new articles"), rows))
        if len(runs) > 1:
            parts.append(f"<h3>Label shares over the last {len(runs)} runs</h3>{_lines(labels, runs)}")
    if task["metric"]:
        metric = task["metric"]
        parts.append(
            f"<p>{escaped(metric['metric'])} on development data: {metric['old']:.4f} ({metric['num_old']:,} "
            f"examples), now {metric['new']:.4f} ({metric['num_new']:,})</p>"
        )
    scores = [
        (title, task[key])
        for title, key in (("old", "old_scores"), ("new", "new_scores"), ("new articles", "fresh_scores"))
    ]
    bars = [f"<td>{title}, mean {of['mean']:.3f}{_histogram(of['bins'])}</td>" for title, of in scores if of["count"]]
    if bars:
        what = "Values" if task["kind"] == "regression" else "Scores"
        parts.append(f"<h3>{what}</h3><table><tr>{''.join(bars)}</tr></table>")
    if task["flips"]:
        rows = [(_label(of["old"]), _label(of["new"]), f"{of['articles']:,}") for of in task["flips"][:_MAX_ROWS]]
        parts.append("<h3>Flips</h3>" + html_table(("old", "new", "articles"), rows, numbers=(2,)))
    if task["examples"]:
        rows = [
            (
                escaped(of["id"], 80),
                f"{escaped(of['source'], 120)} row {of['row']:,}",
                _label(of["old"], of["old_score"]),
                _label(of["new"], of["new_score"]),
                escaped(of.get("text", "")),
            )
            for of in task["examples"]
        ]
        parts.append(html_table(("article", "where", "old", "new", "text"), rows))
    return "\n".join(parts)


_Run = tuple[Mapping[str, int], int]
"""What a run showed of a task: articles per label, and how many articles these are."""


def _shares_of_runs(task: str, report: Mapping[str, Any], history: Sequence[Mapping[str, Any]]) -> list[_Run]:
    runs = [(run.get("label_counts", {}).get(task, {}), _articles(task, run)) for run in [*history, report]]
    return [run for run in runs if run[1]]


def _articles(task: str, report: Mapping[str, Any]) -> int:
    """The articles that a run has labelled with a task."""
    several: int | None = report.get("list_counts", {}).get(task)
    return sum(report.get("label_counts", {}).get(task, {}).values()) if several is None else several


def _label(label: str, score: float | None = None) -> str:
    """A label, or labels, as text of the page; a dash where there is none."""
    return f"{escaped(label) or '&ndash;'}{'' if score is None else f' {score:.2f}'}"


def _shares(counts: Mapping[str, int], total: int) -> str:
    return ", ".join(f"{escaped(label, 40)} {count / max(1, total):.1%}" for label, count in list(counts.items())[:3])


def _histogram(bins: Mapping[str, int]) -> str:
    """Bars of neighbouring bins, empty ones between them too."""
    numbers = {int(key): count for key, count in bins.items()}
    first, last = min(numbers), max(numbers)
    width = 200 / (last - first + 1)
    tallest = max(numbers.values())
    bars = ""
    for number, count in sorted(numbers.items()):
        height, left = 60 * count / tallest, (number - first) * width
        place = f'x="{left:.1f}" y="{60 - height:.1f}" width="{max(width - 1, 0.5):.1f}" height="{height:.1f}"'
        bars += f'<rect {place} fill="{COLORS[0]}"/>'
    return f'<svg width="200" height="61">{bars}<path d="M0 60.5H200" stroke="#9aa4b0"/></svg>'


def _lines(labels: Sequence[str], runs: Sequence[_Run]) -> str:
    """A line per label: its share in each run."""
    step = 400 / (len(runs) - 1)
    lines, keys = [], []
    for color, label in zip(COLORS, labels, strict=False):
        shares = [counts.get(label, 0) / articles for counts, articles in runs]
        points = " ".join(f"{index * step:.0f},{82 - 80 * share:.1f}" for index, share in enumerate(shares))
        lines.append(f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="2"/>')
        keys.append(f'<span style="color:{color}">{escaped(label, 40)} {shares[-1]:.1%}</span>')
    frame = '<path d="M0 2V82H400" fill="none" stroke="#9aa4b0"/>'
    return f'<svg width="400" height="84">{frame}{"".join(lines)}</svg><p>{" &nbsp; ".join(keys)}</p>'
