"""What does it cost to find out that nothing is to be done, and what do many units of work cost the driver?

Planning: corpora of small source files that are all labelled; then, each in a process of its own,

* `mtop label --plan`    lists both sides, reads every published file's footer, says that nothing is to be done
* `mtop label`           the same as a run, with its record and report

over growing numbers of files, and once more with ten times the articles in each. The label files are written and
published by the package itself, with made-up labels. With `--storage s3` everything lies on a SeaweedFS that is started
for it.

Units: `mtop label` with a tiny model over a corpus in which every file is a unit and a piece of work of its own
(`apart`), and once with small units put together, as the default is (`together`).

    python benchmarks/planning.py [--storage local] [--files 1000 5000 20000] [--rows 10]
    python benchmarks/planning.py --units [--files 1000 3000 10000]

`seconds` is wall-clock time with the start of Python and its libraries (the row of 10 files is little else), `cpu_s`
the processor time of the command and its children, `peak_mb` the most memory that the process itself had resident.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from results_file import write_result

ROOT = Path(__file__).parent.parent
NUM_TASKS = 8
MORE_ROWS = 10
STARTUP_FILES = 10


def build_bundle(uri: str) -> None:
    """A bundle of a tiny random model with eight tasks."""
    from mtop_batch import MTOPModel, Task
    from mtop_batch.model.bundle.bundle import save_bundle
    from tests.conftest import make_backbone, make_tokenizer

    tasks = [Task(f"task_{index}", text=("title", "body")) for index in range(NUM_TASKS)]
    model = MTOPModel.from_backbone(make_backbone(), tasks, prompt_attention="isolated", max_tokens=16)
    save_bundle(uri, model, make_tokenizer(), metrics={}, training_config={}, backbone_name="tiny")


def build_corpus(uri: str, num_files: int, num_rows: int) -> None:
    """Source files with the same short articles, a hundred in a partition."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from mtop_batch import storage

    numbers = range(num_rows)
    table = pa.table({"id": [f"article-{n}" for n in numbers], "title": ["team wins"] * num_rows})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    content = sink.getvalue()

    def write(index: int) -> None:
        storage.write_bytes(f"{uri}/day={index // 100:04d}/part-{index:06d}.parquet", content)

    for _ in storage.in_threads(write, range(num_files)):
        pass


def build_labels(model: str, corpus: str, labels: str) -> float:
    """Make every cell current with made-up labels; returns the seconds that planning from nothing took."""
    import pyarrow as pa

    from mtop_batch import storage
    from mtop_batch.labelling.plan.planner import plan_labels
    from mtop_batch.labelling.plan.work import Unit
    from mtop_batch.model.bundle.files import read_bundle_info
    from mtop_batch.table.columns import LABEL_TYPE
    from mtop_batch.table.definition import Definition
    from mtop_batch.table.publisher import publish
    from mtop_batch.table.runs import new_run_id, write_run
    from mtop_batch.table.store import write_label_file

    bundle = read_bundle_info(model)
    wanted = Definition(bundle.name, bundle.uri, bundle.tasks, bundle.fingerprints)
    started = time.perf_counter()
    plan = plan_labels(corpus, labels, wanted)
    seconds = time.perf_counter() - started
    run = new_run_id()
    write_run(labels, run, wanted, corpus)

    def write(unit: Unit) -> None:
        ids = pa.array([f"article-{n}" for n in range(unit.num_rows)])
        answers = pa.array(["yes", "no"] * unit.num_rows, pa.string())[: unit.num_rows].cast(LABEL_TYPE)
        scores = pa.array([0.75] * unit.num_rows, pa.float32())
        columns = {f"{task}_label": answers for task in unit.tasks} | {f"{task}_score": scores for task in unit.tasks}
        (target,) = unit.targets
        footer = unit.footer(target, wanted, run)
        write_label_file(labels, target.file, ids, columns, [None] * unit.num_rows, footer)

    for _ in storage.in_threads(write, plan.units):
        pass
    publish(labels, wanted.view, wanted.kinds, plan.to_publish, run)
    return seconds


def build(root: str, num_files: int, num_rows: int, with_labels: bool) -> dict[str, float]:
    """Bundle, corpus and, if wanted, labels below `root`."""
    build_bundle(f"{root}/model")
    build_corpus(f"{root}/corpus", num_files, num_rows)
    if not with_labels:
        return {}
    return {"first_plan_s": build_labels(f"{root}/model", f"{root}/corpus", f"{root}/labels")}


