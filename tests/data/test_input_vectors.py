from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mtop_batch.data.batches import pad_batch
from mtop_batch.data.examples import load_examples, tokenise_examples
from mtop_batch.data.input_vectors import InputVectors, given_vectors, read_vectors
from mtop_batch.data.labelled_tokens import LabelledTokens
from mtop_batch.data.tokens import TextTokenizer, Tokens
from mtop_batch.errors import DataError
from mtop_batch.tasks import Task, VectorInput
from tests.conftest import make_tokenizer

IMAGE = VectorInput("image", 3, tokens=2)
NAN = float("nan")


def rows_of(vectors: InputVectors) -> list[list[list[float]]]:
    return [vectors.take(np.array([row])).values.tolist() for row in range(len(vectors))]


@pytest.mark.parametrize(
    "column_type",
    [
        pa.list_(pa.float32()),
        pa.list_(pa.float64(), 3),
        pa.large_list(pa.float16()),
        pa.list_(pa.list_(pa.float32())),
        pa.list_(pa.list_(pa.float32(), 3)),
    ],
)
def test_a_vector_is_read_from_lists_of_all_types_and_null_is_none(column_type: pa.DataType) -> None:
    is_nested = pa.types.is_list(column_type) and not pa.types.is_floating(column_type.value_type)
    rows: list[Any] = [[1.0, 2.0, 3.0], None, [0.0, 0.5, -1.0]]
    column = pa.array([[row] if row and is_nested else row for row in rows], column_type)
    found, reasons = read_vectors(column, IMAGE)
    assert rows_of(found) == [[[1.0, 2.0, 3.0]], [], [[0.0, 0.5, -1.0]]]
    assert reasons.null_count == 3
    assert rows_of(read_vectors(column.slice(1), IMAGE)[0]) == [[], [[0.0, 0.5, -1.0]]]


def test_several_vectors_are_read_up_to_the_tokens_there_are() -> None:
    a, b, c = [1.0] * 3, [2.0] * 3, [3.0] * 3
    column = pa.array([[a, b, c], [], [None, c], None], pa.list_(pa.list_(pa.float32())))
    found, reasons = read_vectors(column, IMAGE)
    assert rows_of(found) == [[a, b], [], [c], []]
    assert reasons.null_count == 4


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ([1.0, 2.0], "input column 'image' has a vector of 2 floats, not 3"),
        ([], "has a vector of 0 floats"),
        ([1.0, NAN, 2.0], "input column 'image' has a value that is no finite number"),
        ([1.0, None, 2.0], "no finite number"),
        ([1.0, 1e300, 2.0], "no finite number"),
    ],
)
def test_a_vector_that_cannot_be_used_is_an_error_of_its_row(value: list[Any], reason: str) -> None:
    good = [1.0, 2.0, 3.0]
    found, reasons = read_vectors(pa.array([good, value, good], pa.list_(pa.float64())), IMAGE)
    assert reasons.to_pylist()[0] is None
    assert reason in reasons.to_pylist()[1]
    assert rows_of(found) == [[good], [], [good]]
    nested = pa.array([[good], [good, value]], pa.list_(pa.list_(pa.float64())))
    found, reasons = read_vectors(nested, IMAGE)
    assert reason in reasons.to_pylist()[1]
    assert rows_of(found) == [[good], []]


@pytest.mark.parametrize("column", [pa.array(["a", None]), pa.array([1.0, None]), pa.array([["a"], None])])
def test_a_column_of_another_type_is_an_error_of_each_row_that_has_a_value(column: pa.Array) -> None:
    found, reasons = read_vectors(column, IMAGE)
    assert f"input column 'image' has type {column.type}, not lists of 3 floats" in reasons.to_pylist()[0]
    assert reasons.to_pylist()[1] is None
    assert rows_of(found) == [[], []]


def test_vectors_survive_arrow_and_joining() -> None:
    first = read_vectors(pa.array([[[1.0] * 3, [2.0] * 3], None], pa.list_(pa.list_(pa.float32()))), IMAGE)[0]
    second = InputVectors.none(3, 2)
    joined = InputVectors.concat([first, second, first])
    table = pa.table({"v": pa.chunked_array([joined.to_arrow(), second.to_arrow()])})
    again = InputVectors.from_arrow(table["v"])
    assert rows_of(again) == [*rows_of(first), [], [], *rows_of(first), [], []]
    assert rows_of(InputVectors.from_arrow(pa.table({"v": second.to_arrow()})["v"])) == [[], []]


def test_vectors_stand_behind_their_rows_tokens() -> None:
    tokens = Tokens.from_rows([[5, 6, 7], [8], [9, 9]])
    image = InputVectors(np.arange(9, dtype=np.float32).reshape(3, 3), np.array([0, 0, 2, 3]))
    sound = InputVectors(np.ones((1, 2), np.float32), np.array([0, 0, 1, 1]))
    batch = pad_batch(tokens, np.arange(3), vectors=[image, sound])
    assert batch["input_ids"].tolist() == [[5, 6, 7, 0], [8, 0, 0, 0], [9, 9, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 1, 0]]
    assert batch["token_type_ids"].sum() == 0
    (images, at_images), (sounds, at_sounds) = batch["input_vectors"]
    assert images.tolist() == image.values.tolist()
    assert at_images.tolist() == [5, 6, 10]
    assert (sounds.tolist(), at_sounds.tolist()) == ([[1.0, 1.0]], [7])
    assert "input_vectors" not in pad_batch(tokens, np.arange(3), vectors=[InputVectors.none(3, 3)])


