"""The plots of the results, as PNG files written from the records alone."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle
from statistics import mean
from typing import TYPE_CHECKING, Any

from mtop_batch.errors import ConfigError
from mtop_batch.experiments.methods.families import ENTITIES, FAMILIES, TEXTS
from mtop_batch.experiments.methods.many import MANY
from mtop_batch.experiments.methods.tables import MTOP
from mtop_batch.experiments.page.summary import ResultTable, Row, Setting, Spread, tables
from mtop_batch.experiments.runs.records import Records

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLORS = ("#1b6ca8", "#d1495b", "#66a182", "#edae49", "#8d6a9f", "#2e4057", "#888888", "#b5651d")
_MARKERS = ("o", "s")
_TITLES = {
    "ablations": "Ablations",
    "prompt-lengths": "Lengths of prompts, and their layers",
    "auxiliary": "Auxiliary tasks",
    "families": "Entities beside texts",
    "many": "How steps take many tasks",
    "many-alpha": "Where alpha ends",
    "many-reads": "What many tasks read",
    "many-numbers": "A hundred tasks and more",
    "many-transfer": "A very large task after many",
}
_WIDTH, _HEIGHT, _DPI = 7.5, 4.2, 110


def results_plots(records: Records) -> Iterator[tuple[str, str, bytes]]:
    """File name, title and content of each plot, of the table of each kind with the most methods.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    fullest: dict[str, ResultTable] = {}
    for table in tables(records):
        if table.name not in fullest or len(table.rows) > len(fullest[table.name].rows):
            fullest[table.name] = table
    fullest.pop("many-fewer", None)
    for table in fullest.values():
        where = f"{table.setting.data}, {_examples(table.setting)}"
        if table.name in ("news", "glue"):
            title = f"Learning curves: {where}"
            yield f"{table.name}-curves.png", title, _png(_curves(table), title)
            if sum(row.speed is not None for row in table.rows) > 1:
                title = f"Accuracy and speed: {where}"
                yield f"{table.name}-speed.png", title, _png(_speed(table.rows), title)
        else:
            title = f"{_TITLES[table.name]}: {where}"
            figure = _family_bars(table.rows) if table.name == "families" else _bars(table.rows)
            yield f"{table.name}.png", title, _png(figure, title)


def _examples(setting: Setting) -> str:
    if setting.fraction is not None:
        return setting.examples_named
    return f"{setting.examples or 'all'} examples a task"


def _curves(table: ResultTable) -> Figure:
    """The mean over tasks and seeds on evaluation examples, after each epoch."""
    figure, axes = _axes()
    ticks: set[float] = set()
    for row, (color, marker) in zip(table.rows, _cycle(), strict=False):
        points: dict[float, list[float]] = {}
        for run in row.runs.values():
            by_epoch: dict[float, dict[str, float]] = {}
            for entry in run.history:
                by_epoch.setdefault(round(entry["epoch"]), {}).update(entry["tasks"])
            for epoch, found in by_epoch.items():
                if len(found) == len(table.tasks):
                    points.setdefault(epoch, []).append(100 * mean(found.values()))
        epochs = sorted(points)
        ticks.update(epochs)
        axes.plot(epochs, [mean(points[epoch]) for epoch in epochs], marker=marker, color=color, label=row.title)
    axes.set(xlabel="epoch", ylabel="mean over tasks, evaluation examples, %")
    axes.set_xticks(sorted(ticks))
    figure.legend(loc="outside right center", fontsize=8, frameon=False)
    return figure


def _bars(rows: Sequence[Row]) -> Figure:
    """The median of each row's mean over tasks, with the lowest and the highest seed."""
    figure, axes = _axes()
    colors = [_COLORS[1] if row.method in (MTOP, MANY) else _COLORS[0] for row in rows]
    _draw_bars(axes, {row.title: row.mean for row in rows}, colors)
    # Of the whole figure: long names of rows leave little room below the bars.
    figure.supxlabel("mean over tasks, test examples, % (the axis does not begin at 0)", fontsize=10)
    return figure


def _family_bars(rows: Sequence[Row]) -> Figure:
    """The same of the token tasks and of the tasks on texts, which have an axis each: they differ in size."""
    figure, axes = _axes(2)
    for axis, family in zip(axes, (ENTITIES, TEXTS), strict=True):
        spreads = {row.title: row.families[family].spread for row in rows if family in row.families}
        colors = [_COLORS[1] if row.method == FAMILIES else _COLORS[0] for row in rows if family in row.families]
        _draw_bars(axis, spreads, colors)
        axis.set(xlabel=f"mean over tasks, {family}, %")
    axes[1].set_yticklabels([])
    figure.supxlabel("test examples; the axes do not begin at 0", fontsize=8)
    return figure


def _draw_bars(axes: Axes, spreads: Mapping[str, Spread], colors: Sequence[str]) -> None:
    """The median of each title's seeds, with the lowest and the highest."""
    found = list(spreads.values())
    errors = [
        [spread.median - spread.low for spread in found],
        [spread.high - spread.median for spread in found],
    ]
    places = range(len(found))
    axes.barh(places, [spread.median for spread in found], xerr=errors, color=colors, capsize=3)
    axes.set_yticks(places, list(spreads))
    axes.invert_yaxis()
    if found:
        low, high = min(spread.low for spread in found), max(spread.high for spread in found)
        margin = max(0.5, (high - low) / 2)
        axes.set(xlim=(low - margin, high + margin / 2))


def _speed(rows: Sequence[Row]) -> Figure:
    """Quality against documents a second."""
    figure, axes = _axes()
    from matplotlib.ticker import LogFormatter

    for row, (color, marker) in zip(rows, _cycle(), strict=False):
        if row.speed is None:
            continue
        spread = row.mean
        error = [[spread.median - spread.low], [spread.high - spread.median]]
        axes.errorbar(
            row.speed.documents_per_s, spread.median, yerr=error, fmt=marker, color=color, capsize=3, label=row.title
        )
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(LogFormatter())
    axes.xaxis.set_minor_formatter(LogFormatter(labelOnlyBase=False, minor_thresholds=(2, 0.5)))
    axes.set(xlabel="documents/s, all labels of each", ylabel="mean over tasks, test examples, %")
    figure.legend(loc="outside right center", fontsize=8, frameon=False)
    return figure


def _axes(columns: int = 1) -> tuple[Figure, Any]:
    """A figure with its axes, of which there may be several side by side."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError("the plots need matplotlib; run `pip install 'mtop-batch[docs]'`") from None
    figure = Figure(figsize=(_WIDTH, _HEIGHT), layout="constrained")
    axes = figure.subplots(ncols=columns)
    for each in figure.axes:
        each.spines[["top", "right"]].set_visible(False)
        each.grid(alpha=0.3)
    return figure, axes


def _cycle() -> Iterator[tuple[str, str]]:
    """A color and a marker for each line."""
    for marker in cycle(_MARKERS):
        for color in _COLORS:
            yield color, marker


def _png(figure: Any, title: str) -> bytes:
    figure.suptitle(title, fontsize=10)
    sink = io.BytesIO()
    figure.savefig(sink, format="png", dpi=_DPI, metadata={"Software": None})
    return sink.getvalue()
