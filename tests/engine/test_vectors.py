"""Document vectors and probes on a real local Ray: stored, and labels made of them without reading a text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from mtop_batch import Predictor, read_labels
from mtop_batch.engine import pipeline
from mtop_batch.engine.label import LabelOptions, label_corpus
from mtop_batch.errors import BundleError, ConfigError, LabelTableError, TaskError
from mtop_batch.model.bundle import load_bundle
from tests.engine.test_add_tasks import TEXTS, add, save_model, write_config
from tests.engine.test_label import table_files, write_articles

pytestmark = pytest.mark.usefixtures("ray_local")

TITLES = [text[:10] for text in TEXTS]


def label(model: str, root: Path, plan_only: bool = False, **options: Any) -> dict[str, Any]:
    return label_corpus(LabelOptions(model, f"{root}/corpus", f"{root}/labels", **options), plan_only=plan_only)


def vector_set(root: Path) -> Path:
    (found,) = (
        path
        for path in (root / "labels").iterdir()
        if not path.name.startswith("_") and "vector" in ds.dataset(path).schema.names
    )
    return found


def as_matrix(vectors: pa.ChunkedArray) -> np.ndarray[Any, Any]:
    return np.stack([np.asarray(vector, np.float32) for vector in vectors.to_pylist()])


@pytest.fixture
def with_probes(tmp_path: Path, task_tables: list[dict[str, Any]]) -> tuple[str, str]:
    """A bundle of two tasks, and what `add-tasks` makes of it with two probes; and a corpus of two files."""
    write_articles(f"{tmp_path}/corpus/date=2026-11-19/a.parquet", TEXTS[:7])
    write_articles(f"{tmp_path}/corpus/date=2026-11-20/b.parquet", TEXTS[7:], first_id=7)
    model = save_model(tmp_path / "m", "joint")
    add(model, write_config(tmp_path / "new.toml", task_tables, kind="probe"), tmp_path / "m2")
    return model, str(tmp_path / "m2")


def test_vectors_lie_in_a_label_set_of_their_own_and_labels_are_read_without_them(
    tmp_path: Path, with_probes: tuple[str, str]
) -> None:
    model, _ = with_probes
    report = label(model, tmp_path, vectors=True)
    assert (report["rows"], report["cells_done"], report["cells_from_vectors"]) == (12, 36, 0)
    assert len({name.split("/")[0] for name in table_files(tmp_path / "labels")}) == 2
    assert "vector" not in read_labels(f"{tmp_path}/labels").column_names
    table = read_labels(f"{tmp_path}/labels", [], vectors=True)
    assert table.column_names == ["id", "date", "vector", "error"]
    expected = Predictor.load(model, tasks=[], vectors=True).predict(TITLES, TEXTS)
    assert table.schema.field("vector").type == expected.schema.field("vector").type == pa.list_(pa.float16(), 32)
    np.testing.assert_allclose(as_matrix(table["vector"]), as_matrix(expected["vector"]), atol=1e-3)
    assert label(model, tmp_path, vectors=True)["cells_planned"] == 0


def test_only_vectors_are_computed_where_labels_are_current(tmp_path: Path, with_probes: tuple[str, str]) -> None:
    model, _ = with_probes
    label(model, tmp_path)
    files = table_files(tmp_path / "labels")
    plan = label(model, tmp_path, plan_only=True, vectors=True)
    assert plan["planned_per_task"] == {"politics": 0, "mood": 0, "_vector": 12}
    report = label(model, tmp_path, vectors=True)
    assert (report["cells_done"], report["cells_already_current"], report["label_counts"]) == (12, 24, {})
    now = table_files(tmp_path / "labels")
    assert {name: now[name] for name in files} == files


def test_other_readers_read_vectors(tmp_path: Path, with_probes: tuple[str, str]) -> None:
    label(with_probes[0], tmp_path, vectors=True)
    files = f"{vector_set(tmp_path)}/**/*.parquet"
    expected = as_matrix(read_labels(f"{tmp_path}/labels", vectors=True).sort_by("id")["vector"])
    by_duckdb = duckdb.sql(f"select vector from read_parquet('{files}') order by id").fetchall()
    by_polars = pl.scan_parquet(files).sort("id").collect()["vector"].to_list()
    by_pyarrow = ds.dataset(vector_set(tmp_path), partitioning="hive").to_table().sort_by("id")["vector"]
    for found in (np.array([row[0] for row in by_duckdb]), np.array(by_polars), as_matrix(by_pyarrow)):
        np.testing.assert_array_equal(found.astype(np.float32), expected)


def test_probes_are_backfilled_from_vectors_without_texts(
    tmp_path: Path, with_probes: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, model2 = with_probes
    label(model, tmp_path, vectors=True)
    monkeypatch.setattr(pipeline, "_from_texts", None)  # what reads texts and starts labelling actors
    before = table_files(tmp_path / "labels")
    plan = label(model2, tmp_path, plan_only=True)
    assert (plan["cells_planned"], plan["cells_from_vectors"], plan["units_from_vectors"]) == (24, 24, 2)
    report = label(model2, tmp_path)
    assert (report["cells_done"], report["cells_from_vectors"], report["num_tokens"]) == (24, 24, 0)
    now = table_files(tmp_path / "labels")
    assert {name: now[name] for name in before} == before
    expected = Predictor.load(model2).predict(TITLES, TEXTS)
    table = read_labels(f"{tmp_path}/labels").sort_by("id")
    for name in ("sport", "business"):
        assert table[f"{name}_label"].to_pylist() == expected[f"{name}_label"].to_pylist()
        np.testing.assert_allclose(table[f"{name}_score"], expected[f"{name}_score"], atol=1e-4)
    assert sum(report["label_counts"]["sport"].values()) == 12
    assert label(model2, tmp_path)["cells_planned"] == 0
