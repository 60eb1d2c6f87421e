"""The tables that the `mtop` command prints."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from math import isnan, nan
from typing import TYPE_CHECKING, Any

from rich.console import Console, RenderableType
from rich.table import Column, Table
from rich.text import Text

from mtop_batch.lines import counted, ends, for_people, listed, shown
from mtop_batch.table.stats import TableStats
from mtop_batch.tasks import Task

if TYPE_CHECKING:  # it needs torch
    from mtop_batch.data.repeats import RepeatedText
    from mtop_batch.selection.select import Selection
    from mtop_batch.training.evaluation.evaluated import EvaluatedTask
    from mtop_batch.training.evaluation.label_report import LabelReport

_LABEL_COLUMNS = ("precision", "recall", "F1", "support")
_MOST_CONFUSED, _MOST_MISSED = 3, 5
_MOST_QUOTED, _MAX_QUOTED = 3, 80
_BORDERS_OF_TWO_COLUMNS = 7
_MAX_LABELS = 100
_MAX_LINES = 40
_MAX_SHARES = 8
_ENTITY_COLOURS = ("cyan", "magenta", "green", "yellow", "blue", "red")


def print_metrics(
    metrics: Mapping[str, Mapping[str, float]], tasks: Sequence[Task], undefined: Mapping[str, str], rest: str
) -> None:
    """A table of each task's metrics, and a line for each that is undefined.

    Args:
        metrics: As for `metric_table`.
        tasks: The rows, in order.
        undefined: Task name -> why its metric is undefined; empty where it is not.
        rest: Where all tasks are, where these are too many for a table.
    """
    console = Console()
    console.print(metric_table(metrics, tasks))
    _say_where_the_rest_is(console, _values(metrics, tasks), rest)
    whys = [f"{task.name}: {task.metric} is undefined: {why}" for task in tasks if (why := undefined.get(task.name))]
    _print_lines(console, [Text(why) for why in whys])


def _values(metrics: Mapping[str, Mapping[str, float]], tasks: Sequence[Task]) -> dict[str, float]:
    """Each task's own metric."""
    return {task.name: metrics[task.name][str(task.metric)] for task in tasks}


def _add_rows(table: Table, values: Mapping[str, float], cells: Callable[[str], Sequence[RenderableType]]) -> None:
    """Add a row for each name; of many, for those with the highest values and for those with the lowest."""
    first, last = ends(values)
    for name in first:
        table.add_row(*cells(name))
    if last:
        table.add_row(f"... {len(values) - len(first) - len(last):,} more", style="dim")
    for name in last:
        table.add_row(*cells(name))


def _say_where_the_rest_is(console: Console, values: Mapping[str, float], rest: str) -> None:
    if any(ends(values)[1:]):
        console.print(Text(f"all {len(values):,} tasks: {rest}"), soft_wrap=True)


def _print_lines(console: Console, lines: Sequence[Text]) -> None:
    """The first of them, and how many more there are."""
    for line in lines[:_MAX_LINES]:
        console.print(line, soft_wrap=True)
    if len(lines) > _MAX_LINES:
        console.print(f"... and {len(lines) - _MAX_LINES:,} more lines like these")


def print_selection(selection: Selection) -> None:
    """The tasks beside the primary one, with what was found out about each; and the sets that were tried."""
    primary, heads = selection.primary, selection.heads
    found = selection.utilities if heads is None else heads.with_(primary)
    table = Table("task", Column("utility" if heads is None else "tau", justify="right"), "chosen")
    for name, value in sorted(found.items(), key=lambda item: -item[1]):
        if name != primary:
            examples = f"{len(selection.rows[name]):,} examples" if name in selection.rows else "yes"
            table.add_row(shown(name), f"{value:.3f}", examples if name in selection.auxiliary else "")
    console = Console()
    console.print(table)
    if selection.tried:
        table = Table("together with", "ratio", Column(shown(primary), justify="right"))
        for tried in selection.tried:
            table.add_row(listed(tried.auxiliary), ":".join(map(str, tried.ratio)), f"{tried.score:.4f}")
        console.print(table)


