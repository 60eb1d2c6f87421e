"""Training data of token tasks: words with tags and texts with spans, and what is refused of them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import BertTokenizer

from mtop_batch.data.examples import load_examples, load_train_and_eval, tokenise_examples
from mtop_batch.data.raw_examples import RawExamples
from mtop_batch.data.tokens import TextTokenizer
from mtop_batch.errors import DataError
from mtop_batch.tasks import NO_TAG, Task

NAMES = Task("names", "token", ("PER", "LOC"), ("tokens",))
SPANS = Task("names", "token", ("PER", "LOC"), ("title", "body"))
ROWS = [["Ann", "Lee", "of", "Rome"], ["nobody"]]
SPAN = pa.struct([("start", pa.int64()), ("end", pa.int64()), ("label", pa.string())])


def load(tmp_path: Path, task: Task, training: bool = False, **columns: Any) -> RawExamples:
    pq.write_table(pa.table(columns), tmp_path / "data.parquet")
    return load_examples(task, str(tmp_path / "data.parquet"), "tags", training=training)


def found(raw: RawExamples) -> list[list[tuple[int, ...]]]:
    assert raw.entities is not None
    return [list(map(tuple, raw.entities.row(row))) for row in range(len(raw))]


def test_words_become_a_text_with_spans(tmp_path: Path) -> None:
    raw = load(tmp_path, NAMES, tokens=ROWS, tags=[["B-PER", "I-PER", "O", "B-LOC"], ["O"]])
    assert raw.texts == ["Ann Lee of Rome", "nobody"]
    assert found(raw) == [[(0, 0, 7, 0), (0, 11, 15, 1)], []]
    assert raw.labels.tolist() == [[True, True], [False, False]]
    assert raw.label_names() == ["Ann Lee (PER); Rome (LOC)", ""]


def test_numbers_take_their_names_from_the_column(tmp_path: Path) -> None:
    tags = datasets.ClassLabel(names=["O", "I-LOC", "B-LOC", "I-PER", "B-PER"])
    features = datasets.Features({"tokens": datasets.List(datasets.Value("string")), "tags": datasets.List(tags)})
    data = datasets.Dataset.from_dict({"tokens": ROWS, "tags": [[4, 3, 0, 2], [0]]}, features=features)
    data.to_parquet(tmp_path / "data.parquet")
    raw = load_examples(NAMES, str(tmp_path / "data.parquet"), "tags", training=False)
    assert found(raw) == [[(0, 0, 7, 0), (0, 11, 15, 1)], []]


def test_spans_may_be_in_either_column(tmp_path: Path) -> None:
    kind = pa.list_(pa.struct([("column", pa.string()), *SPAN]))
    lists = [
        [{"column": "body", "start": 3, "end": 6, "label": "PER"}, {"start": 0, "end": 4, "label": "LOC"}],
        [{"column": "body", "start": 0, "end": 3, "label": "PER"}],
        [],
        None,
    ]
    columns = {"title": ["Rome", None, "a", "b"], "body": ["by Ann", "Ann", " ", "c"], "tags": pa.array(lists, kind)}
    raw = load(tmp_path, SPANS, **columns)
    assert (raw.texts, raw.seconds) == (["Rome", "", "a"], ["by Ann", "Ann", None])
    assert found(raw) == [[(0, 0, 4, 1), (1, 3, 6, 0)], [(1, 0, 3, 0)], []]
    assert raw.skipped == [(3, "label is null")]
    assert raw.label_names() == ["Rome (LOC); Ann (PER)", "Ann (PER)", ""]


def test_the_tags_of_tokens_are_those_of_their_words(tmp_path: Path, tokenizer: BertTokenizer) -> None:
    raw = load(tmp_path, NAMES, tokens=[["bank", "abc", "of", "d.e"]], tags=[["B-PER", "I-PER", "O", "B-LOC"]])
    examples = tokenise_examples(raw, TextTokenizer(tokenizer, 32))
    assert examples.tags is not None
    pieces = ["[CLS]", "bank", "a", "##b", "##c", "of", "d", "[UNK]", "e", "[SEP]"]
    assert tokenizer.convert_ids_to_tokens(examples.tokens.row(0).tolist()) == pieces
    assert examples.tags.tolist() == [NO_TAG, 1, 2, NO_TAG, NO_TAG, 0, 3, 4, 4, NO_TAG]


def test_entities_behind_what_is_read_are_kept_to_be_missed(tmp_path: Path, tokenizer: BertTokenizer) -> None:
    raw = load(tmp_path, NAMES, tokens=[["bank"] * 9], tags=[["B-PER", *["O"] * 7, "B-LOC"]])
    examples = tokenise_examples(raw, TextTokenizer(tokenizer, 6))
    assert examples.tags is not None
    assert examples.tags.tolist() == [NO_TAG, 1, 0, 0, 0, NO_TAG]
    assert examples.entities is not None
    assert len(examples.entities.values) == 2


def test_entities_inside_a_word_are_counted(
    tmp_path: Path, tokenizer: BertTokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    lists = pa.array([[{"start": 1, "end": 4, "label": "PER"}, {"start": 5, "end": 7, "label": "LOC"}]], pa.list_(SPAN))
    raw = load(tmp_path, Task("names", "token", ("PER", "LOC")), text=["bank of"], tags=lists)
    with caplog.at_level(logging.WARNING):
        tokenise_examples(raw, TextTokenizer(tokenizer, 16))
    assert "1 of 2 entities begin or end inside a word" in caplog.text


def test_a_type_without_examples_cannot_be_learned(tmp_path: Path) -> None:
    pq.write_table(pa.table({"tokens": ROWS, "tags": [["B-PER", "O", "O", "O"], ["O"]]}), tmp_path / "data.parquet")
    source = str(tmp_path / "data.parquet")
    with pytest.raises(DataError, match="no example of 'LOC', so the task cannot be learned"):
        load_train_and_eval(NAMES, source, source, "tags")


@pytest.mark.parametrize(
    ("tokens", "tags", "message"),
    [
        ([["a", "b"]], [["O"]], "row 0: it has 2 words and 1 tags; give each word one"),
        ([["a"], ["b"]], [["O"], ["B-ORG"]], r"row 1: tag 'B-ORG' cannot be used; .* types: 'PER', 'LOC'"),
        ([["a"]], [["PER"]], "row 0: tag 'PER' cannot be used"),
        ([["a", None]], [["O", "O"]], "row 0: null stands among its words"),
        ([["a"]], pa.array([[None]], pa.list_(pa.string())), "row 0: null stands among its tags"),
        ([["a", ""]], [["O", "B-PER"]], "row 0: a word that is empty has the tag of an entity"),
        ([["a"]], [[1]], "are numbers without names"),
        ([["a"]], ["O"], "has type string; allowed is a list of tags"),
        ([["a"]], [[1.5]], "has type list<.*double.*>; allowed is lists of tags"),
        ([[1]], [["O"]], "has type list<.*int64.*>; allowed is texts, or lists of words"),
        (["a"], [["O"]], "allowed is a list of structs with start, end and label beside texts; tags go with lists"),
    ],
)
def test_words_and_tags_that_are_refused(tmp_path: Path, tokens: Any, tags: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load(tmp_path, NAMES, tokens=tokens, tags=tags)


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        ([(0, 3, "ORG")], "type 'ORG' cannot be used; types: 'PER', 'LOC'"),
        ([(0, 9, "PER")], "the span from 0 to 9 is not inside 'text', which has 7 characters"),
        ([(-1, 2, "PER")], "the span from -1 to 2 is not inside"),
        ([(3, 3, "PER")], "the span from 3 to 3 is not inside"),
        ([(5, 7, "LOC"), (0, 6, "PER")], r"the spans 'bank o' \(0 to 6\) and 'of' \(5 to 7\) overlap"),
        ([(0, None, "PER")], "null stands among its spans"),
    ],
)
def test_spans_that_are_refused(tmp_path: Path, spans: list[tuple[Any, ...]], message: str) -> None:
    lists = [[], [dict(zip(("start", "end", "label"), span, strict=True)) for span in spans]]
    task = Task("names", "token", ("PER", "LOC"))
    with pytest.raises(DataError, match=f"row 1: {message}"):
        load(tmp_path, task, text=["bank of", "bank of"], tags=pa.array(lists, pa.list_(SPAN)))


def test_rows_without_words_or_label_are_left_out(tmp_path: Path) -> None:
    raw = load(tmp_path, NAMES, tokens=[["Ann"], None, [], [" "], ["b"]], tags=[["B-PER"], ["O"], [], ["O"], None])
    reasons = ["text is null", "text is empty", "text is empty", "label is null"]
    assert raw.skipped == list(enumerate(reasons, 1))


def test_a_task_on_words_has_one_column(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a task on words has one text column"):
        load(tmp_path, SPANS, title=[["a"]], body=[["b"]], tags=[["O"]])
