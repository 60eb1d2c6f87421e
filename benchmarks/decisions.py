"""What a change of decisions costs: every label of a table again, from stored scores, beside labelling the texts.

A table of eight tasks is filled with scores as a model would put them out, drawn at random, and published. Then `mtop
label` is run with a bundle that differs in what decides its labels only: temperatures, thresholds, abstention, and a
rule between two tasks. It reads the scores, decides, writes the label files of the new decision, asks the gate, and
publishes; the time is that of the whole command, the start of Ray included. Memory is the peak of each kind of process,
as `memory.py` has it; on Linux.

    python benchmarks/decisions.py [--rows 1000000] [--work DIR] [--sample 400] [--name decisions]

The rate of labelling texts is measured in the same run, on `--sample` articles of about 110 words with the same bundle
(MiniLM, cut at 128 tokens, in the precision that `mtop label` chooses), with as many threads as there are cores, the
start not included.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from bundles import COLUMN, save_random_bundle
from memory import peaks_of
from results_file import write_result

from mtop_batch.decisions.rules import with_rules
from mtop_batch.labelling.plan.planner import plan_labels
from mtop_batch.labelling.plan.work import Unit
from mtop_batch.labelling.run.predictor import Predictor
from mtop_batch.model.bundle.bundle import load_bundle, save_bundle
from mtop_batch.model.bundle.files import read_bundle_info
from mtop_batch.table.definition import Definition
from mtop_batch.table.outputs import TaskOutputs, label_columns
from mtop_batch.table.publisher import publish
from mtop_batch.table.runs import new_run_id, write_run
from mtop_batch.table.store import write_label_file
from mtop_batch.tasks import Decision, Task

ROWS_PER_FILE = 100_000
WORDS_PER_ARTICLE = 110
WARM_UP_ARTICLES = 32
RULE = 'implies("task_0:yes", "task_1:yes")'


def main() -> None:
    """Measure and write `results/decisions.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--work", type=Path, help="where the corpus and the table lie; they are removed otherwise")
    parser.add_argument("--sample", type=int, default=400, help="articles to measure the rate of labelling on")
    parser.add_argument("--name", default="decisions")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mtop_decisions-") as name:
        root = arguments.work or Path(name)
        root.mkdir(parents=True, exist_ok=True)
        result = measure(root, arguments.rows, arguments.sample)
    print(json.dumps(result, indent=2))
    print(f"wrote {write_result(arguments.name, result)}")


def measure(root: Path, num_rows: int, sample: int) -> dict[str, Any]:
    """Fill a table, change the decisions, and label."""
    save_random_bundle(f"{root}/before")
    decide_otherwise(f"{root}/before", f"{root}/after")
    write_corpus(root / "corpus", num_rows)
    started = time.perf_counter()
    fill_table(root)
    print(f"{num_rows:,} rows of scores are stored, in {time.perf_counter() - started:.0f} s", flush=True)
    texts_per_s = labelling_rate(f"{root}/before", sample)
    places = ["--model", f"{root}/after", "--corpus", f"{root}/corpus", "--labels", f"{root}/labels"]
    # The labels are random, so half of them change: the gate would be right to keep them back.
    limits = ["--max-flips", "1", "--max-label-share-change", "1"]
    started = time.perf_counter()
    peaks = peaks_of([sys.executable, "-m", "mtop_batch.cli", "label", *places, *limits])
    seconds = time.perf_counter() - started
    report = json.loads(max((root / "labels" / "_runs").glob("*/report.json")).read_text())
    assert report["rows_from_scores"] == num_rows
    assert report["status"] == "done"
    return {
        "rows": num_rows,
        "tasks": len(report["tasks"]),
        "seconds": round(seconds, 1),
        "rows_per_s": round(num_rows / seconds),
        "run_seconds": report["seconds"],
        "stage_seconds": report["stage_seconds"],
        "corrected": report["corrected"],
        "abstained": report["abstained"],
        "peak_mb": {kind: round(size / 1e6) for kind, size in sorted(peaks.items())},
        "labelling_texts_per_s": round(texts_per_s, 1),
        "times_as_fast": round(num_rows / seconds / texts_per_s, 1),
    }


def decide_otherwise(before: str, after: str) -> None:
    """The same bundle with other decisions."""
    bundle = load_bundle(before)
    changes = [{"temperature": 1.4}, {"thresholds": (0.7,)}, {"temperature": 1.2, "abstain_below": 0.6}]
    tasks = [
        replace(task, decision=Decision(**changes[place % len(changes)]))  # type: ignore[arg-type]
        for place, task in enumerate(bundle.model.tasks)
    ]
    bundle.model.set_tasks(with_rules(tasks, [RULE]))
    save_bundle(
        after, bundle.model, bundle.tokenizer, metrics={}, training_config={}, backbone_name=bundle.backbone_name
    )


def write_corpus(path: Path, num_rows: int) -> None:
    """Articles that nobody reads: what is stored of them is drawn at random."""
    path.mkdir(exist_ok=True)
    for start in range(0, num_rows, ROWS_PER_FILE):
        numbers = pa.array(range(start, min(start + ROWS_PER_FILE, num_rows)))
        table = pa.table({"id": numbers, COLUMN: pa.array(["article"]).take(pa.array([0] * len(numbers)))})
        pq.write_table(table, path / f"{start:09d}.parquet")


def fill_table(root: Path) -> None:
    """Store and publish scores of all articles, as if the first bundle had labelled them."""
    info = read_bundle_info(f"{root}/before")
    wanted = Definition(info.name, info.uri, info.tasks, info.fingerprints, vector=info.vector_fingerprint)
    plan = plan_labels(f"{root}/corpus", f"{root}/labels", wanted)
    run = new_run_id()
    write_run(plan.labels, run, wanted, plan.corpus)
    rng = np.random.default_rng(0)
    for unit in plan.units:
        _store(plan.labels, unit, wanted, _drawn(info.tasks, unit.num_rows, rng), run)
    publish(plan.labels, wanted.view, wanted.kinds, plan.to_publish, run)


def _drawn(tasks: tuple[Task, ...], num_rows: int, rng: np.random.Generator) -> TaskOutputs:
    logits = rng.normal(scale=2, size=(len(tasks), num_rows))
    last = (1 / (1 + np.exp(-logits))).astype(np.float32)
    return TaskOutputs((last > 1 - last).astype(np.int32), np.maximum(last, 1 - last))


def _store(labels: str, unit: Unit, wanted: Definition, outputs: TaskOutputs, run: str) -> None:
    columns = dict(label_columns(wanted.tasks, outputs, np.ones(unit.num_rows, bool)))
    errors = pa.nulls(unit.num_rows, pa.string())
    ids = pa.array(range(*unit.rows))
    for target in unit.targets:
        write_label_file(labels, target.file, ids, columns, errors, unit.footer(target, wanted, run))


def labelling_rate(model: str, sample: int) -> float:
    """Texts per second of all tasks in one forward pass each."""
    predictor = Predictor.load(model)
    rng = np.random.default_rng(0)
    words = np.array("market team film vote bank goal star law shares cup actor court profit player song".split())
    texts = [" ".join(rng.choice(words, WORDS_PER_ARTICLE)) for _ in range(sample)]
    predictor.predict(texts[:WARM_UP_ARTICLES])
    started = time.perf_counter()
    predictor.predict(texts)
    return sample / (time.perf_counter() - started)


if __name__ == "__main__":
    main()
