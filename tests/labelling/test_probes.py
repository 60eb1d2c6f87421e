"""Labels from stored vectors, and vectors as `read_labels` shows them; made-up vectors, no model but a probe."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from mtop_batch.errors import DamagedLabelFile, LabelTableError, TaskError
from mtop_batch.labelling.plan.planner import plan_labels
from mtop_batch.labelling.plan.work import Plan, Unit
from mtop_batch.labelling.run.probes import ProbePredictor, read_vectors
from mtop_batch.labelling.run.stages import pieces_of_work
from mtop_batch.table.definition import VECTOR, Definition
from mtop_batch.table.outputs import label_columns
from mtop_batch.table.read import iter_labels, read_labels
from mtop_batch.tasks import Task
from tests.labelling.support import articles, definition, label_corpus, small_slices, write_corpus

OLD = definition({"a": "1", VECTOR: "1"})
NEW = definition({"a": "1", "p": "1"})
TASKS = [Task("big", "probe"), Task("size", "probe", labels=("small", "middle", "large"))]


@pytest.fixture
def predictor() -> ProbePredictor:
    """ "big" is yes where x > 1; "size" is large above 2, small below 1."""
    big = [[0.0, 0.0], [1.0, 0.0]], [0.0, -1.0]
    size = [[-2.0, 0.0], [0.0, 0.0], [2.0, 0.0]], [2.0, 0.0, -4.0]
    return ProbePredictor(
        TASKS, [{"weight": np.array(w, np.float32), "bias": np.array(b, np.float32)} for w, b in (big, size)]
    )


def vectors(*values: list[float] | None) -> pa.ChunkedArray:
    chunks = [pa.array([value], pa.list_(pa.float16(), 2)) for value in values]
    return pa.chunked_array(chunks, pa.list_(pa.float16(), 2))


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Path]:
    """A corpus of two files, labelled in slices, with vectors of x = length of the text."""
    write_corpus(tmp_path / "corpus", {"x.parquet": articles(9), "d=1/y.parquet": articles(3, start=9)})
    with small_slices(4):
        label_corpus(tmp_path / "corpus", tmp_path / "labels", OLD)
        yield tmp_path


def plan(project: Path, wanted: Definition) -> Plan:
    return plan_labels(f"{project}/corpus", f"{project}/labels", wanted)


def unit_of(project: Path, wanted: Definition = NEW) -> Unit:
    return next(unit for unit in plan(project, wanted).units if unit.source.path == "x.parquet")


def test_vectors_get_the_labels_of_their_probes_and_nulls_get_none(predictor: ProbePredictor) -> None:
    outputs = predictor.predict(vectors([0.5, 0.0], None, [1.5, 3.0], [3.0, -1.0]))
    assert outputs.label_ids.tolist() == [[0, -1, 1, 1], [0, -1, 1, 2]]
    assert outputs.scores[0, 2] == pytest.approx(1 / (1 + np.exp(-0.5)))
    assert [bool(score != score) for score in outputs.scores[1]] == [False, True, False, False]


def test_some_probes_say_what_they_say_among_others(predictor: ProbePredictor) -> None:
    given = vectors([0.5, 0.0], [3.0, -1.0])
    alone = predictor.of(["size"])
    assert [task.name for task in alone.tasks] == ["size"]
    assert alone.predict(given).scores[0].tolist() == predictor.predict(given).scores[1].tolist()


def test_a_regression_gives_its_value_and_no_label() -> None:
    tasks = [TASKS[0], Task("length", "regression", labels=(), reads="vector")]
    big = {"weight": np.eye(2, dtype=np.float32), "bias": np.zeros(2, np.float32)}
    length = {"weight": np.array([[2, 1]], np.float32), "bias": np.array([-5], np.float32)}
    outputs = ProbePredictor(tasks, [big, length]).predict(vectors([1.0, 3.0], None, [0.5, 0.0]))
    assert outputs.label_ids.tolist() == [[1, -1, 0], [-1, -1, -1]]
    assert outputs.scores[1].tolist() == pytest.approx([0.0, np.nan, -4.0], nan_ok=True)
    tasks[1] = replace(tasks[1], mean=7000.0, std=1000.0)
    scaled = ProbePredictor(tasks, [big, length]).predict(vectors([1.0, 3.0], None, [0.5, 0.0]))
    assert scaled.scores[1].tolist() == pytest.approx([7000.0, np.nan, 3000.0], nan_ok=True)
    assert scaled.scores[0].tolist() == pytest.approx(outputs.scores[0].tolist(), nan_ok=True)


def test_probabilities_of_all_labels_are_kept_where_they_are_wanted() -> None:
    topics = Task("topics", "multi-label", labels=("a", "b", "c"), reads="vector")
    size = replace(TASKS[1], scores="all")
    weights = [np.array(w, np.float32) for w in ([[1, 0], [0, 1], [-90, -90]], [[1, 0], [0, 1], [0, 0]])]
    bias = np.array([0, -1, 0], np.float32)
    probes = [{"weight": weight, "bias": bias} for weight in weights]
    outputs = ProbePredictor([TASKS[0], topics, size], [{"weight": weights[0][:2], "bias": bias[:2]}, *probes]).predict(
        vectors([1.0, 3.0], None, [0.0, -2.0])
    )
    logits = np.array([[1, 2, -360], [0, -3, 180]])
    assert outputs.label_ids[1].tolist() == [-1, -1, -1]
    assert set(outputs.probabilities) == {"topics", "size"}
    np.testing.assert_allclose(outputs.probabilities["topics"][:, [0, 2]].T, 1 / (1 + np.exp(-logits)), atol=1e-6)
    assert np.isnan(outputs.probabilities["topics"][:, 1]).all()
    size_logits = np.array([[1, 2, 0], [0, -3, 0]])
    expected = np.exp(size_logits) / np.exp(size_logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(outputs.probabilities["size"][:, [0, 2]].T, expected, rtol=1e-5)
    columns = dict(label_columns([TASKS[0], topics, size], outputs, np.array([True, True, True])))
    assert columns["topics_label"].to_pylist() == [["a", "b"], None, ["a", "c"]]
    assert columns["size_label"].to_pylist() == ["middle", None, "small"]


def test_nothing_but_nulls_or_nothing_at_all_is_no_trouble(predictor: ProbePredictor) -> None:
    assert predictor.predict(vectors(None, None)).label_ids.tolist() == [[-1, -1], [-1, -1]]
    assert predictor.predict(vectors()).label_ids.shape == (2, 0)


def test_the_vectors_of_a_slice_are_those_of_its_rows(project: Path) -> None:
    units = [unit for unit in plan(project, NEW).units if unit.source.path == "x.parquet"]
    assert [unit.rows for unit in units] == [(0, 3), (3, 6), (6, 9)]
    table = read_vectors(f"{project}/labels", units[1])
    assert table["id"].to_pylist() == ["a3", "a4", "a5"]
    assert table["vector"].to_pylist() == [[len("title 0"), 1.0]] * 3
    assert table["error"].null_count == 3


def test_vectors_of_content_that_is_replaced_meanwhile_stay_what_they_were(project: Path) -> None:
    unit = unit_of(project)
    write_corpus(project / "corpus", {"x.parquet": articles(9, start=50)})
    label_corpus(project / "corpus", project / "labels", OLD)
    assert read_vectors(f"{project}/labels", unit)["id"].to_pylist() == ["a0", "a1", "a2"]


def test_vectors_that_are_gone_or_damaged_are_an_error(project: Path) -> None:
    unit = unit_of(project)
    assert unit.vectors is not None
    path = Path(unit.vectors.uri(f"{project}/labels"))
    path.write_bytes(b"PAR1")
    with pytest.raises(DamagedLabelFile, match="is not a label table's file"):
        read_vectors(f"{project}/labels", unit)
    path.unlink()
    with pytest.raises(LabelTableError, match="was removed while it was read"):
        read_vectors(f"{project}/labels", unit)


def test_only_units_of_nothing_but_probes_are_computed_from_vectors(project: Path) -> None:
    assert plan(project, NEW).cells_from("vectors") == 12
    assert plan(project, definition({"a": "2", "p": "1"})).cells_from("vectors") == 0
    assert plan(project, definition({"a": "1", "p": "1", VECTOR: "1"})).cells_from("vectors") == 12
    assert plan(project, definition({"p": "1", VECTOR: "2"})).cells_from("vectors") == 0
    assert plan(project, definition({"p": "1"}, vector="")).cells_from("vectors") == 0
    assert plan(project, definition({"p": "1"}, text_columns=("title",))).cells_from("vectors") == 0


def test_pieces_of_work_are_from_texts_or_from_vectors(project: Path) -> None:
    write_corpus(project / "corpus", {"d=2/z.parquet": articles(2)})
    label_corpus(project / "corpus", project / "labels", definition({"a": "1"}))
    pieces = pieces_of_work(plan(project, NEW).units, max_rows=100)
    assert [(len(piece), bool(piece[0].vectors)) for piece in pieces] == [(4, True), (1, False)]


def test_labels_are_read_without_vectors_unless_these_are_wanted(project: Path) -> None:
    labels = f"{project}/labels"
    assert read_labels(labels).column_names == ["id", "d", "a_label", "a_score", "error"]
    assert read_labels(labels, [], vectors=True).column_names == ["id", "d", "vector", "error"]
    streamed = pa.concat_tables(iter_labels(labels, vectors=True))
    assert streamed.select(["id", "vector"]).equals(read_labels(labels, vectors=True).select(["id", "vector"]))
    with pytest.raises(TaskError, match="there is no task '_vector'"):
        read_labels(labels, [VECTOR])


def test_vectors_of_another_definition_are_left_out(project: Path) -> None:
    label_corpus(project / "corpus", project / "labels", definition({"a": "1", VECTOR: "2"}), ["d=1"])
    table = read_labels(f"{project}/labels", vectors=True)
    assert table["vector"].is_valid().to_pylist() == [True] * 3 + [False] * 9
    assert table["a_label"].null_count == 0
    elsewhere = read_labels(f"{project}/labels", partition={"d": "0"}, allow_empty=True, vectors=True)
    assert elsewhere["vector"].null_count == len(elsewhere)


def test_vectors_of_a_part_of_a_source_are_not_shown(project: Path) -> None:
    for path in (project / "labels" / "_store" / OLD.label_set_name([VECTOR])).rglob("x.parquet@/*-000000003-*"):
        path.unlink()
    table = read_labels(f"{project}/labels", vectors=True)
    assert table["vector"].is_valid().to_pylist() == [True] * 3 + [False] * 9


def test_a_table_without_vectors_says_how_to_get_them(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus", {"x.parquet": articles(3)})
    label_corpus(tmp_path / "corpus", tmp_path / "labels", definition({"a": "1"}))
    with pytest.raises(LabelTableError, match=r"there are no vectors in .*mtop label --vectors"):
        read_labels(f"{tmp_path}/labels", vectors=True)
