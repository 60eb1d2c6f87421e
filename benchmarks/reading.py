"""What does it take to read one task of a published table with many? Seconds and bytes, by DuckDB and by Arrow.

Publishes random labels of yes-or-no tasks, and counts the labels of one of them. `bytes_mb` is what DuckDB read for it,
by the process's own count; `footers_mb` is what the files' footers take of that, which every reader reads, whatever it
asks for; `column_mb` the column itself. Seconds are the median of the rounds, with the files in the page cache.

    PYTHONPATH=. python benchmarks/reading.py [--tasks 8 1000] [--rows 50000] [--files 5 50] [--rounds 5]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from publishing import definition, store
from results_file import write_result

from mtop_batch.corpus.files import SourceFile
from mtop_batch.table.publisher import publish

TASK = "task_3"


def measure(num_tasks: int, num_files: int, num_rows: int, num_rounds: int) -> dict[str, Any]:
    """What a table is, and what one task of it takes to read."""
    with tempfile.TemporaryDirectory(prefix="reading-") as labels:
        sources = [SourceFile(f"part-{number:05d}.parquet", 1_000 + number, "v1") for number in range(num_files)]
        wanted = definition([f"task_{number}" for number in range(num_tasks)], "first")
        store(labels, wanted, sources, num_rows // num_files)
        publish(labels, wanted.view, wanted.kinds, sources, "run")
        files = sorted(Path(labels, "current").rglob("*.parquet"))
        footers, column = zip(*map(_sizes, files), strict=True)
        by_duckdb = _timed(lambda: _count_by_duckdb(labels), num_rounds)
        by_arrow = _timed(lambda: _count_by_arrow(labels), num_rounds)
        return {
            "tasks": num_tasks,
            "files": num_files,
            "rows": num_rows,
            "table_mb": round(sum(path.stat().st_size for path in files) / 1e6, 2),
            "footers_mb": round(sum(footers) / 1e6, 3),
            "column_mb": round(sum(column) / 1e6, 3),
            "bytes_mb": round(by_duckdb[1] / 1e6, 3),
            "duckdb_s": round(by_duckdb[0], 4),
            "arrow_s": round(by_arrow[0], 4),
        }


def _sizes(path: Path) -> tuple[int, int]:
    """Bytes of a file's footer, and of the column that is read."""
    metadata = pq.read_metadata(path)
    place = metadata.schema.to_arrow_schema().names.index(f"{TASK}_label")
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    return metadata.serialized_size, sum(group.column(place).total_compressed_size for group in groups)


def _count_by_duckdb(labels: str) -> list[Any]:
    query = f"select {TASK}_label, count(*) from read_parquet('{labels}/current/**/*.parquet') group by all order by 1"
    with duckdb.connect() as connection:
        return connection.execute(query).fetchall()


def _count_by_arrow(labels: str) -> list[Any]:
    column = ds.dataset(f"{labels}/current", format="parquet").to_table([f"{TASK}_label"])[f"{TASK}_label"]
    return pc.value_counts(column.cast(pa.string())).to_pylist()  # type: ignore[no-any-return]


def _timed(read: Callable[[], object], num_rounds: int) -> tuple[float, int]:
    """Median seconds, and the bytes that were read each time."""
    seconds, num_bytes = [], 0
    for _ in range(num_rounds + 1):  # the first is to warm up
        before, started = _bytes_read(), time.perf_counter()
        read()
        seconds.append(time.perf_counter() - started)
        num_bytes = _bytes_read() - before
    return statistics.median(seconds[1:]), num_bytes


def _bytes_read() -> int:
    (line,) = [line for line in Path("/proc/self/io").read_text().splitlines() if line.startswith("rchar")]
    return int(line.split()[1])


def main() -> None:
    """Measure and write `results/reading.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", type=int, default=[8, 1000])
    parser.add_argument("--files", nargs="+", type=int, default=[5, 50])
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--name", default="reading", help="of the result file")
    arguments = parser.parse_args()
    results = []
    for num_files in arguments.files:
        for num_tasks in arguments.tasks:
            results.append(measure(num_tasks, num_files, arguments.rows, arguments.rounds))
            print(results[-1])
    print(f"wrote {write_result(arguments.name, results)}")


if __name__ == "__main__":
    main()