def print_label_reports(reports: Mapping[str, LabelReport], values: Mapping[str, float]) -> None:
    """How good each task is at each label, and what it takes for what; of many tasks, the worst ones, and of these the
    labels that are most often missed.

    Args:
        reports: By task.
        values: What judges the tasks.
    """
    some, worst = ends(values)
    reports = {name: reports[name] for name in worst or some}
    table = Table("task", "label", *(Column(name, justify="right") for name in _LABEL_COLUMNS), "taken for")
    notes = []
    for name, report in reports.items():
        known = [scores.label for scores in report.labels]
        chosen = _most_missed(report) if worst else range(len(known))
        for place, index in enumerate(chosen):
            scores = report.labels[index]
            numbers = ["-" if isnan(of) else f"{of:.3f}" for of in (scores.precision, scores.recall, scores.f1)]
            confused = zip(known, report.confusion[index], strict=True) if report.confusion else ()
            mistaken = sorted(((count, other) for other, count in confused), reverse=True)
            wrong = [f"{shown(other)} {count:,}" for count, other in mistaken if count and other != scores.label]
            taken = ", ".join(wrong[:_MOST_CONFUSED]) + (" ..." if len(wrong) > _MOST_CONFUSED else "")
            table.add_row(name if not place else "", _name(scores.label), *numbers, f"{scores.support:,}", Text(taken))
        if len(chosen) < len(known):
            table.add_row("", f"... {len(known) - len(chosen):,} more")
        if report.note:
            notes.append(f"{name}: {report.note}")
    console = Console()
    if table.row_count:
        console.print(table)
    for note in notes:
        console.print(note)


def _most_missed(report: LabelReport) -> list[int]:
    """The labels that most examples have without being given them, in their order."""
    missed = [0.0 if isnan(of.recall) else of.support * (1 - of.recall) for of in report.labels]
    return sorted(sorted(range(len(missed)), key=lambda index: -missed[index])[:_MOST_MISSED])


def print_doubts(evaluated: Mapping[str, EvaluatedTask]) -> None:
    """What of the tasks' data to doubt, a line for each kind and task, with the first of the texts."""
    lines = []

    def say(task: str, what: str, texts: Sequence[RepeatedText] = ()) -> None:
        some = "; ".join(shown(" ".join(of.text.split()), _MAX_QUOTED) for of in texts[:_MOST_QUOTED])
        lines.append(Text(f"{task}: {what}{': ' if texts else ''}{some}"))

    for name, item in evaluated.items():
        if item.not_compared:
            say(name, f"not compared with its training data: {for_people(item.not_compared)}")
        if item.no_suspects and not item.not_compared:
            say(name, f"no search for wrong labels: {for_people(item.no_suspects)}")
        if item.repeats is None:
            continue
        if item.repeats.overlap:
            of_all = f"{item.repeats.num_overlap:,} of {item.metrics['num_examples']:,.0f} evaluation examples"
            say(name, f"{of_all} have texts that it was trained on", item.repeats.overlap)
        if item.repeats.contradictions:
            number = counted(len(item.repeats.contradictions), "text")
            say(name, f"{number} with labels that contradict each other", item.repeats.contradictions)
    _print_lines(Console(highlight=False), lines)


def print_predictions(rows: list[dict[str, Any]]) -> None:
    """A table of all tasks' labels for each text, with all scores: a star at those given, and why at others.

    Of many tasks it has the surest and the least sure, each with the label that is given.
    """
    console = Console()
    for row in rows:
        table = Table("task", "label", "score", title_justify="left", title_style="bold")
        table.title = _name(" | ".join(text[:100] for text in (row["text"], row.get("second")) if text is not None))
        if row["error"]:
            table.add_row("-", Text(row["error"], style="red"), "")
        else:
            lines = {
                name: _labels_and_scores(row, name)
                for name in (key.removesuffix("_score") for key in row if key.endswith("_score"))
            }
            sure = {name: _surety(row[f"{name}_score"]) for name, found in lines.items() if found}
            if not any(ends(sure)[1:]):
                for name, found in lines.items():
                    for label, score in found:
                        table.add_row(_name(name), label if isinstance(label, Text) else _name(label), score)
            else:
                _add_rows(table, sure, {name: _first_line(name, lines[name]) for name in sure}.__getitem__)
        console.print(table)
        if not row["error"]:
            _say_where_the_rest_is(console, sure, "--json; or some of them: --tasks a,b")


