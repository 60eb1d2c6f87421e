"""Pictures of what was measured, as PNG files: which tasks correlate, and which heads matter to each.

Shapes: N tasks, L layers, H heads.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from scipy.cluster.hierarchy import dendrogram

from mtop_batch.errors import ConfigError
from mtop_batch.selection.correlation import cluster_tree, similar_first
from mtop_batch.selection.select import Heads

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DPI = 110
_MOST_NUMBERS = 16
_MOST_COLUMNS = 4
_LINE = "#2e4057"


def check_pictures() -> None:
    """Refuse to begin where pictures cannot be drawn in the end.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    _figure(1, 1)


def correlations_picture(heads: Heads) -> bytes:
    """A heat map of the correlations of N tasks, those that correlate beside each other, under a dendrogram."""
    order = similar_first(heads.correlations)
    names, values = [heads.names[index] for index in order], heads.correlations[np.ix_(order, order)]
    size = 0.45 * len(names)
    figure = _figure(3.6 + size, 3.2 + size)
    above, map_ = figure.subplots(2, 1, height_ratios=[1, max(2.0, 0.5 * len(names))])
    tree = cluster_tree(heads.correlations)
    dendrogram(tree, ax=above, no_labels=True, color_threshold=0, above_threshold_color=_LINE)
    above.set_axis_off()
    above.set_title("Kendall's tau between the tasks' heads", fontsize=10)
    off = values[~np.eye(len(names), dtype=bool)]
    low, high = float(off.min()), float(off.max())
    margin = max(0.02, (high - low) / 10)
    image = map_.imshow(values, cmap="viridis", vmin=low - margin, vmax=high + margin, aspect="auto")
    map_.set_xticks(range(len(names)), names, rotation=45, ha="right", fontsize=8)
    map_.set_yticks(range(len(names)), names, fontsize=8)
    if len(names) <= _MOST_NUMBERS:
        for row, line in enumerate(values):
            for column, value in enumerate(line):
                if row != column:
                    color = "black" if value > (low + high) / 2 else "white"
                    map_.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=7, color=color)
    figure.colorbar(image, ax=map_, fraction=0.05, pad=0.02)
    return _png(figure)


def heads_picture(heads: Heads) -> bytes:
    """A heat map of the (L, H) importance for each of N tasks, those that correlate beside each other."""
    order = similar_first(heads.correlations)
    columns = min(_MOST_COLUMNS, len(order))
    rows = math.ceil(len(order) / columns)
    layers, width = heads.importance[0].shape
    figure = _figure(0.6 + columns * max(1.6, 0.16 * width), 0.5 + rows * max(1.4, 0.6 + 0.14 * layers))
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, index in zip(grid.flat, order, strict=False):
        axes.set_axis_on()
        image = axes.imshow(heads.importance[index], cmap="magma", vmin=0, vmax=1, aspect="auto", origin="lower")
        axes.set_title(heads.names[index], fontsize=8)
        axes.set_xticks(_ticks(width), [str(tick + 1) for tick in _ticks(width)], fontsize=6)
        axes.set_yticks(_ticks(layers), [str(tick + 1) for tick in _ticks(layers)], fontsize=6)
    figure.supxlabel("head", fontsize=8)
    figure.supylabel("layer", fontsize=8)
    figure.colorbar(image, ax=grid, fraction=0.03, pad=0.02, label="importance")
    return _png(figure)


def _ticks(count: int) -> Sequence[int]:
    return range(0, count, max(1, math.ceil(count / 6)))


def _figure(width: float, height: float) -> Figure:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError("the pictures need matplotlib; run `pip install 'mtop-batch[docs]'`") from None
    return Figure(figsize=(width, height), layout="constrained")


def _png(figure: Figure) -> bytes:
    sink = io.BytesIO()
    figure.savefig(sink, format="png", dpi=_DPI, metadata={"Software": None})
    return sink.getvalue()
