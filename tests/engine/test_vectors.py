"""Document vectors and probes on a real local Ray: stored, and labels made of them without reading a text."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pytest
from rich.console import Console

from mtop_batch import Predictor, read_labels
from mtop_batch.config.sections import Config
from mtop_batch.engine.add_tasks import drop_tasks
from mtop_batch.engine.evaluate import evaluate_bundle
from mtop_batch.engine.labelling import pipeline
from mtop_batch.engine.labelling.label import LabelOptions, label_corpus
from mtop_batch.engine.monitoring.progress import Progress
from mtop_batch.engine.train import train
from mtop_batch.errors import BundleError, ConfigError, LabelTableError
from mtop_batch.labelling.plan import staleness
from mtop_batch.model.bundle.bundle import load_bundle
from mtop_batch.table.row_ranges import slice_rows
from tests.engine.test_add_tasks import TEXTS, add, save_model, write_config
from tests.engine.test_label import files_of, write_articles

pytestmark = pytest.mark.usefixtures("ray_local")

TITLES = [text[:10] for text in TEXTS]


def label(model: str, root: Path, plan_only: bool = False, **options: Any) -> dict[str, Any]:
    options = {"text_columns": ("title", "body"), **options}
    return label_corpus(LabelOptions(model, f"{root}/corpus", f"{root}/labels", **options), plan_only=plan_only)


def vector_set(root: Path) -> Path:
    (found,) = (path for path in (root / "labels" / "_store").iterdir() if "vector" in ds.dataset(path).schema.names)
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
    assert len({name.split("/")[0] for name in files_of(tmp_path / "labels", "_store")}) == 2
    assert "vector" not in read_labels(f"{tmp_path}/labels").column_names
    table = read_labels(f"{tmp_path}/labels", [], vectors=True)
    assert table.column_names == ["id", "date", "vector", "error"]
    expected = Predictor.load(model, tasks=[], vectors=True).predict(TITLES, TEXTS)
    assert table.schema.field("vector").type == expected.schema.field("vector").type == pa.list_(pa.float16(), 32)
    np.testing.assert_allclose(as_matrix(table["vector"]), as_matrix(expected["vector"]), atol=1e-3)
    assert label(model, tmp_path, vectors=True)["cells_planned"] == 0


@pytest.mark.slow
def test_only_vectors_are_computed_where_labels_are_current(tmp_path: Path, with_probes: tuple[str, str]) -> None:
    model, _ = with_probes
    label(model, tmp_path)
    files = files_of(tmp_path / "labels", "_store")
    plan = label(model, tmp_path, plan_only=True, vectors=True)
    assert plan["planned_per_task"] == {"politics": 0, "mood": 0, "_vector": 12}
    report = label(model, tmp_path, vectors=True)
    assert (report["cells_done"], report["cells_already_current"], report["label_counts"]) == (12, 24, {})
    now = files_of(tmp_path / "labels", "_store")
    assert {name: now[name] for name in files} == files


def test_other_readers_read_vectors(tmp_path: Path, with_probes: tuple[str, str]) -> None:
    label(with_probes[0], tmp_path, vectors=True)
    files = f"{vector_set(tmp_path)}/**/*.parquet"
    expected = as_matrix(read_labels(f"{tmp_path}/labels", vectors=True).sort_by("id")["vector"])
    query = f"select vector from read_parquet('{files}') order by id"
    by_duckdb = duckdb.connect().execute(query).fetchall()
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
    before = files_of(tmp_path / "labels", "_store")
    plan = label(model2, tmp_path, plan_only=True)
    assert (plan["cells_planned"], plan["cells_from_vectors"], plan["units_from_vectors"]) == (24, 24, 2)
    report = label(model2, tmp_path)
    assert (report["cells_done"], report["cells_from_vectors"], report["num_tokens"]) == (24, 24, 0)
    now = files_of(tmp_path / "labels", "_store")
    assert {name: now[name] for name in before} == before
    expected = Predictor.load(model2).predict(TITLES, TEXTS)
    table = read_labels(f"{tmp_path}/labels").sort_by("id")
    for name in ("sport", "business"):
        assert table[f"{name}_label"].to_pylist() == expected[f"{name}_label"].to_pylist()
        np.testing.assert_allclose(table[f"{name}_score"], expected[f"{name}_score"], atol=1e-4)
    assert sum(report["label_counts"]["sport"].values()) == 12
    assert label(model2, tmp_path)["cells_planned"] == 0


def test_rows_without_text_keep_their_error_and_have_no_vector(tmp_path: Path, with_probes: tuple[str, str]) -> None:
    model, model2 = with_probes
    write_articles(f"{tmp_path}/corpus/date=2026-11-20/b.parquet", ["", *TEXTS[8:]], first_id=7)
    label(model, tmp_path, vectors=True)
    report = label(model2, tmp_path)
    assert (report["cells_from_vectors"], report["errors"], report["error_reasons"]) == (24, 1, {"text is empty": 1})
    table = read_labels(f"{tmp_path}/labels", ["sport"], vectors=True).sort_by("id")
    for name in ("sport_label", "sport_score", "vector", "error"):
        nulls = [row for row, value in enumerate(table[name].to_pylist()) if value is None]
        assert nulls == ([row for row in range(12) if row != 7] if name == "error" else [7])


@pytest.mark.slow
def test_texts_are_read_where_vectors_are_missing_or_of_older_content(
    tmp_path: Path, with_probes: tuple[str, str]
) -> None:
    model, model2 = with_probes
    label(model, tmp_path, vectors=True)
    write_articles(f"{tmp_path}/corpus/date=2026-11-20/b.parquet", TEXTS[8:], first_id=8)
    write_articles(f"{tmp_path}/corpus/date=2026-11-21/c.parquet", TEXTS[:3], first_id=12)
    plan = label(model2, tmp_path, plan_only=True)
    assert (plan["cells_planned"], plan["cells_from_vectors"]) == (14 + 2 * 7 + 2 * 7, 14)
    report = label(model2, tmp_path)
    assert (report["cells_done"], report["cells_from_vectors"], report["rows_from_vectors"]) == (42, 14, 7)
    table = read_labels(f"{tmp_path}/labels", ["sport"], vectors=True).sort_by("id")
    assert table["sport_label"].null_count == 0
    assert [vector is None for vector in table["vector"].to_pylist()] == [False] * 7 + [True] * 7


@pytest.mark.slow
def test_texts_are_read_for_the_slices_that_lack_vectors(
    tmp_path: Path, task_tables: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staleness, "slice_rows", partial(slice_rows, slice_rows=4))
    write_articles(f"{tmp_path}/corpus/a.parquet", TEXTS)
    model = save_model(tmp_path / "m")
    label(model, tmp_path, vectors=True)
    lost = sorted(vector_set(tmp_path).rglob("*.parquet"))[1]
    lost.unlink()
    add(model, write_config(tmp_path / "new.toml", task_tables[:1], kind="probe"), tmp_path / "m2")
    report = label(str(tmp_path / "m2"), tmp_path)
    assert (report["cells_done"], report["cells_from_vectors"], report["units_done"]) == (12, 8, 3)
    expected = Predictor.load(str(tmp_path / "m2")).predict(TITLES, TEXTS)
    assert read_labels(f"{tmp_path}/labels")["sport_label"].to_pylist() == expected["sport_label"].to_pylist()


@pytest.mark.slow
def test_vectors_of_another_definition_are_not_shown_beside_the_current_ones(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_articles(f"{tmp_path}/corpus/day={name}/x.parquet", TEXTS[:5])
    label(save_model(tmp_path / "m"), tmp_path, vectors=True)
    before = read_labels(f"{tmp_path}/labels", vectors=True)
    label(save_model(tmp_path / "other", seed=1), tmp_path, vectors=True)
    assert read_labels(f"{tmp_path}/labels", vectors=True)["vector"].null_count == 0
    joint = save_model(tmp_path / "joint", "joint", seed=1)
    label(joint, tmp_path, vectors=True, partitions=("day=b",))
    after = read_labels(f"{tmp_path}/labels", vectors=True, provenance=True)
    assert before["vector"].null_count == 0
    assert [vector is None for vector in after["vector"].to_pylist()] == [True] * 5 + [False] * 5
    assert after["_vector_bundle"].to_pylist() == [None] * 5 + ["joint"] * 5


def test_probes_and_prompts_are_learned_side_by_side_and_evaluated_alike(
    tmp_path: Path, task_tables: list[dict[str, Any]], backbone_dir: Path
) -> None:
    tables = [{**task_tables[0], "kind": "probe"}, task_tables[1]]
    result = add(save_model(tmp_path / "m"), write_config(tmp_path / "new.toml", tables), tmp_path / "m2")
    bundle = load_bundle(str(tmp_path / "m2"))
    assert [(task.name, task.kind, task.reads) for task in bundle.model.tasks[2:]] == [
        ("sport", "classification", "vector"),
        ("business", "classification", "prompts"),
    ]
    assert "| sport | classification | vector | no, yes | headline | " in (tmp_path / "m2" / "README.md").read_text()
    config = Config.model_validate({"output": "m2", "backbone": {"name": str(backbone_dir)}, "task": tables})
    for name, metrics in evaluate_bundle(str(tmp_path / "m2"), config).items():
        assert metrics == pytest.approx(result.added[name], abs=1e-5)
    write_articles(f"{tmp_path}/corpus/a.parquet", TEXTS)
    assert label(str(tmp_path / "m2"), tmp_path)["cells_done"] == 48
    expected = Predictor.load(str(tmp_path / "m2")).predict(TITLES, TEXTS)
    assert read_labels(f"{tmp_path}/labels")["sport_label"].to_pylist() == expected["sport_label"].to_pylist()


def test_a_probe_that_is_learned_anew_is_relabelled_from_vectors_and_can_be_dropped(
    tmp_path: Path, with_probes: tuple[str, str], task_tables: list[dict[str, Any]]
) -> None:
    _, model2 = with_probes
    label(model2, tmp_path, vectors=True)
    config = write_config(
        tmp_path / "again.toml", [{**task_tables[0], "kind": "probe", "train": task_tables[0]["eval"]}]
    )
    add(model2, config, tmp_path / "m3", replace=True)
    report = label(str(tmp_path / "m3"), tmp_path)
    assert (report["planned_reasons"], report["cells_from_vectors"]) == ({"task changed": 12}, 12)
    drop_tasks(str(tmp_path / "m3"), ["business"], str(tmp_path / "m4"))
    assert label(str(tmp_path / "m4"), tmp_path, vectors=True)["cells_planned"] == 0


def test_what_cannot_be_is_refused(
    tmp_path: Path, with_probes: tuple[str, str], task_tables: list[dict[str, Any]], backbone_dir: Path
) -> None:
    model, _ = with_probes
    tables = [{**task_tables[0], "kind": "probe"}]
    config = Config.model_validate({"output": "x", "backbone": {"name": str(backbone_dir)}, "task": tables})
    with Progress(Console(quiet=True)) as progress, pytest.raises(ConfigError, match=r"'sport'.*mtop add-tasks"):
        train(config, progress=progress)
    label(model, tmp_path)
    with pytest.raises(LabelTableError, match=r"no vectors in .*run `mtop label --vectors` first"):
        read_labels(f"{tmp_path}/labels", vectors=True)
    older = json.loads((tmp_path / "m" / "config.json").read_text())
    older["bundle"]["format"] = 1  # that of versions without document vectors
    (tmp_path / "m" / "config.json").write_text(json.dumps(older))
    for vectors in (True, False):
        with pytest.raises(BundleError, match=r"has format 1, this version reads 3; .*train again"):
            label(model, tmp_path, vectors=vectors)
