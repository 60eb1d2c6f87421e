"""The reliability plot of a bundle: how often a label is right, by its score, before and after calibration."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MAX_TASKS, _COLUMNS = 24, 4
_SIDE, _DPI = 2.6, 100
_COLORS = {"before": "#999999", "after": "#1b6ca8"}


def reliability_plot(decisions: Mapping[str, Mapping[str, Any]]) -> bytes | None:
    """A PNG with a panel for each task, the first of them; None without tasks, or where matplotlib is not installed.

    Args:
        decisions: Task -> what was fitted (`training.calibration.fit_decisions`).
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    shown = dict(islice(decisions.items(), _MAX_TASKS))
    if not shown:
        return None
    num_columns = min(_COLUMNS, len(shown))
    num_rows = math.ceil(len(shown) / num_columns)
    figure = Figure(figsize=(_SIDE * num_columns, (_SIDE + 0.45) * num_rows), layout="constrained")
    panels = figure.subplots(num_rows, num_columns, squeeze=False).ravel()
    for panel, (task, of) in zip(panels, shown.items(), strict=False):
        _draw(panel, task, of)
    for panel in panels[len(shown) :]:
        panel.set_axis_off()
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=2, frameon=False)
    if len(shown) < len(decisions):
        figure.suptitle(f"{len(shown)} of {len(decisions):,} tasks", fontsize=9)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=_DPI, metadata={"Software": None})
    return file.getvalue()


def _draw(panel: Axes, task: str, of: Mapping[str, Any]) -> None:
    panel.plot([0, 1], [0, 1], color="#cccccc", linewidth=1)
    for when, color in _COLORS.items():
        bins: Sequence[Mapping[str, float]] = of[when]["bins"]
        total = sum(each["examples"] for each in bins)
        scores, right = [each["score"] for each in bins], [each["accuracy"] for each in bins]
        name = "before" if when == "before" else "calibrated"
        panel.plot(scores, right, color=color, linewidth=1.2, label=name)
        panel.scatter(scores, right, s=[6 + 60 * each["examples"] / total for each in bins], color=color)
    lowest = min(each["score"] for when in _COLORS for each in of[when]["bins"])
    panel.set_xlim(0.45 if lowest >= 0.5 else -0.02, 1.02)
    panel.set_ylim(-0.02, 1.02)
    panel.set_title(f"{task}\nECE {of['before']['error']:.3f} \u2192 {of['after']['error']:.3f}", fontsize=8)
    panel.set_xlabel("score", fontsize=8)
    panel.set_ylabel("share that is right", fontsize=8)
    panel.tick_params(labelsize=7)