def _surety(score: float | Sequence[float] | None) -> float:
    """How sure a task is of what it says: of several labels, of the surest."""
    if isinstance(score, Sequence):
        return max(score, default=nan)
    return nan if score is None else score


def _first_line(task: str, lines: Sequence[tuple[str | Text, str]]) -> tuple[Text, Text, str]:
    label, score = lines[0]
    return _name(task), label if isinstance(label, Text) else _name(label), score


def _labels_and_scores(row: Mapping[str, Any], task: str) -> list[tuple[str | Text, str]]:
    """What a row says of a task, line by line; nothing where it has not been asked."""
    score, label = row[f"{task}_score"], row.get(f"{task}_label")
    if score is None:
        return []
    if all_scores := row.get(f"{task}_scores"):
        given = label if isinstance(label, list) else [label]
        star = " * by a rule" if row.get(f"{task}_corrected") else " *"
        likeliest_first = sorted(all_scores.items(), key=lambda item: (item[0] not in given, -item[1]))
        lines = [(name + star if name in given else name, f"{value:.3f}") for name, value in likeliest_first]
        unsure = [("- too unsure for a label", "")] if row.get(f"{task}_abstained") else []
        more = [(f"... and {len(lines) - _MAX_SHARES} more", "")] if len(lines) > max(_MAX_SHARES, len(given)) else []
        return [*unsure, *lines[: max(_MAX_SHARES, len(given))], *more]
    if isinstance(label, list) and not isinstance(score, list):
        entities = [(f"{entity['text']} ({entity['label']})", f"{entity['score']:.3f}") for entity in label]
        return [(_marked(row, label), ""), *entities] if entities else [("-", f"{score:.3f}")]
    if isinstance(score, list):
        return [(name, f"{value:.3f}") for name, value in zip(label or (), score, strict=True)] or [("-", "")]
    return [(label or "", f"{score:.3f}")]


def _marked(row: Mapping[str, Any], entities: Sequence[Mapping[str, Any]]) -> Text:
    """A row's texts with the entities in colour, one for each type."""
    types = sorted({entity["label"] for entity in entities})
    parts = []
    for column in ("text", "second"):
        own = [entity for entity in entities if entity["column"] == column]
        text, place = str(row.get(column) or ""), 0
        for entity in own:
            style = f"bold {_ENTITY_COLOURS[types.index(entity['label']) % len(_ENTITY_COLOURS)]}"
            parts += [Text(shown(text[place : entity["start"]])), Text(shown(entity["text"]), style=style)]
            place = entity["end"]
        if own:
            parts.append(Text(shown(text[place:]) + "\n"))
    joined = Text().join(parts)
    joined.rstrip()
    return joined


