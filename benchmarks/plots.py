"""The plots of the documentation, from results/: docs/images/*.svg.

python benchmarks/plots.py [--output docs/images] [--format svg]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from results_file import RESULTS

BLUE, ORANGE, GREY, LIGHT = "#2f6db5", "#d9772b", "#7f7f7f", "#bdbdbd"
STYLE: Any = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "svg.hashsalt": "mtop",  # the same file from the same results
    "figure.facecolor": "white",
}


def result(name: str) -> dict[str, Any]:
    """The result of a measurement."""
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())["result"]
    return found


def speed(axes: Axes) -> None:
    """Documents per second on an H200, from text to labels, beside what people use."""
    rates = result("peers-cuda")["documents_per_s"]
    names = {
        "sentence_transformers": "sentence-transformers, 8 heads",
        "encoder_and_heads": "one AutoModel, 8 heads, batches of 32",
        "mtop isolated": "MTOP, isolated prompts",
        "mtop joint": "MTOP, joint prompts",
        "bare": "the encoder only, tokens ready",
    }
    for row, key in enumerate(names):
        mean = sum(rates[key]) / len(rates[key])
        color = BLUE if key.startswith("mtop") else LIGHT
        axes.barh(row, mean, color=color, height=0.65)
        axes.plot(rates[key], [row] * len(rates[key]), ".", color="black", markersize=4)
        axes.text(max(rates[key]) + 150, row, f"{mean:,.0f}", va="center")
    axes.set_yticks(range(len(names)), list(names.values()))
    axes.set_xlabel("documents per second (dots: rounds)")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_title("Eight tasks, BERT-base size, one H200, bf16")


def many_tasks(axes: Axes) -> None:
    """The cost of a document over the number of tasks."""
    lines = [
        ("num_tasks", "fp32", "own", "full", GREY, "--", "prompts of their own, 2 CPU cores"),
        ("num_tasks-cuda", "bf16", "own", "full", GREY, "-", "prompts of their own, H200"),
        ("num_tasks", "fp32", "groups", "full", BLUE, "--", "8 prompt groups, 2 CPU cores"),
        ("num_tasks", "fp32", "groups", "rank 64", ORANGE, "--", "8 groups, poolers of rank 64, 2 CPU cores"),
        ("num_tasks-cuda", "bf16", "groups", "full", BLUE, "-", "8 prompt groups, H200"),
    ]
    for file, precision, prompts, poolers, color, style, name in lines:
        entries = [
            entry
            for entry in result(file)[precision]
            if (entry["prompts"], entry["attention"], entry["poolers"]) == (prompts, "isolated", poolers)
        ]
        cost = {entry["tasks"]: entry["cost"] for entry in entries}
        axes.plot(list(cost), list(cost.values()), style, marker="o", markersize=4, color=color, label=name)
    axes.axhline(1, color=LIGHT, linewidth=0.8)
    axes.set_xscale("log")
    axes.set_xticks([1, 8, 64, 256, 1000], ["1", "8", "64", "256", "1,000"])
    axes.minorticks_off()
    axes.set_ylim(0, 3.5)
    axes.set_xlabel("tasks")
    axes.set_ylabel("time per document, one task = 1")
    axes.legend(frameon=False, fontsize=9)
    axes.set_title("What more tasks cost, texts of 128 tokens")


def added_tasks(axes: Axes) -> None:
    """How good an added task is, beside the other ways to get it."""
    tasks = result("added_tasks")["tasks"]
    ways = {
        "vectors": ("regression on sentence vectors", LIGHT, "s"),
        "tuned": ("a model of its own, fine-tuned", GREY, "^"),
        "joint": ("trained with all others from the start", ORANGE, "D"),
        "added": ("added later", BLUE, "o"),
    }
    for number, (way, (name, color, marker)) in enumerate(ways.items()):
        rows = [row + 0.15 * (1.5 - number) for row in range(len(tasks))]
        means = [task[way]["mean"] for task in tasks.values()]
        halves = [task[way]["spread"] / 2 for task in tasks.values()]
        axes.errorbar(means, rows, xerr=halves, fmt=marker, color=color, markersize=5, linewidth=1, label=name)
    axes.set_yticks(range(len(tasks)), [name.replace("trec", "TREC").replace("sst2", "SST-2") for name in tasks])
    axes.invert_yaxis()
    axes.set_xlabel("accuracy in per cent (bars: spread of three seeds)")
    axes.legend(frameon=False, fontsize=9, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2)


PLOTS = {"speed": (speed, (7.0, 2.8)), "many-tasks": (many_tasks, (7.0, 3.6)), "added-tasks": (added_tasks, (7.0, 3.8))}


def main() -> None:
    """Draw all plots."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--output", type=Path, default=Path(__file__).parent.parent / "docs" / "images")
    parser.add_argument("--format", default="svg")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    plt.rcParams.update(STYLE)
    for name, (draw, size) in PLOTS.items():
        figure, axes = plt.subplots(figsize=size, layout="constrained")
        draw(axes)
        metadata = {"Date": None} if options.format == "svg" else {}
        figure.savefig(options.output / f"{name}.{options.format}", dpi=110, metadata=metadata)
        plt.close(figure)


if __name__ == "__main__":
    main()
