"""`make bench`: what a CPU can measure in under 15 minutes, without data of one's own, and one table of it.

The texts are the demonstration's news articles. Each measurement is a script of its own, here with fewer texts and
rounds than it has by default; what documentation quotes comes from longer runs of the same scripts.

    python benchmarks/run.py [--only end_to_end peers_titles ...]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from results_file import RESULTS
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent

Row = tuple[str, str, str]


@dataclass(frozen=True)
class Measurement:
    """A script, its options, and what its result says as rows of the table: what, measured, ratio."""

    script: str
    options: str
    rows: Callable[[dict[str, Any]], list[Row]]


def end_to_end_rows(result: dict[str, Any]) -> list[Row]:
    """The job beside the bare model."""
    entry = result["rounds"][-1]
    rates = f"{entry['job']['documents_per_s']:,.0f} of {entry['bare']['documents_per_s']:,.0f} documents/s"
    return [("mtop label beside the bare model, titles", rates, f"{result['ratio']:.2f}")]


def peers_rows(result: dict[str, Any]) -> list[Row]:
    """Ours with isolated prompts beside each peer and beside ours with prompt groups."""
    tokens = f"{result['tokens_per_text']:.0f} tokens"
    ours = result["peers"]["mtop isolated"]["documents_per_s"]
    return [
        (
            f"eight tasks, {tokens}: isolated prompts beside {name}",
            f"{ours:,.0f} beside {peer['documents_per_s']:,.0f} documents/s",
            f"{peer['ours_is_faster_by']:.2f}",
        )
        for name, peer in result["peers"].items()
        if name != "mtop isolated"
    ]


def num_tasks_rows(result: dict[str, Any]) -> list[Row]:
    """What more tasks cost."""
    return [
        (
            f"{row['tasks']:,} tasks beside one: {row['attention']}, {row['prompts']}, poolers {row['poolers']}",
            f"{row['documents_per_s']:,.1f} documents/s",
            f"{row['cost']:.2f}",
        )
        for row in result["fp32"]
        if row["tasks"] > 1
    ]


def train_speed_rows(result: dict[str, Any]) -> list[Row]:
    """Training variants beside the plain one."""
    base = "trainer" if "ratio_to_trainer" in result else "plain"
    medians, ratios = result["median_examples_per_s"], result[f"ratio_to_{base}"]
    return [
        (f"training: {name} beside {base}", f"{medians[name]:,.1f} examples/s", f"{ratios[name]:.2f}")
        for name in medians
    ]


MEASUREMENTS = {
    "end_to_end": Measurement(
        "end_to_end.py", "--articles {corpus} --column title --rows 6000 --files 6", end_to_end_rows
    ),
    "peers_titles": Measurement(
        "peers.py", "--articles {corpus} --column title --rows 400 --rounds 1 --only {peers}", peers_rows
    ),
    "peers_articles": Measurement(
        "peers.py", "--articles {corpus} --column title --second body --rows 60 --rounds 1 --only {peers}", peers_rows
    ),
    "num_tasks": Measurement("num_tasks.py", "--precision fp32 --tasks 1 8 1000 --texts 48 --rounds 2", num_tasks_rows),
    "train_speed": Measurement(
        "train_speed.py", "--steps 15 --rounds 1 --only plain isolated trainer", train_speed_rows
    ),
}
FAST_PEERS = (
    "mtop isolated",
    "mtop 1 prompt",
    "mtop 2 groups",
    "bare",
    "pipelines",
    "encoder_and_heads",
    "sentence_transformers",
    "onnx_runtime",
)


def main() -> None:
    """Run them one after the other; each writes `results/bench_<name>.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=MEASUREMENTS, default=list(MEASUREMENTS))
    names = parser.parse_args().only
    console = Console(highlight=False)
    table = Table("what", "measured", "ratio")
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as work:
        corpus = build_corpus(Path(work))
        for name in names:
            measurement = MEASUREMENTS[name]
            options: list[str] = []
            for word in measurement.options.split():
                options += FAST_PEERS if word == "{peers}" else [word.format(corpus=corpus)]
            console.print(f"== {name}: {measurement.script} {' '.join(options)}", soft_wrap=True)
            command = [sys.executable, str(HERE / measurement.script), *options, "--name", f"bench_{name}"]
            subprocess.run(command, check=True)
            result = json.loads((RESULTS / f"bench_{name}.json").read_text())["result"]
            for row in measurement.rows(result):
                table.add_row(*row)
            table.add_section()
    console.print(table)
    console.print(f"{time.monotonic() - started:.0f} s, {torch.get_num_threads()} threads; results in {RESULTS}")


def build_corpus(work: Path) -> str:
    """The demonstration's articles."""
    sys.path.insert(0, str(HERE.parent / "demo"))
    import news

    news.build(work)
    return str(work / "corpus")


if __name__ == "__main__":
    main()