def built(root: str, num_files: int, num_rows: int, *, with_labels: bool) -> dict[str, float]:
    """The same in a process of its own, so that its memory is not measured."""
    arguments = ["--build", root, "--files", str(num_files), "--rows", str(num_rows)]
    command = [sys.executable, __file__, *arguments, *(["--units"] if not with_labels else [])]
    run = subprocess.run(command, env=environment(), stdout=subprocess.PIPE, text=True, check=True)
    values: dict[str, float] = json.loads(run.stdout.splitlines()[-1])
    return values


def environment() -> dict[str, str]:
    """The environment in which this checkout's package is the one that is imported."""
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def measure(root: str, *options: str) -> dict[str, float]:
    """`mtop label` over what lies below `root`: wall-clock and processor seconds, and the process's peak memory."""
    places = [f"--{name}={root}/{name}" for name in ("model", "corpus", "labels")]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "mtop_batch.cli", "label", *places, *options],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    peak = 0
    while process.poll() is None:
        peak = max(peak, _peak_kb(process.pid))
        time.sleep(0.05)
    seconds = time.perf_counter() - started
    output = process.communicate()[0]
    if process.returncode:
        raise RuntimeError(f"mtop label ended with code {process.returncode}:\n{output[-2000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": round(seconds, 2), "cpu_s": round(cpu_s, 2), "peak_mb": round(peak / 1024, 1)}


def _peak_kb(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0)


def measure_planning(root: str, files: Sequence[int], num_rows: int) -> list[dict[str, Any]]:
    """A row for each number of files and command."""
    rows: list[dict[str, Any]] = []
    cases = [(count, num_rows) for count in (STARTUP_FILES, *files)] + [(files[0], num_rows * MORE_ROWS)]
    for count, rows_per_file in cases:
        place = f"{root}/{count}x{rows_per_file}"
        first = built(place, count, rows_per_file, with_labels=True)
        for name, options in (("plan", ["--plan"]), ("run", [])):
            row = {"files": count, "articles": count * rows_per_file, "command": name, **measure(place, *options)}
            rows.append(row | ({key: round(value, 2) for key, value in first.items()} if name == "plan" else {}))
            print(json.dumps(rows[-1]), flush=True)
    return rows


def measure_units(root: str, files: Sequence[int], num_rows: int) -> list[dict[str, Any]]:
    """A row for each number of units, apart; one with the most of them together."""
    rows: list[dict[str, Any]] = []
    cases = [(count, "apart") for count in files] + [(files[-1], "together")]
    for count, pieces in cases:
        place = f"{root}/{count}-{pieces}"
        built(place, count, num_rows, with_labels=False)
        options = ["--unit-rows", str(num_rows)] if pieces == "apart" else []
        rows.append({"units": count, "pieces": pieces, "articles": count * num_rows, **measure(place, *options)})
        print(json.dumps(rows[-1]), flush=True)
    return rows


@contextmanager
def place(storage: str) -> Iterator[tuple[str, Mapping[str, str]]]:
    """An empty directory or bucket, and the variables that lead there; gone in the end."""
    with tempfile.TemporaryDirectory(prefix="planning-") as directory:
        if storage == "local":
            yield directory, {}
            return
        sys.path.insert(0, str(ROOT))
        from tests.s3 import s3_server

        with s3_server(Path(directory)) as server:
            yield f"s3://{server.bucket}", server.environment


def main() -> None:
    """Measure and write `results/planning_<storage>.json` or `results/units.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--storage", choices=("local", "s3"), default="local")
    parser.add_argument("--files", type=int, nargs="+")
    parser.add_argument("--rows", type=int, default=10, help="articles in each file")
    parser.add_argument("--units", action="store_true", help="measure a job of many units")
    parser.add_argument("--build", metavar="ROOT", help="only make what is measured, below this place")
    arguments = parser.parse_args()
    files = arguments.files or ([1000, 3000, 10_000] if arguments.units else [1000, 5000, 20_000])
    if arguments.build:
        print(json.dumps(build(arguments.build, files[0], arguments.rows, not arguments.units)))
        return
    with place(arguments.storage) as (root, variables):
        os.environ.update(variables)
        measured = (measure_units if arguments.units else measure_planning)(root, files, arguments.rows)
    name = "units" if arguments.units else f"planning_{arguments.storage}"
    print(f"wrote {write_result(name, {'rows_per_file': arguments.rows, 'tasks': NUM_TASKS, 'measured': measured})}")


if __name__ == "__main__":
    main()
