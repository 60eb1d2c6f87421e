from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mtop_batch.data.same_text import Pair
from mtop_batch.data.unlabelled import choose_texts, read_texts
from mtop_batch.errors import DataError


def single(*texts: str) -> list[Pair]:
    return [(text, None) for text in texts]


def test_no_text_of_an_evaluation_is_learned_from_however_it_is_written() -> None:
    texts = choose_texts(single("A goal!", "rain"), single("a  GOAL", "Sun"), single("“A goal”"), max_texts=10, seed=0)
    assert texts.texts == ["rain", "Sun"]
    assert (texts.num_read, texts.num_in_evaluation) == (4, 2)


def test_the_second_text_of_a_pair_counts() -> None:
    texts = choose_texts([("a", "b"), ("a", "c"), ("a", None)], [], [("A", "C")], max_texts=10, seed=0)
    assert list(zip(texts.texts, texts.seconds, strict=True)) == [("a", "b"), ("a", None)]


def test_each_text_is_there_once() -> None:
    assert choose_texts(single("a", "b"), single("A", "c", "c"), [], max_texts=10, seed=0).texts == ["a", "b", "c"]


def test_of_a_large_corpus_a_random_part_is_taken_and_all_examples() -> None:
    corpus = single(*(f"text {number}" for number in range(100)))
    chosen = [choose_texts(single("a", "b"), corpus, [], max_texts=12, seed=seed).texts for seed in (0, 0, 1)]
    assert all(texts[:2] == ["a", "b"] and len(set(texts)) == 12 for texts in chosen)
    assert chosen[0] == chosen[1] != chosen[2]


def test_fewer_texts_than_examples_cannot_be_asked_for() -> None:
    assert choose_texts(single("a", "b", "c"), single("d"), [], max_texts=1, seed=0).texts == ["a", "b", "c"]


def test_texts_are_read_from_all_files_without_rows_that_have_none(tmp_path: Path) -> None:
    for name, texts in (("a", ["one", None]), ("b", [" ", "two"])):
        pq.write_table(pa.table({"headline": pa.array(texts, pa.string())}), tmp_path / f"{name}.parquet")
    assert list(read_texts(str(tmp_path), ["headline"])) == single("one", "two")
    with pytest.raises(DataError, match="no column 'headlin'"):
        list(read_texts(str(tmp_path), ["headlin"]))


def test_what_is_no_text_is_refused_or_left_out(tmp_path: Path) -> None:
    columns = {"bytes": pa.array([b"one", b"\xff", None]), "numbers": [1, 2, 3]}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    assert list(read_texts(str(tmp_path), ["bytes"])) == single("one")
    with pytest.raises(DataError, match=r"text column 'numbers' of .* has type int64, not string"):
        list(read_texts(str(tmp_path), ["numbers"]))