def print_stats(stats: TableStats) -> None:
    """What a label table holds: coverage by task, label shares by task, and the label sets."""
    console = Console(highlight=False)
    articles, files = counted(stats.articles, "article"), counted(stats.source_files, "source file")
    console.print(_name(f"{articles} of {files} in {stats.labels}"), soft_wrap=True)
    coverage = Table()
    coverage.add_column("task", overflow="fold")  # names are there whole, however narrow the terminal
    for column in ("current", "older", "errors", "missing"):
        coverage.add_column(column, justify="right")
    coverage.add_column("bundle: fingerprint", overflow="fold")

    def covered(name: str) -> list[RenderableType]:
        task = stats.tasks[name]
        counts = [f"{count:,}" for count in (task.older, task.errors, task.missing)]
        made_by = "\n".join(f"{shown(bundle)}: {shown(fingerprint[:8])}" for bundle, fingerprint in task.made_by)
        return [_name(name), f"{task.current:,} ({task.coverage:.1%})", *counts, Text(made_by)]

    coverages = {name: task.coverage for name, task in stats.tasks.items()}
    _add_rows(coverage, coverages, covered)
    console.print(coverage)
    _say_where_the_rest_is(console, coverages, "--json OUT; or some of them: --tasks a,b")
    shares = Table()
    for column in ("task", "labels"):
        shares.add_column(column, overflow="fold")
    room = console.width - max(len(shown(name)) for name in ["task", *stats.tasks]) - _BORDERS_OF_TWO_COLUMNS

    def shares_of(name: str) -> list[RenderableType]:
        task = stats.tasks[name]
        found = [f"{shown(label)} {share:.1%}" for label, share in islice(task.shares.items(), _MAX_LABELS)]
        if task.without_label:
            found.append(f"none of them {task.without_label / task.labelled:.1%}")
        if not found and task.mean_score is not None:
            found = [f"mean {task.mean_score:.3f}"]
        return [_name(name), Text("\n".join(_lines(found, room)))]

    _add_rows(shares, coverages, shares_of)
    console.print(shares)
    label_sets = Table()
    for column in ("label set", "tasks"):
        label_sets.add_column(column, overflow="fold")
    for column in ("files", "rows", "MB"):
        label_sets.add_column(column, justify="right")
    for name, label_set in stats.label_sets.items():
        size = f"{label_set.num_bytes / 1e6:,.1f}"
        tasks = Text(listed(label_set.tasks))
        label_sets.add_row(_name(name), tasks, f"{label_set.files:,}", f"{label_set.rows:,}", size)
    console.print(label_sets)


def _lines(entries: Sequence[str], width: int) -> list[str]:
    """Entries with commas between, in lines of up to so many characters, none broken in two if it has room."""
    lines = [""]
    for number, entry in enumerate(entries, 1):
        entry += "," if number < len(entries) else ""
        if lines[-1] and len(lines[-1]) + 1 + len(entry) > width:
            lines.append("")
        lines[-1] += f" {entry}" if lines[-1] else entry
    return lines


def _name(name: str) -> Text:
    """A name from a file, which is no markup."""
    return Text(shown(name))


def print_comparison(comparison: Mapping[str, Any]) -> None:
    """What two bundles say of the same articles, and what the gate would say."""
    console = Console(highlight=False)
    old, new = (shown(comparison[key]) for key in ("model", "with"))
    articles = counted(comparison["articles"], "article")
    console.print(Text(f"{articles} of {shown(comparison['corpus'])}: {old} (old) with {new} (new)"), soft_wrap=True)
    table = Table()
    for column in ("task", "old", "new"):
        table.add_column(column, overflow="fold")
    for column in ("agreement", "stability", "metric"):
        table.add_column(column, justify="right")

    def compared(name: str) -> list[RenderableType]:
        task = comparison["tasks"][name]
        metric = task["metric"]
        change = "" if metric is None else f"{metric['metric']} {metric['old']:.4f} to {metric['new']:.4f}"
        index = "" if task["stability"] is None else f"{task['stability']:.3f}"
        sides = (Text(_shares_or_mean(task, side)) for side in ("old", "new"))
        return [_name(name), *sides, f"{task['agreement']:.1%}", index, change]

    agreements = {name: task["agreement"] for name, task in comparison["tasks"].items()}
    _add_rows(table, agreements, compared)
    console.print(table)
    _say_where_the_rest_is(console, agreements, "--json OUT")
    for key, bundle in (("only_in_model", old), ("only_in_with", new)):
        if comparison[key]:
            console.print(Text(f"not compared, of {bundle} alone: {listed(comparison[key])}"))
    reasons = [for_people(reason["text"]) for reason in comparison["gate"]["reasons"]]
    console.print(Text("\n".join(["the gate would be closed:", *reasons] if reasons else ["the gate would be open"])))


