"""The page of `mtop evaluate --report`: what a person needs to make tasks better, as one HTML file.

Few tasks are open at once, many are folded; the worst of a thousand are shown in full and the others a line each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isnan

import numpy as np
import pyarrow as pa

from mtop_batch.data.repeats import RepeatedText
from mtop_batch.html_page import COLORS, escaped, html_page, html_table, svg_bar
from mtop_batch.lines import counted
from mtop_batch.training.calibration.temperature import ScoreBin
from mtop_batch.training.evaluation.evaluated import EvaluatedTask
from mtop_batch.training.evaluation.label_report import LabelReport
from mtop_batch.training.evaluation.metrics import mean_of_defined

_MAX_OPEN, _MAX_DETAILED, _MAX_LABELS, _MAX_POINTS = 5, 100, 40, 400
_MAX_LABELS_BY_NAME = 8
_SIDE = 200


def evaluation_page(bundle: str, evaluated: Mapping[str, EvaluatedTask]) -> str:
    """The page.

    Args:
        bundle: What was evaluated.
        evaluated: By task.
    """
    values = {name: _value(item) for name, item in evaluated.items()}
    mean = mean_of_defined(list(values.values()))
    examples = sum(int(item.metrics["num_examples"]) for item in evaluated.values())
    worst_first = sorted(evaluated, key=lambda name: -2.0 if isnan(values[name]) else values[name])
    detailed = set(worst_first[:_MAX_DETAILED])
    rows = 25 if len(detailed) <= _MAX_OPEN else 10 if len(detailed) <= 20 else 5
    left_out = len(evaluated) - len(detailed)
    shown = {name: evaluated[name] for name in worst_first} if left_out else evaluated
    return html_page(
        f"evaluation of {bundle}",
        [
            "<h1>Evaluation</h1>",
            f"<p class=quiet>{escaped(bundle)}: {counted(len(evaluated), 'task')}, "
            f"{counted(examples, 'evaluation example')}, mean {_number(mean)}</p>",
            f"<h2>All tasks{', the worst first' if left_out else ''}</h2>",
            _all_tasks(shown),
            *(_task(item, rows, len(evaluated) <= _MAX_OPEN) for name, item in shown.items() if name in detailed),
            f"<p class=quiet>Not shown in full: the {left_out:,} best tasks.</p>" if left_out else "",
        ],
    )


def _value(item: EvaluatedTask) -> float:
    return item.metrics[str(item.task.metric)]


def _number(value: float, digits: int = 4) -> str:
    return "undefined" if isnan(value) else f"{value:.{digits}f}"


def _all_tasks(evaluated: Mapping[str, EvaluatedTask]) -> str:
    rows = []
    for name, item in evaluated.items():
        value, error, repeats = _value(item), item.report.calibration_error, item.repeats
        rows.append(
            (
                escaped(name),
                f"<span class=whole>{item.task.metric}</span>",
                _number(value),
                escaped(item.report.undefined) if isnan(value) else svg_bar(value, 100),
                f"{item.metrics['num_examples']:,.0f}",
                "" if error is None else f"{error:.3f}",
                "" if repeats is None else f"{repeats.num_overlap:,}",
                "" if repeats is None else f"{len(repeats.contradictions):,}",
                "" if item.suspects is None else f"{len(item.suspects):,}",
            )
        )
    head = ("task", "metric", "value", "", "examples", "calibration", "overlap", "contradictions", "suspects")
    table = html_table(head, rows, numbers=(2, 4, 5, 6, 7, 8))
    return f"<div class=wide>{table}</div>"


def _task(item: EvaluatedTask, rows: int, is_open: bool) -> str:
    """One task in full, to fold and unfold."""
    value = _value(item)
    shown = f"undefined: {item.report.undefined}" if isnan(value) else _number(value)
    others = {
        name: number
        for name, number in item.metrics.items()
        if name not in (str(item.task.metric), "num_examples") and not isnan(number)
    }
    parts = [
        f"<summary>{escaped(item.task.name)}: {escaped(str(item.task.metric))} {escaped(shown)}</summary>",
        f"<p class=quiet>{', '.join(f'{escaped(name)} {number:.4g}' for name, number in others.items())}</p>",
        f"<p>{escaped(item.report.note)}</p>" if item.report.note else "",
        _labels(item.report),
        _confusion(item.report),
        _reliability(item.report.calibration),
        _scatter(item.errors) if item.task.kind == "regression" else "",
        _examples("Worst errors", item.errors, rows, "error" if item.task.kind == "regression" else "score"),
        _repeats(item, rows),
        _suspects(item, rows),
    ]
    return f"<details{' open' if is_open else ''}>{''.join(parts)}</details>"


def _labels(report: LabelReport) -> str:
    """Precision, recall, F1 and support of each label, as numbers and bars."""
    if not report.labels:
        return ""
    most = max(scores.support for scores in report.labels) or 1
    rows = [
        (
            escaped(scores.label, 80),
            *(
                "-" if isnan(value) else f"{value:.3f}{svg_bar(value, 90)}"
                for value in (scores.precision, scores.recall, scores.f1)
            ),
            f"{scores.support:,}{svg_bar(scores.support / most, 90)}",
            escaped(scores.undefined),
        )
        for scores in report.labels
    ]
    return "<h3>Labels</h3>" + html_table(("label", "precision", "recall", "F1", "support", ""), rows)


def _confusion(report: LabelReport) -> str:
    """Given labels as rows, predicted ones as columns; of very many labels those that are most often confused."""
    if not report.confusion:
        return ""
    counts = np.array(report.confusion)
    wrong = counts - np.diag(np.diag(counts))
    chosen = np.sort(np.argsort(-(wrong.sum(axis=0) + wrong.sum(axis=1)), kind="stable")[:_MAX_LABELS])
    names = [escaped(report.labels[index].label, 40) for index in chosen]
    by_name = len(names) <= _MAX_LABELS_BY_NAME
    heads = names if by_name else [str(index + 1) for index in chosen]
    totals = counts.sum(axis=1).clip(min=1)
    lines = []
    for name, row in zip(names, chosen, strict=True):
        cells = [_cell(int(counts[row, column]), counts[row, column] / totals[row], row == column) for column in chosen]
        lines.append(f"<tr><td class=whole>{name if by_name else f'{row + 1} {name}'}</td>{''.join(cells)}</tr>")
    head = "".join(f"<th class=n>{head}</th>" for head in heads)
    few = "" if len(chosen) == len(counts) else f", the {len(chosen)} of {len(counts):,} labels that are most confused"
    size = "" if by_name else " class=small"
    return (
        f"<h3>Given label (rows) and predicted label (columns){few}</h3>"
        f"<div class=wide><table{size}><tr><th></th>{head}</tr>{''.join(lines)}</table></div>"
    )


def _cell(count: int, share: float, is_right: bool) -> str:
    if not count:
        return "<td class=m></td>"
    color = "47,109,179" if is_right else "200,114,44"
    return f'<td class=m style="background:rgba({color},{0.08 + 0.6 * share:.2f})">{count:,}</td>'


def _reliability(bins: Sequence[ScoreBin]) -> str:
    """Scores against the share of right labels: on the diagonal where scores can be trusted."""
    if not bins:
        return ""
    most = max(of.examples for of in bins)
    points = [(of.score, of.accuracy, 3 + 7 * (of.examples / most) ** 0.5) for of in bins]
    rows = [(f"{of.score:.3f}", f"{of.accuracy:.3f}", f"{of.examples:,}") for of in bins]
    return (
        "<h3>Can scores be trusted?</h3><table><tr><td>"
        + _plot(points, "score", "share that is right", ("0", "1"), ("0", "1"))
        + f"</td><td>{html_table(('mean score', 'share that is right', 'examples'), rows, numbers=(0, 1, 2))}</td>"
        "</tr></table>"
    )


def _scatter(errors: pa.Table) -> str:
    """Given and predicted values of a regression, of which all examples are errors."""
    step = -(-len(errors) // _MAX_POINTS)
    given, predicted = (np.array([float(value) for value in errors[key].to_pylist()][::step]) for key in _SIDES)
    low, high = min(given.min(), predicted.min()), max(given.max(), predicted.max())
    span = high - low or 1.0
    points = [((x - low) / span, (y - low) / span, 2.0) for x, y in zip(given, predicted, strict=True)]
    ends = (f"{low:.4g}", f"{high:.4g}")
    return "<h3>Values</h3>" + _plot(points, "given", "predicted", ends, ends)


_SIDES = ("label", "predicted")


def _plot(
    points: Sequence[tuple[float, float, float]], x: str, y: str, x_ends: tuple[str, str], y_ends: tuple[str, str]
) -> str:
    """Points (x and y in 0 to 1, radius) in a square with its diagonal."""
    left, top, side = 50, 30, _SIDE
    circles = "".join(
        f'<circle cx="{left + side * px:.1f}" cy="{top + side * (1 - py):.1f}" r="{radius:.1f}" fill="{COLORS[0]}" '
        'fill-opacity="0.6"/>'
        for px, py, radius in points
    )
    words = [
        (left, top + side + 15, "start", x_ends[0]),
        (left + side / 2, top + side + 15, "middle", x),
        (left + side, top + side + 15, "end", x_ends[1]),
        (left - 5, top + side, "end", y_ends[0]),
        (left - 5, top + 10, "end", y_ends[1]),
        (left, 12, "start", y),
    ]
    texts = "".join(
        f'<text x="{at_x:g}" y="{at_y:g}" text-anchor="{anchor}" font-size="12" fill="#5a6675">{escaped(word)}</text>'
        for at_x, at_y, anchor, word in words
    )
    frame = f'<path d="M{left} {top}V{top + side}H{left + side}" fill="none" stroke="#9aa4b0"/>'
    diagonal = f'<path d="M{left} {top + side}L{left + side} {top}" stroke="#d8dde4"/>'
    return f'<svg width="{left + side + 15}" height="{top + side + 25}">{diagonal}{frame}{circles}{texts}</svg>'


def _examples(title: str, table: pa.Table, most: int, score: str = "score") -> str:
    """The first examples of a table of errors or suspects."""
    if not len(table):
        return f"<h3>{title}: none</h3>"
    rows = [
        (
            escaped(of["label"], 80),
            escaped(of["predicted"], 80),
            f"{of['score']:.3f}",
            _texts(of["text"], of["second_text"]),
        )
        for of in table.slice(0, most).to_pylist()
    ]
    of_all = f"{len(rows):,} of {len(table):,}" if len(table) > len(rows) else f"{len(table):,}"
    return f"<h3>{title}: {of_all}</h3>" + html_table(("label", "predicted", score, "text"), rows, numbers=(2,))


def _texts(text: str, second: str | None) -> str:
    return escaped(text) + ("" if second is None else f"<br>{escaped(second)}")


def _repeats(item: EvaluatedTask, most: int) -> str:
    found = item.repeats
    if found is None:
        return f"<p class=quiet>Not compared with training data: {escaped(item.not_compared)}</p>"
    parts = [
        f"<h3>Evaluated on texts that were learned from: {found.num_overlap:,} of "
        f"{item.metrics['num_examples']:,.0f} evaluation examples</h3>",
        _repeated(found.overlap, most),
    ]
    if item.task.kind != "regression":
        parts.append(f"<h3>Texts with labels that contradict each other: {len(found.contradictions):,}</h3>")
        parts.append(_repeated(found.contradictions, most))
    return "".join(parts)


def _repeated(texts: Sequence[RepeatedText], most: int) -> str:
    if not texts:
        return ""
    rows = [(_texts(of.text, of.second_text), _counts(of.train), _counts(of.eval)) for of in texts[:most]]
    more = f"<p class=quiet>and {len(texts) - most:,} more</p>" if len(texts) > most else ""
    return html_table(("text", "in training", "in evaluation"), rows) + more


def _counts(labels: Mapping[str, int]) -> str:
    return ", ".join(f"{escaped(label, 40)} {count:,}" for label, count in list(labels.items())[:_MAX_LABELS_BY_NAME])


def _suspects(item: EvaluatedTask, most: int) -> str:
    if item.suspects is not None:
        return _examples("Training examples that are likely to be labelled wrongly", item.suspects, most)
    if item.no_suspects:
        return f"<p class=quiet>No search for wrong labels: {escaped(item.no_suspects)}</p>"
    return ""
