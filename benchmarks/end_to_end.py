"""How much of the bare model's speed is left when it is a job?

* `bare`  one process, the bundle, token batches made ready beforehand and sorted by length: forward passes only
* `job`   `mtop label` over a corpus of Parquet files: list, read, tokenise, Ray, forward, write

Both have the same cores, the same texts and the same batches of tokens. They run in turn, `--rounds` times; `ratio`
is job over bare, the start-up of the job (until the first labelling actor is ready) counted apart, as `start_up_s`.

    python benchmarks/end_to_end.py --articles articles.parquet --column headline [--rows 50000] [--files 20]
        [--rounds 1]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from bundles import COLUMN, save_random_bundle
from results_file import write_result

WARM_UP_BATCHES = 20


def write_corpus(articles: Path, column: str, root: Path, num_rows: int, num_files: int) -> None:
    """The first texts of a Parquet file or directory, from its beginning again where there are too few."""
    texts = pq.read_table(articles, columns=[column])[column].drop_null()
    rows = np.arange(num_rows) % len(texts)
    root.mkdir()
    for index, part in enumerate(np.array_split(rows, num_files)):
        table = pa.table({"id": part.min() + np.arange(len(part)), COLUMN: texts.take(part)})
        pq.write_table(table, root / f"part-{index:03d}.parquet")


def bare(model: str, corpus: str) -> dict[str, Any]:
    """Documents per second of forward passes over batches that are ready."""
    import torch

    from mtop_batch.data.batches import length_sorted_batches, pad_batch
    from mtop_batch.labelling.run.predictor import Predictor
    from mtop_batch.labelling.run.rows import Batch
    from mtop_batch.model.bundle.bundle import load_bundle

    torch.set_num_threads(os.cpu_count() or 1)
    bundle = load_bundle(model)
    predictor = Predictor(bundle.model, bundle.tokenizer)
    tokens = predictor._tokenizer.encode(pq.read_table(corpus, columns=[COLUMN])[COLUMN].to_pylist())
    costs = tokens.lengths + predictor._num_prompts
    rows = length_sorted_batches(costs, predictor.max_batch_tokens)
    batches = [Batch(pad_batch(tokens, batch), int(tokens.lengths[batch].sum()), None) for batch in rows]
    for batch in batches[:WARM_UP_BATCHES]:
        predictor._forward(batch)
    started = time.perf_counter()
    for batch in batches:
        predictor._forward(batch)
    if predictor.device.type == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    return {
        "seconds": round(seconds, 2),
        "documents_per_s": round(len(tokens) / seconds, 2),
        "tokens_per_document": round(float(tokens.lengths.mean()), 1),
    }


def job(model: str, corpus: str) -> dict[str, Any]:
    """The run report of `mtop label`, as far as it is about speed."""
    with tempfile.TemporaryDirectory() as labels:
        command = ["label", "--model", model, "--corpus", corpus, "--labels", labels]
        subprocess.run([sys.executable, "-m", "mtop_batch.cli", *command], check=True, stdout=subprocess.DEVNULL)
        [path] = Path(labels).glob("_runs/*/report.json")
        report = json.loads(path.read_text())
    performance = report["performance"]
    return {
        "seconds": report["seconds"],
        "start_up_s": performance["start_up_s"],
        "documents_per_s": round(report["rows"] / (report["seconds"] - performance["start_up_s"]), 2),
        "documents_per_s_with_start_up": report["documents_per_s"],
        "stage_seconds": report["stage_seconds"],
        **{key: performance[key] for key in ("num_actors", "padding_share", "idle_fraction", "mfu")},
        "bottleneck": performance["bottleneck"],
    }


def main() -> None:
    """Measure in turn, and write `results/end_to_end.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--articles", type=Path, required=True)
    parser.add_argument("--column", default="title")
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--files", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--name", default="end_to_end")
    parser.add_argument("--bare", help=argparse.SUPPRESS)  # the part that has a process of its own
    arguments = parser.parse_args()
    if arguments.bare:
        print(json.dumps(bare(arguments.bare, str(arguments.articles))))
        return
    rounds = []
    with tempfile.TemporaryDirectory() as work:
        corpus = Path(work) / "corpus"
        model = f"{work}/model"
        save_random_bundle(model)
        write_corpus(arguments.articles, arguments.column, corpus, arguments.rows, arguments.files)
        for _ in range(arguments.rounds):
            command = [sys.executable, __file__, "--articles", str(corpus), "--bare", model]
            alone = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            rounds.append({"bare": alone, "job": job(model, str(corpus))})
            rounds[-1]["ratio"] = round(rounds[-1]["job"]["documents_per_s"] / alone["documents_per_s"], 3)
            print(json.dumps(rounds[-1], indent=2), flush=True)
    result = {
        "rows": arguments.rows,
        "files": arguments.files,
        "ratio": statistics.median(entry["ratio"] for entry in rounds),
        "rounds": rounds,
    }
    print(f"wrote {write_result(arguments.name, result)}")


if __name__ == "__main__":
    main()
