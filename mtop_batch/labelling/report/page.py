"""Reports as one HTML page each, for people: nothing is fetched, nothing is executed, everything from files is escaped.

The tasks that change most are shown in full; of a thousand tasks the others are a line each.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mtop_batch.lines import without_secrets

_MAX_DETAILED, _MAX_LABELS, _MAX_ROWS, _MAX_TEXT = 12, 8, 50, 300
_COLORS = ("#2f6db3", "#c8722c", "#3d8f5f", "#8a5fb0", "#b33f52", "#6b6f2a", "#2c8f9a", "#777777")
_STYLE = """
body{font:15px/1.45 system-ui,sans-serif;color:#1c2430;background:#fff;margin:2em auto;max-width:64em;padding:0 1em}
h1{font-size:1.5em;margin:0}
h2{font-size:1.15em;margin:1.8em 0 .5em;border-bottom:1px solid #d8dde4}
h3{margin:1.2em 0 .3em;font-size:1em}
table{border-collapse:collapse;margin:.4em 0;max-width:100%}
td,th{padding:.2em .7em .2em 0;text-align:left;vertical-align:top;overflow-wrap:anywhere}
td:first-child{min-width:6em}
th{font-weight:600;color:#5a6675}
td.n,th.n{text-align:right;white-space:nowrap}
.closed,.failed{color:#a3222f}
.open,.done{color:#256f43}
.quiet{color:#5a6675}
.box{border-left:4px solid #a3222f;background:#fbf1f2;padding:.5em 1em;margin:1em 0}
svg{display:block}
"""


def run_page(report: Mapping[str, Any], history: Sequence[Mapping[str, Any]] = ()) -> str:
    """The page of a labelling run, or of `mtop publish`.

    Args:
        report: The content of its report.json.
        history: Reports of earlier runs, the oldest first.
    """
    gate, where = report.get("gate"), report.get("corpus") or report.get("labels", "")
    parts = [
        f"<h1>Run {_text(report['run'])}: {_status(report['status'])}</h1>",
        f"<p class=quiet>{_text(report.get('bundle', ''))} on {_text(where)}</p>",
        _box(report.get("failure")),
        _gate(gate),
        _numbers(report),
        _counts("Why", report.get("planned_reasons", {}), "cells"),
        _stages(report),
        _errors(report),
        _tasks(report, gate["tasks"] if gate else {}, history),
    ]
    return _page(f"run {report['run']}", parts)


def comparison_page(comparison: Mapping[str, Any]) -> str:
    """The page of `mtop compare`."""
    parts = [
        "<h1>Two bundles on the same articles</h1>",
        f"<p>{comparison['articles']:,} articles of {_text(comparison['corpus'])}.<br>"
        f"Old: {_text(comparison['model'])}<br>New: {_text(comparison['with'])}</p>",
        _gate(comparison["gate"]),
        *(_task(name, task, []) for name, task in _most_changed(comparison["tasks"])),
        _task_table(comparison["tasks"]),
    ]
    return _page("comparison", parts)


def _page(title: str, parts: Iterable[str]) -> str:
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{_text(title)}</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(part for part in parts if part)
        + "\n</body></html>\n"
    )


def _text(value: object, limit: int = _MAX_TEXT) -> str:
    """A value as text of the page: in one line, without secrets and characters that nobody sees, shortened, escaped."""
    line = " ".join(without_secrets(str(value)).split())
    line = line if len(line) <= limit else f"{line[:limit]} ..."
    seen = "".join(
        char if char.isprintable() else char.encode("unicode_escape", "surrogatepass").decode() for char in line
    )
    return html.escape(seen)


def _status(status: str) -> str:
    return f"<span class={'done' if status == 'done' else 'failed'}>{_text(status)}</span>"


def _box(text: str | None) -> str:
    return f"<div class=box>{_text(text, 2000)}</div>" if text else ""


def _gate(gate: Mapping[str, Any] | None) -> str:
    if gate is None:
        return ""
    reasons = [f"<li>{_text(reason['text'])}</li>" for reason in gate["reasons"][:_MAX_ROWS]]
    if not reasons:
        return "<p>Gate: <b class=open>open</b></p>"
    opened = f"opened by {_text(gate['opened_by'])}" if gate.get("opened_by") else ""
    more = f"<li>and {len(gate['reasons']) - _MAX_ROWS:,} more</li>" if len(gate["reasons"]) > _MAX_ROWS else ""
    return f"<div class=box>Gate: <b class=closed>{opened or 'closed'}</b><ul>{''.join(reasons)}{more}</ul></div>"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: Sequence[int] = ()) -> str:
    """A table of cells that are HTML already."""

    def row(cells: Sequence[str], tag: str) -> str:
        return "".join(
            f"<{tag}{' class=n' if index in numbers else ''}>{cell}</{tag}>" for index, cell in enumerate(cells)
        )

    body = "".join(f"<tr>{row(cells, 'td')}</tr>" for cells in rows)
    return f"<table><tr>{row(head, 'th')}</tr>{body}</table>"


def _numbers(report: Mapping[str, Any]) -> str:
    published, performance = report.get("published"), report.get("performance")
    found = {
        "articles labelled": report.get("labelled"),
        "articles with errors": report.get("errors"),
        "cells computed": report.get("cells_done"),
        "cells already current": report.get("cells_already_current"),
        "seconds": report.get("seconds"),
        "articles per second": report.get("documents_per_s"),
        "files published": published["files"] if published else "none",
        "articles published": published["rows"] if published else None,
        "source files not readable": len(report.get("unreadable_files", ())) or None,
        "tokens per second": performance and performance["tokens_per_s"],
        "bottleneck": performance and performance["bottleneck"],
        "device hours": report.get("device_hours"),
        "cost": report.get("cost"),
    }
    rows = [(name, _text(f"{value:,}" if isinstance(value, int | float) else value)) for name, value in found.items()]
    return "<h2>What was done</h2>" + _table(("", ""), [row for row in rows if row[1] != "None"])


def _counts(title: str, counts: Mapping[str, int], what: str) -> str:
    if not counts:
        return ""
    rows = [
        (_text(name), f"{count:,}", _bar(count / max(counts.values())))
        for name, count in list(counts.items())[:_MAX_ROWS]
    ]
    return f"<h2>{title}</h2>" + _table(("", what, ""), rows, numbers=(1,))


def _stages(report: Mapping[str, Any]) -> str:
    seconds = report.get("stage_seconds") or {}
    longest = max(seconds.values(), default=0) or 1
    rows = [(_text(name), f"{value:,.1f}", _bar(value / longest)) for name, value in seconds.items()]
    return "<h2>Stages</h2>" + _table(("", "seconds, all processes", ""), rows, numbers=(1,)) if rows else ""


def _errors(report: Mapping[str, Any]) -> str:
    parts = [_counts("Errors", report.get("error_reasons", {}), "articles")]
    if examples := report.get("error_examples"):
        rows = [(_text(of["source"]), f"{of['row']:,}", _text(of["error"])) for of in examples[:_MAX_ROWS]]
        parts.append(_table(("source file", "row", "error"), rows, numbers=(1,)))
    if unreadable := report.get("unreadable_files"):
        files = [(_text(of["path"]), _text(of["reason"])) for of in unreadable[:_MAX_ROWS]]
        parts += [f"<h2>Source files that cannot be read: {len(unreadable):,}</h2>", _table(("file", "reason"), files)]
    return "".join(parts)


def _tasks(report: Mapping[str, Any], tasks: Mapping[str, Any], history: Sequence[Mapping[str, Any]]) -> str:
    parts = [_task(name, task, _shares_of_runs(name, report, history)) for name, task in _most_changed(tasks)]
    parts.append(_task_table(tasks))
    only_counted = {name: counts for name, counts in report.get("label_counts", {}).items() if name not in tasks}
    if only_counted:
        rows = [(_text(name), _shares(counts, _articles(name, report))) for name, counts in only_counted.items()]
        parts += ["<h2>Labels of this run</h2>", _table(("task", "shares"), rows)]
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
            _text(name),
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
    return "<h2>All tasks</h2>" + _table(head, rows, numbers=(3, 4, 6))


def _task(name: str, task: Mapping[str, Any], runs: Sequence[_Run]) -> str:
    """One task in full: label shares old, new and over the last runs; scores; flips with examples."""
    parts = [f"<h2>{_text(name)}</h2>"]
    labels = list(dict.fromkeys([*task["new_counts"], *task["old_counts"], *task["fresh_counts"]]))[:_MAX_LABELS]
    same = task["same_articles"]
    totals = {"old_counts": same, "new_counts": same}
    totals |= {"usual_counts": task["usual_articles"], "fresh_counts": task["fresh_articles"]}
    if task["kind"] != "regression":
        rows = []
        for label in labels:
            shares = [task[key].get(label, 0) / max(1, total) for key, total in totals.items()]
            rows.append((_text(label), *(f"{share:.1%} {_bar(share, 80)}" for share in shares)))
        parts.append(_table(("label", "old", "new", "last runs", "new articles"), rows))
        if len(runs) > 1:
            parts.append(f"<h3>Label shares over the last {len(runs)} runs</h3>{_lines(labels, runs)}")
    if task["metric"]:
        metric = task["metric"]
        parts.append(
            f"<p>{_text(metric['metric'])} on development data: {metric['old']:.4f} ({metric['num_old']:,} examples), "
            f"now {metric['new']:.4f} ({metric['num_new']:,})</p>"
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
        parts.append("<h3>Flips</h3>" + _table(("old", "new", "articles"), rows, numbers=(2,)))
    if task["examples"]:
        rows = [
            (
                _text(of["id"], 80),
                f"{_text(of['source'], 120)} row {of['row']:,}",
                _label(of["old"], of["old_score"]),
                _label(of["new"], of["new_score"]),
                _text(of.get("text", "")),
            )
            for of in task["examples"]
        ]
        parts.append(_table(("article", "where", "old", "new", "text"), rows))
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
    return f"{_text(label) or '&ndash;'}{'' if score is None else f' {score:.2f}'}"


def _shares(counts: Mapping[str, int], total: int) -> str:
    return ", ".join(f"{_text(label, 40)} {count / max(1, total):.1%}" for label, count in list(counts.items())[:3])


def _bar(share: float, width: int = 200) -> str:
    filled = max(0.0, min(1.0, share)) * width
    return f'<svg width="{width}" height="8"><rect width="{filled:.1f}" height="8" fill="{_COLORS[0]}"/></svg>'


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
        bars += f'<rect {place} fill="{_COLORS[0]}"/>'
    return f'<svg width="200" height="61">{bars}<path d="M0 60.5H200" stroke="#9aa4b0"/></svg>'


def _lines(labels: Sequence[str], runs: Sequence[_Run]) -> str:
    """A line per label: its share in each run."""
    step = 400 / (len(runs) - 1)
    lines, keys = [], []
    for color, label in zip(_COLORS, labels, strict=False):
        shares = [counts.get(label, 0) / articles for counts, articles in runs]
        points = " ".join(f"{index * step:.0f},{82 - 80 * share:.1f}" for index, share in enumerate(shares))
        lines.append(f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="2"/>')
        keys.append(f'<span style="color:{color}">{_text(label, 40)} {shares[-1]:.1%}</span>')
    frame = '<path d="M0 2V82H400" fill="none" stroke="#9aa4b0"/>'
    return f'<svg width="400" height="84">{frame}{"".join(lines)}</svg><p>{" &nbsp; ".join(keys)}</p>'
