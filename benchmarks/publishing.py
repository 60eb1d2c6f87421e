"""What does publishing cost? Seconds and memory for a table of some rows and tasks, and for one more task on top.

Writes label files of random labels into a store, as `mtop label` would, and times `table.publisher.publish`
alone: of all tasks into a new table, of nothing new, of one task more, and back to an older bundle.

With `--storage s3` the table lies on a SeaweedFS that is started for it.

    PYTHONPATH=. python benchmarks/publishing.py [--rows 1000000] [--tasks 8] [--files 50] [--storage s3]
"""

from __future__ import annotations

import argparse
import os
import resource
import time
from collections.abc import Sequence

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


def measure(labels: str, num_rows: int, num_tasks: int, num_files: int) -> dict[str, dict[str, float]]:
    """Seconds and files of each publication."""
    sources = [SourceFile(f"part-{number:05d}.parquet", 1_000 + number, "v1") for number in range(num_files)]
    rows_of_a_file = num_rows // num_files
    tasks = [f"task_{number}" for number in range(num_tasks)]
    first, retrained = definition(tasks, "first"), definition(tasks, "retrained")
    added = definition([f"task_{num_tasks}"], "added")
    for wanted in (first, added, retrained):
        store(labels, wanted, sources, rows_of_a_file)
    steps = {
        "a new table": first,
        "nothing new": first,
        "one task more": added,
        "a retrained bundle": retrained,
        "back to the first bundle": first,
    }
    found: dict[str, dict[str, float]] = {}
    for name, wanted in steps.items():
        started = time.perf_counter()
        judge(preview(labels, wanted.view, wanted.kinds, sources), DEFAULT_RULES)
        judged = time.perf_counter()
        done = publish(labels, wanted.view, wanted.kinds, sources, name)
        seconds = {"seconds": round(time.perf_counter() - judged, 2), "gate_seconds": round(judged - started, 2)}
        found[name] = {**seconds, "files": len(done.files)}
        print(f"{name:26} {seconds['gate_seconds']:8.2f} s gate, {seconds['seconds']:8.2f} s, {len(done.files)} files")
    return found


def main() -> None:
    """Measure and write `results/publishing.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--tasks", type=int, default=8)
    parser.add_argument("--files", type=int, default=50)
    parser.add_argument("--storage", choices=("local", "s3"), default="local")
    parser.add_argument("--name", default="publishing", help="of the result file; with the storage behind it")
    arguments = parser.parse_args()
    with place(arguments.storage) as (root, environment):
        os.environ.update(environment)
        steps = measure(f"{root}/labels", arguments.rows, arguments.tasks, arguments.files)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    result = {"rows": arguments.rows, "tasks": arguments.tasks, "files": arguments.files, "steps": steps}
    print(f"wrote {write_result(f'{arguments.name}_{arguments.storage}', {**result, 'peak_memory_mb': round(peak)})}")


if __name__ == "__main__":
    main()
