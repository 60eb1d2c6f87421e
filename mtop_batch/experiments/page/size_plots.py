"""How large the tasks of a set are, in four plots (large-scale multi-task learning, figure 2)."""

from __future__ import annotations

import io

import numpy as np
import pyarrow.csv as pa_csv

from mtop_batch import storage
from mtop_batch.data.sets.many import SIZES

PLOTS = "tasks.png"
_COLOR = "#1b6ca8"


def write_size_plots(output: str) -> str | None:
    """Draw `<output>/tasks.png` from `<output>/tasks.csv`.

    Returns:
        Where it is; None if matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    sizes = pa_csv.read_csv(io.BytesIO(storage.read_bytes(storage.join(storage.absolute(output), SIZES))))
    labels = sizes["labels"].to_numpy()
    examples = sum(sizes[part].to_numpy() for part in ("train", "eval", "test"))
    per_label = examples / labels
    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.subplots(2, 2)
    panels = ((axes[0, 0], examples, "examples of a task"), (axes[0, 1], labels, "labels of a task"))
    for axis, values, name in (*panels, (axes[1, 0], per_label, "examples of a label, mean of a task")):
        axis.hist(values, bins=np.geomspace(values.min(), values.max() + 1, 25), color=_COLOR)
        axis.set(xscale="log", xlabel=name, ylabel="tasks")
    axes[1, 1].scatter(examples, labels, s=12, color=_COLOR, alpha=0.6, linewidths=0)
    axes[1, 1].set(xscale="log", yscale="log", xlabel="examples of a task", ylabel="labels of a task")
    figure.suptitle(f"{len(sizes):,} tasks, {int(examples.sum()):,} examples")
    sink = io.BytesIO()
    figure.savefig(sink, format="png", dpi=110)
    uri = storage.join(storage.absolute(output), PLOTS)
    storage.write_bytes(uri, sink.getvalue())
    return uri
