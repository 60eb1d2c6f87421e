"""What does publishing cost? Seconds and memory for a table of some rows and tasks, and for one more task on top.

Writes label files of random labels into a store, as `mtop label` would, and times `table.publisher.publish`
alone: of all tasks into a new table, of nothing new, of one task more, and back to an older bundle. With `--format
delta` or `iceberg` it times the commit to such a table behind each of these, and tells the most memory that the process
had meanwhile.

With `--storage s3` the tables lie on a SeaweedFS that is started for it; an Iceberg catalogue is a local SQLite file.

    PYTHONPATH=. python benchmarks/publishing.py [--rows 1000000] [--tasks 8] [--files 50] [--storage s3]
        [--format delta]
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
from planning import place
from results_file import write_result

from mtop_batch import storage
from mtop_batch.corpus.files import SourceFile
from mtop_batch.table.columns import LABEL_TYPE, OutputKind
from mtop_batch.table.definition import Definition
from mtop_batch.table.footer import LabelFooter
from mtop_batch.table.gate.preview import preview
from mtop_batch.table.gate.rules import DEFAULT_RULES, judge
from mtop_batch.table.lake import TableFormat
from mtop_batch.table.lake.sync import sync_lake
from mtop_batch.table.lake.target import LakeTarget, lake_target
from mtop_batch.table.names import label_path
from mtop_batch.table.publisher import publish
from mtop_batch.table.row_ranges import slice_rows
from mtop_batch.table.store import LabelFile, write_label_file
from mtop_batch.tasks import Task

COLUMNS = ("title", "body")


def definition(tasks: Sequence[str], bundle: str) -> Definition:
    """Yes-or-no tasks of a bundle."""
    records = tuple(Task(name, text=COLUMNS) for name in tasks)
    return Definition(bundle, bundle, records, {name: f"{bundle}-{name}" for name in tasks})


def store(labels: str, wanted: Definition, sources: Sequence[SourceFile], num_rows: int) -> None:
    """Label files of random labels."""
    rng = np.random.default_rng(0)
    names = pa.array(["no", "yes"])
    label_set = wanted.label_set_name(wanted.fingerprints)

    def write(item: tuple[SourceFile, tuple[int, int]]) -> None:
        source, rows = item
        size = rows[1] - rows[0]
        columns: dict[str, pa.Array] = {}
        for task in wanted.fingerprints:
            indices = pa.array(rng.integers(0, 2, size), pa.int32())
            columns[f"{task}_label"] = pa.DictionaryArray.from_arrays(indices, names).cast(LABEL_TYPE)
            columns[f"{task}_score"] = pa.array(rng.random(size), pa.float32())
        kinds = dict.fromkeys(wanted.fingerprints, OutputKind("classification"))
        footer = LabelFooter(
            source,
            num_rows,
            rows,
            wanted.fingerprints,
            kinds,
            dict.fromkeys(wanted.fingerprints, wanted.bundle_name),
            wanted.bundle_uri,
            COLUMNS,
            COLUMNS,
            "id",
            "run",
        )
        ids = pa.array([f"{source.path}-{row}" for row in range(*rows)])
        write_label_file(labels, LabelFile(label_set, label_path(source, rows)), ids, columns, [None] * size, footer)

    items = [(source, rows) for source in sources for rows in slice_rows([num_rows])]
    for _ in storage.in_threads(write, items):
        pass


def measure(
    labels: str, num_rows: int, num_tasks: int, num_files: int, lake: LakeTarget | None
) -> dict[str, dict[str, float]]:
    """Seconds and files of each publication, and of each commit to a lake table."""
    sources = [SourceFile(f"part-{number:05d}.parquet", 1_000 + number, "v1") for number in range(num_files)]
    rows_of_a_file = num_rows // num_files
    tasks = [f"task_{number}" for number in range(num_tasks)]
    first, retrained = definition(tasks, "first"), definition(tasks, "retrained")
    added = definition([f"task_{num_tasks}"], "added")
    for wanted in (first, added, retrained):
        store(labels, wanted, sources, rows_of_a_file)
    steps = {
        "a new table": (first, sources),
        "nothing new": (first, sources),
        "one task more": (added, sources),
        "one file changed": (retrained, sources[:1]),
        "a retrained bundle": (retrained, sources),
        "back to the first bundle": (first, sources),
    }
    found: dict[str, dict[str, float]] = {}
    for name, (wanted, of_step) in steps.items():
        started = time.perf_counter()
        judge(preview(labels, wanted.view, wanted.kinds, of_step), DEFAULT_RULES)
        judged = time.perf_counter()
        done = publish(labels, wanted.view, wanted.kinds, of_step, name)
        seconds = {"seconds": round(time.perf_counter() - judged, 2), "gate_seconds": round(judged - started, 2)}
        found[name] = {**seconds, "files": len(done.files)}
        print(f"{name:26} {seconds['gate_seconds']:8.2f} s gate, {seconds['seconds']:8.2f} s, {len(done.files)} files")
        if lake is not None:
            found[name] |= measure_commit(lake, labels, name)
    return found


def measure_commit(lake: LakeTarget, labels: str, name: str) -> dict[str, float]:
    """Seconds, rows and most memory of a commit."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    started = time.perf_counter()
    done = sync_lake(lake, labels, name)
    seconds = time.perf_counter() - started
    (peak,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    rows = 0 if done is None else done.rows
    print(f"{'':26} {seconds:8.2f} s commit, {rows:,} rows, {int(peak) / 1e3:,.0f} MB")
    return {"commit_seconds": round(seconds, 2), "commit_rows": rows, "commit_peak_memory_mb": round(int(peak) / 1e3)}


def main() -> None:
    """Measure and write `results/publishing.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--tasks", type=int, default=8)
    parser.add_argument("--files", type=int, default=50)
    parser.add_argument("--storage", choices=("local", "s3"), default="local")
    parser.add_argument("--name", default="publishing", help="of the result file; with the storage behind it")
    parser.add_argument(
        "--format", choices=get_args(TableFormat), default="parquet", help="also commit to such a table"
    )
    arguments = parser.parse_args()
    with place(arguments.storage) as (root, environment), tempfile.TemporaryDirectory() as directory:
        os.environ.update(environment)
        options = (
            (f"sqlite:///{directory}/catalog.db", "news.labels") if arguments.format == "iceberg" else (None, None)
        )
        lake = lake_target(arguments.format, f"{root}/labels", None, *options)
        steps = measure(f"{root}/labels", arguments.rows, arguments.tasks, arguments.files, lake)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    result: dict[str, Any] = {
        "rows": arguments.rows,
        "tasks": arguments.tasks,
        "files": arguments.files,
        "steps": steps,
    }
    result |= {"peak_memory_mb": round(peak), "load_average": os.getloadavg()}
    name = arguments.name if lake is None else f"{arguments.name}_{arguments.format}"
    print(f"wrote {write_result(f'{name}_{arguments.storage}', result)}")


if __name__ == "__main__":
    main()