def test_examples_keep_their_vectors_and_each_window_has_those_of_its_text() -> None:
    vectors = InputVectors(np.arange(9, dtype=np.float32).reshape(3, 3), np.array([0, 1, 3]))
    tokens = Tokens.from_rows([[1] * 8, [2] * 3]).windows(4)
    examples = LabelledTokens(tokens, np.array([0, 1]), np.array([2, 1]), vectors=(vectors,))
    assert examples.lengths.tolist() == [10, 5]
    assert examples.window_lengths.tolist() == [5, 5, 5]
    (found,) = examples.vectors_of(np.array([2, 1]))
    assert rows_of(found) == [vectors.values[1:].tolist(), vectors.values[:1].tolist()]
    assert rows_of(examples.take(np.array([1])).vectors[0]) == [vectors.values[1:].tolist()]


def write(path: Path, **columns: Any) -> str:
    pq.write_table(pa.table(columns), path)
    return str(path)


def test_examples_with_bad_vectors_are_skipped_with_the_reason(tmp_path: Path) -> None:
    image = pa.array([[1.0, 2.0, 3.0], [1.0], None, [NAN, 0.0, 0.0]], pa.list_(pa.float32()))
    source = write(
        tmp_path / "a.parquet", text=["bank", "cup", "film", "law"], label=["no", "no", "yes", "yes"], image=image
    )
    raw = load_examples(Task("topic"), source, "label", inputs=[IMAGE])
    assert raw.texts == ["bank", "film"]
    assert rows_of(raw.vectors[0]) == [[[1.0, 2.0, 3.0]], []]
    assert [row for row, _ in raw.skipped] == [1, 3]
    examples = tokenise_examples(raw, TextTokenizer(make_tokenizer(), 12))
    assert rows_of(examples.vectors[0]) == [[[1.0, 2.0, 3.0]], []]


def test_examples_of_a_token_task_keep_their_vectors(tmp_path: Path) -> None:
    image = pa.array([[1.0, 2.0, 3.0], [1.0], [4.0, 5.0, 6.0]], pa.list_(pa.float32()))
    words, tags = [["bank", "wins"]] * 3, [["B-org", "O"]] * 3
    source = write(tmp_path / "a.parquet", words=words, tags=tags, image=image)
    raw = load_examples(Task("who", "token", ("org",), ("words",)), source, "tags", inputs=[IMAGE])
    assert len(raw) == 2
    assert rows_of(raw.vectors[0]) == [[[1.0, 2.0, 3.0]], [[4.0, 5.0, 6.0]]]
    assert raw.skipped == [(1, "input column 'image' has a vector of 1 floats, not 3")]


def test_columns_that_are_missing_or_of_another_type_are_refused(tmp_path: Path) -> None:
    source = write(tmp_path / "a.parquet", text=["bank", "cup"], label=["no", "yes"], image=["a", "b"])
    with pytest.raises(DataError, match=r"task 'topic': input column 'image' of .* has type string, not lists of 3"):
        load_examples(Task("topic"), source, "label", inputs=[IMAGE])
    with pytest.raises(DataError, match="no column 'imag'; did you mean 'image'"):
        load_examples(Task("topic"), source, "label", inputs=[VectorInput("imag", 3)])


def test_vectors_that_somebody_gives_may_be_lists_arrays_and_arrow() -> None:
    expected = [[[1.0, 0.0, 2.0]], []]
    for given in (
        [[1, 0, 2], None],
        [np.array([1.0, 0.0, 2.0]), None],
        pa.array([[1.0, 0.0, 2.0], None], pa.list_(pa.float32(), 3)),
        pa.chunked_array([pa.array([[1.0, 0.0, 2.0], None])]),
        [[[1.0, 0.0, 2.0]], []],
    ):
        (found,), reasons = given_vectors([IMAGE], {"image": given}, 2)
        assert rows_of(found) == expected
        assert reasons.null_count == 2
    (found,), _ = given_vectors([IMAGE], {"image": np.ones((2, 3))}, 2)
    assert rows_of(found) == [[[1.0] * 3]] * 2
    assert rows_of(given_vectors([IMAGE], None, 2)[0][0]) == [[], []]


def test_vectors_that_somebody_gives_must_fit() -> None:
    with pytest.raises(DataError, match="the model has no input 'imag'; did you mean 'image'"):
        given_vectors([IMAGE], {"imag": []}, 0)
    with pytest.raises(DataError, match="input 'image' has 1 rows, and there are 2 texts"):
        given_vectors([IMAGE], {"image": [[1.0, 2.0, 3.0]]}, 2)
    with pytest.raises(DataError, match="input 'image' holds no lists of 3 floats"):
        given_vectors([IMAGE], {"image": [[1.0, 2.0, 3.0], "a"]}, 2)
    assert "not lists" in given_vectors([IMAGE], {"image": ["a", None]}, 2)[1].to_pylist()[0]
