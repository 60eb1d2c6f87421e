"""The builder of the GLUE tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mtop_batch.config.load import load_tasks
from mtop_batch.data.sets.glue import build_glue
from mtop_batch.data.sets.parts import joined, words
from mtop_batch.errors import DataError


def write(root: Path, name: str, count: int, labels: list[Any], pair: bool = True) -> list[dict[str, Any]]:
    """A file of so many examples; the sentences say which file they are of."""
    rows = [
        {
            "sentence1": f"{name} {number} first",
            "sentence2": f"{name} {number} second" if pair else None,
            "label": labels[number % len(labels)],
        }
        for number in range(count)
    ]
    write_rows(root, name, rows)
    return rows


def write_rows(root: Path, name: str, rows: list[dict[str, Any]]) -> None:
    kind = pa.float32() if any(isinstance(row["label"], float) for row in rows) else pa.int32()
    schema = pa.schema([("sentence1", pa.string()), ("sentence2", pa.string()), ("label", kind)])
    path = root / f"{name}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema), path)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    root = tmp_path / "source"
    write(root, "cola/train", 60, [0, 1], pair=False)
    write(root, "cola/dev", 10, [0, 1], pair=False)
    write(root, "rte/train", 60, [0, 1])
    write(root, "rte/dev", 10, [0, 1])
    write(root, "stsb/train", 60, [0.0, 2.5, 5.0])
    write(root, "stsb/dev", 10, [1.5])
    return root


def read(output: Path, task: str, part: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(output / task / f"{part}.parquet").to_pylist()
    return rows


def test_development_sets_are_the_test_parts_and_training_sets_are_cut_in_two(source: Path, tmp_path: Path) -> None:
    counts, notes = build_glue(str(source), str(tmp_path / "glue"))
    assert list(counts) == ["cola", "rte", "stsb"]
    for task, parts in counts.items():
        assert parts["test"] == 10
        assert parts["train"] + parts["eval"] == 60
        assert all("dev" in row["sentence1"] for row in read(tmp_path / "glue", task, "test"))
    assert notes["QQP"] == "missing: there is no qqp/train.parquet"
    assert {row["label"] for row in read(tmp_path / "glue", "rte", "train")} == {"entailment", "not_entailment"}
    tasks = {task.name: task for task in load_tasks(tmp_path / "glue/tasks.toml")}
    assert (tasks["cola"].metric, tasks["cola"].text) == ("matthews", ("sentence1",))
    assert (tasks["stsb"].metric, tasks["stsb"].kind, tasks["rte"].text[1]) == ("spearman", "regression", "sentence2")


def test_a_text_of_a_test_part_is_in_no_other_part_of_any_task(source: Path, tmp_path: Path) -> None:
    shared = {"sentence1": "RTE/dev 3 FIRST!", "sentence2": "rte/dev 3 second"}
    rows = [{**row, "label": 1} for row in pq.read_table(source / "rte/train.parquet").to_pylist()[1::2]]
    write_rows(source, "rte/train", [*rows, {**shared, "label": 0}, {"sentence1": "x", "sentence2": "y", "label": 0}])
    values = [{**row, "label": 1.0} for row in pq.read_table(source / "stsb/train.parquet").to_pylist()]
    write_rows(source, "stsb/train", [*values, {**shared, "label": 5.0}])
    counts, _ = build_glue(str(source), str(tmp_path / "glue"))
    for task in counts:
        for part in ("train", "eval"):
            rows = read(tmp_path / "glue", task, part)
            found = {words(joined([row.get("sentence1"), row.get("sentence2")])) for row in rows}
            assert words("rte/dev 3 first rte/dev 3 second") not in found


def test_what_stands_in_for_a_missing_training_set_has_a_name_of_its_own(source: Path, tmp_path: Path) -> None:
    write(source, "qnli/dev", 80, [0, 1])
    write(source, "nli_extra/snli_dev", 40, [0, 1, 2, -1])
    write(source, "nli_extra/snli_test", 40, [0, 1, 2])
    for name in ("mnli/dev_matched_1000", "mnli/dev_mismatched_1000"):
        write(source, name, 10, [0, 1, 2])
    counts, notes = build_glue(str(source), str(tmp_path / "glue"))
    assert counts["snli_to_mnli"]["test"] == 20
    assert sum(counts["snli_to_mnli"].values()) == 90  # without the ten on which nobody agreed
    assert notes["MNLI"].startswith("snli_to_mnli stands in: learns from")
    parts = [read(tmp_path / "glue", "qnli_of_dev", part) for part in ("train", "eval", "test")]
    texts = [row["sentence1"] for rows in parts for row in rows]
    assert len(texts) == len(set(texts)) == 80
    write(source, "qnli/train", 60, [0, 1])
    assert "qnli" in build_glue(str(source), str(tmp_path / "again"))[0]


def test_what_is_no_glue_is_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has the files of no GLUE task, such as cola/train\.parquet"):
        build_glue(str(tmp_path / "nothing"), str(tmp_path / "glue"))
    write(source, "rte/train", 60, [0, 7])
    with pytest.raises(DataError, match=r"rte/train\.parquet: its labels are not integers from 0 to 1"):
        build_glue(str(source), str(tmp_path / "glue"))
    pq.write_table(pa.table({"sentence1": ["a"], "target": [1]}), source / "rte/train.parquet")
    with pytest.raises(DataError, match=r"rte/train\.parquet has no column 'sentence2'"):
        build_glue(str(source), str(tmp_path / "glue"))
    assert not (tmp_path / "glue").exists()
