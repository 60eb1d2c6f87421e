"""The label columns of multi-label tasks: every type that holds lists of labels, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mtop_batch.data.examples import load_examples, load_train_and_eval, tokenise_examples
from mtop_batch.data.raw_examples import RawExamples
from mtop_batch.data.tokens import TextTokenizer
from mtop_batch.errors import DataError
from mtop_batch.tasks import LabelBy, Task
from tests.conftest import make_tokenizer

TOPICS = Task("topics", "multi-label", labels=("sport", "film", "money"), text=("headline",))
LISTS = [["film", "sport"], [], ["money"], None]
EXPECTED = [[True, True, False], [False, False, False], [False, False, True]]
INDICES = [[1, 0], [], [2], None]


def write(path: Path, labels: pa.Array) -> str:
    pq.write_table(pa.table({"headline": ["bank"] * len(labels), "label": labels}), path)
    return str(path)


def load(tmp_path: Path, labels: Any, label_by: LabelBy | None = None) -> RawExamples:
    source = write(tmp_path / "data.parquet", labels if isinstance(labels, pa.Array) else pa.array(labels))
    return load_examples(TOPICS, source, "label", training=False, label_by=label_by)


@pytest.mark.parametrize(
    "labels",
    [
        pa.array(LISTS, pa.list_(pa.string())),
        pa.array(LISTS, pa.large_list(pa.large_string())),
        pa.array(LISTS, pa.list_(pa.dictionary(pa.int32(), pa.string()))),
        pa.array(INDICES, pa.list_(pa.int64())),
        pa.array(INDICES, pa.large_list(pa.uint8())),
        pa.array(INDICES, pa.list_(pa.float64())),
    ],
    ids=lambda labels: str(labels.type),
)
def test_lists_of_any_type_are_sets_of_labels_and_null_is_no_example(tmp_path: Path, labels: pa.Array) -> None:
    raw = load(tmp_path, labels)
    assert raw.labels.tolist() == EXPECTED
    assert raw.labels.dtype == np.bool_
    assert raw.skipped == [(3, "label is null")]


def test_lists_of_a_fixed_size_are_lists_too(tmp_path: Path) -> None:
    pairs = pa.array([["film", "sport"], None, ["money", "film"]], pa.list_(pa.string(), 2))
    assert load(tmp_path, pairs).labels.tolist() == [[True, True, False], [False, True, True]]


@pytest.mark.parametrize(
    "labels", [pa.array(["film", None]), pa.array(["film", None]).dictionary_encode(), pa.array([1, None])]
)
def test_a_label_without_a_list_is_one_label(tmp_path: Path, labels: pa.Array) -> None:
    raw = load(tmp_path, labels)
    assert (raw.labels.tolist(), raw.skipped) == ([[False, True, False]], [(1, "label is null")])


def test_a_label_that_stands_twice_in_a_list_counts_once(tmp_path: Path) -> None:
    assert load(tmp_path, [["film", "film"], ["film", "sport", "film"]]).labels.sum(axis=1).tolist() == [1, 2]


def test_files_may_have_lists_and_single_labels(tmp_path: Path) -> None:
    train = write(tmp_path / "train.parquet", pa.array([["sport", "film"], ["money"]]))
    evaluation = write(tmp_path / "eval.parquet", pa.array(["film", None, "sport"]))
    both = load_train_and_eval(TOPICS, train, evaluation, "label")
    assert [raw.labels.sum() for raw in both] == [3, 2]
    assert both[1].skipped == [(1, "label is null")]


def lists_with_names(names: list[str], lists: list[list[int]]) -> datasets.Dataset:
    feature = datasets.List(datasets.ClassLabel(names=names))
    features = datasets.Features({"headline": datasets.Value("string"), "label": feature})
    return datasets.Dataset.from_dict({"headline": ["bank"] * len(lists), "label": lists}, features=features)


@pytest.mark.parametrize("from_hub", [False, True])
def test_whole_numbers_in_lists_are_read_by_the_names_of_a_data_set(tmp_path: Path, from_hub: bool) -> None:
    found = lists_with_names(["money", "sport", "film"], [[0, 1], [], [2]])
    if from_hub:
        (tmp_path / "set").mkdir()
        found.to_parquet(tmp_path / "set" / "train.parquet")
        source = f"hub:{tmp_path}/set?split=train"
    else:
        source = str(tmp_path / "data.parquet")
        found.to_parquet(source)
    raw = load_examples(TOPICS, source, "label", training=False)
    assert raw.labels.tolist() == [[True, False, True], [False, False, False], [False, True, False]]


def test_names_noted_by_older_versions_of_data_sets_are_read_too(tmp_path: Path) -> None:
    names = '{"names": ["money", "sport", "film"], "_type": "ClassLabel"}'
    for noted in (f"[{names}]", f'{{"feature": {names}, "length": -1, "_type": "Sequence"}}'):
        table = pa.table({"headline": ["bank"], "label": pa.array([[2]])})
        features = f'{{"info": {{"features": {{"label": {noted}}}}}}}'
        pq.write_table(table.replace_schema_metadata({"huggingface": features}), tmp_path / "data.parquet")
        raw = load_examples(TOPICS, str(tmp_path / "data.parquet"), "label", training=False)
        assert raw.labels.tolist() == [[False, True, False]]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([["film"], ["sport", None], [None]], r"row 1: null stands among the labels \(and those of 1 more rows\)"),
        ([[1, 0], [float("nan")]], "row 1: null stands among the labels"),
        ([["film"], ["sport", "art"], ["art"]], r"row 1: label 'art' \(and those of 1 more rows\) cannot be used"),
        ([[0, 3]], r"row 0: label 3 cannot be used; allowed: .*indices 0 to 2"),
        ([[["film"]]], "has type list<.*; allowed are strings, .*, and lists of these"),
        ([[{"name": "film"}]], "allowed are strings, integers, booleans and floats, and lists of these"),
    ],
)
def test_lists_with_anything_else_are_refused(tmp_path: Path, labels: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=f"task 'topics': .*{message}"):
        load(tmp_path, labels)


def test_lists_are_refused_where_a_text_has_one_label(tmp_path: Path) -> None:
    source = write(tmp_path / "data.parquet", pa.array([["film"]]))
    single = Task("topic", labels=("film", "sport"), text=("headline",))
    with pytest.raises(DataError, match='a task with lists of labels has kind = "multi-label"'):
        load_examples(single, source, "label", training=False)


def test_a_label_without_an_example_cannot_be_learned(tmp_path: Path) -> None:
    source = write(tmp_path / "data.parquet", pa.array([["film"], [], ["sport"]]))
    with pytest.raises(DataError, match="has no example of 'money', so the task cannot be learned"):
        load_examples(TOPICS, source, "label")
    assert len(load_examples(TOPICS, source, "label", training=False)) == 3


def test_texts_without_labels_are_examples(tmp_path: Path) -> None:
    raw = load(tmp_path, [["film"], [], []])
    assert tokenise_examples(raw, TextTokenizer(make_tokenizer(), 16)).labels.shape == (3, 3)