def _shares_or_mean(task: Mapping[str, Any], side: str) -> str:
    """The most frequent labels with their shares, or the mean of values."""
    counts, scores = task[f"{side}_counts"], task[f"{side}_scores"]
    if task["kind"] == "regression":
        return "" if scores["mean"] is None else f"mean {scores['mean']:.3f}"
    total = task["same_articles"]
    return ", ".join(f"{shown(label)} {count / total:.1%}" for label, count in islice(counts.items(), _MAX_SHARES))


def print_decisions(decisions: Mapping[str, Mapping[str, Any]]) -> None:
    """How each task decides, how far its scores can be trusted, and what its thresholds reach.

    Args:
        decisions: By task, as `decisions.json` of a bundle has it.
    """
    numbers = ("temperature", "ECE before", "ECE", "Brier", "threshold", "precision", "recall", "abstained")
    table = Table("task", "label", *(Column(name, justify="right") for name in numbers))
    errors = {task: -of["after"]["error"] for task, of in decisions.items()}
    first, last = ends(errors)
    for task in [*first, *last]:
        of = decisions[task]
        trust = [of["before"]["error"], of["after"]["error"], of["after"]["brier"]]
        first = [f"{of['temperature']:.3g}", *(f"{value:.3f}" for value in trust)]
        abstained = f"{of['abstained']:.1%}" if of["abstain_below"] else ""
        labels = of["labels"][:_MAX_LABELS]
        table.add_row(task, *_reached(labels[0] if labels else None, first), abstained)
        for each in labels[1:]:
            table.add_row("", *_reached(each, [""] * len(first)), "")
    console = Console()
    console.print(table)
    _say_where_the_rest_is(
        console, errors, "decisions.json of the bundle; here are those with the lowest and highest ECE"
    )


def _reached(label: Mapping[str, Any] | None, of_task: Sequence[str]) -> list[str | Text]:
    """The cells of a label, and those of its task in their place."""
    if label is None:
        return ["", *of_task, "", "", ""]
    reached = (f"{label['threshold']:.4g}", _share(label["precision"]), _share(label["recall"]))
    return [_name(label["label"]), *of_task, *reached]


def _share(value: float | None) -> str:
    return "-" if value is None or isnan(value) else f"{value:.3f}"


def metric_table(metrics: Mapping[str, Mapping[str, float]], tasks: Sequence[Task]) -> Table:
    """A table of each task's own metric on its evaluation data, and their mean; of regressions the errors too.

    Args:
        metrics: Task name -> metric -> value, with "num_examples".
        tasks: The rows, in order. The mean is that of those whose metric is defined.
    """
    from mtop_batch.training.evaluation.metrics import mean_of_defined  # SciPy is slow to import

    table = Table("task", "metric")
    table.add_column("value", justify="right")
    table.add_column("examples", justify="right")
    errors = ("rmse", "mae") if any(task.kind == "regression" for task in tasks) else ()
    for name in errors:
        table.add_column(name.upper(), justify="right")
    by_name, values = {task.name: task for task in tasks}, _values(metrics, tasks)

    def cells(name: str) -> list[RenderableType]:
        of_task = metrics[name]
        errors_of_task = [f"{of_task[name]:,.4g}" if name in of_task else "" for name in errors]
        num_examples = f"{of_task.get('num_examples', 0):,.0f}"
        return [name, str(by_name[name].metric), _metric(values[name]), num_examples, *errors_of_task]

    _add_rows(table, values, cells)
    table.add_section()
    left_out = sum(map(isnan, values.values()))
    of_which = f"of {counted(len(values) - left_out, 'task')}" if left_out else ""
    table.add_row("mean", of_which, _metric(mean_of_defined([*values.values()])), style="bold")
    return table


def _metric(value: float) -> str:
    return "undefined" if isnan(value) else f"{value:.4f}"
