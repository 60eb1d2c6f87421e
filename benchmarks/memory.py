"""Does the memory of a labelling job grow with the corpus, with the size of a file, or with the number of tasks?

Labels corpora that are one Parquet file in one row group, the worst case, with a tiny encoder, and notes the peak of
every process's own memory (anonymous pages; what Ray's object store shares is apart), by kind of process:

* `driver`     the command
* `labelling`  actors with the model
* `storage`    workers that read and tokenise, or write
* `store`      Ray's object store: what it has of /dev/shm

Reads /proc, so it needs Linux.

    python benchmarks/memory.py [--rows 20000 100000] [--words 300] [--tasks 8 1000] [--name memory]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from shutil import disk_usage
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from bundles import BACKBONE, COLUMN
from results_file import write_result
from transformers import BertConfig, BertModel

from mtop_batch.model.bundle.bundle import save_bundle
from mtop_batch.model.encoder.backbone import load_tokenizer
from mtop_batch.model.kinds.mtop import MTOPModel
from mtop_batch.tasks import Task

NUM_GROUPS = 8
SAMPLES_EVERY_S = 0.1
SHARED_MEMORY = "/dev/shm"
ROWS_AT_ONCE = 10_000


def save_tiny_bundle(uri: str, num_tasks: int) -> None:
    """An encoder that costs next to nothing, and tasks in prompt groups."""
    tokenizer = load_tokenizer(BACKBONE)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=128,
    )
    tasks = [Task(f"task_{index}", text=(COLUMN,)) for index in range(num_tasks)]
    model = MTOPModel.from_backbone(
        BertModel(config, add_pooling_layer=False),
        tasks,
        prompt_attention="isolated",
        prompt_groups={task.name: str(index % NUM_GROUPS) for index, task in enumerate(tasks)},
    )
    save_bundle(uri, model, tokenizer, metrics={}, training_config={}, backbone_name="tiny")


def write_corpus(path: Path, num_rows: int, num_words: int) -> int:
    """One file, one row group; its bytes."""
    rng = np.random.default_rng(0)
    words = np.array(load_tokenizer(BACKBONE).convert_ids_to_tokens(list(range(2000, 12_000))))
    path.mkdir()
    parts = []
    for start in range(0, num_rows, ROWS_AT_ONCE):
        rows = range(start, min(start + ROWS_AT_ONCE, num_rows))
        texts = [" ".join(words[rng.integers(0, len(words), num_words)]) for _ in rows]
        parts.append(pa.table({"id": pa.array(rows), COLUMN: texts}))
    file = path / "articles.parquet"
    pq.write_table(pa.concat_tables(parts), file, row_group_size=num_rows)
    return file.stat().st_size


def processes_of(root: int) -> Iterator[tuple[str, dict[str, str]]]:
    """Title and status of a process and of all that descend from it."""
    found: dict[int, tuple[int, str, dict[str, str]]] = {}
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it may have ended
            title = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            status = dict(line.split(":\t", 1) for line in (path / "status").read_text().splitlines() if ":\t" in line)
            found[int(path.name)] = int(status["PPid"]), title, status
    family = {root}
    while more := {pid for pid, (parent, *_) in found.items() if parent in family} - family:
        family |= more
    for pid in family & set(found):
        yield found[pid][1:]


def own_memory(title: str, status: dict[str, str]) -> Iterator[tuple[str, int]]:
    """What kind of process it is, and bytes of memory."""
    own = int(status.get("RssAnon", "0 kB").split()[0]) * 1024
    if "_Labeller" in title:
        yield "labelling", own
    elif "ray::MapBatches" in title:
        yield "storage", own
    elif "mtop_batch.cli" in title:
        yield "driver", own


def peaks_of(command: list[str]) -> dict[str, int]:
    """The peak of each kind, over processes and time."""
    peaks: dict[str, int] = {}
    before = disk_usage(SHARED_MEMORY).used
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as run:
        while run.poll() is None:
            found = [item for title, status in processes_of(run.pid) for item in own_memory(title, status)]
            for kind, size in [*found, ("store", disk_usage(SHARED_MEMORY).used - before)]:
                peaks[kind] = max(peaks.get(kind, 0), size)
            time.sleep(SAMPLES_EVERY_S)
    if run.returncode:
        raise SystemExit(f"mtop label ended with {run.returncode}")
    return peaks


def measure(num_rows: int, num_words: int, num_tasks: int) -> dict[str, Any]:
    """One labelling job."""
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        save_tiny_bundle(f"{work}/model", num_tasks)
        file_bytes = write_corpus(work / "corpus", num_rows, num_words)
        places = ["--model", f"{work}/model", "--corpus", f"{work}/corpus", "--labels", f"{work}/labels"]
        peaks = peaks_of([sys.executable, "-m", "mtop_batch.cli", "label", *places])
        [report] = Path(f"{work}/labels").glob("_runs/*/report.json")
        written = json.loads(report.read_text())
    return {
        "rows": num_rows,
        "tasks": num_tasks,
        "file_mb": round(file_bytes / 1e6, 1),
        "seconds": written["seconds"],
        "peak_mb": {kind: round(size / 1e6) for kind, size in sorted(peaks.items())},
    }


def main() -> None:
    """Measure and write `results/memory.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[20_000, 100_000])
    parser.add_argument("--words", type=int, default=300)
    parser.add_argument("--tasks", type=int, nargs="+", default=[8, 1_000])
    parser.add_argument("--name", default="memory")
    arguments = parser.parse_args()
    found = []
    for num_tasks in arguments.tasks:
        for num_rows in arguments.rows:
            found.append(measure(num_rows, arguments.words, num_tasks))
            print(found[-1], flush=True)
    print(f"wrote {write_result(arguments.name, {'words': arguments.words, 'jobs': found})}")


if __name__ == "__main__":
    main()
