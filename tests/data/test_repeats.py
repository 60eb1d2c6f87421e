"""Texts that a task has more than once."""

from __future__ import annotations

import numpy as np
import pytest

from mtop_batch.data.label_values import Labels
from mtop_batch.data.raw_examples import RawExamples
from mtop_batch.data.repeats import RepeatedText, find_repeats
from mtop_batch.data.same_text import same_text_key
from mtop_batch.tasks import Task

SPORT = Task("sport")
SCORE = Task("score", kind="regression", labels=())


def examples(task: Task, *rows: tuple[str, float], seconds: list[str | None] | None = None) -> RawExamples:
    values = [label for _, label in rows]
    labels: Labels = np.array(values, np.float32) if task.kind == "regression" else np.array(values, np.int64)
    return RawExamples(task, "there", True, [text for text, _ in rows], seconds, labels, [])


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("A goal!", "“a  GOAL”"),
        ("Straße", "STRASSE"),
        ("cafe\u0301 open", "Caf\u00e9: open"),
        ("❤️ it", "❤ it"),
        ("state_of-the art", "State of the Art"),
    ],
)
def test_case_signs_and_spaces_make_no_other_text(first: str, second: str) -> None:
    assert same_text_key((first, None)) == same_text_key((second, None))


@pytest.mark.parametrize(
    ("first", "second"),
    [("👍", "👎"), ("!!!", "???"), ("कि", "की"), ("ไม", "ไม้"), ("goal 1", "goal 2"), ("C 3", "C3")],
)
def test_other_words_signs_alone_and_marks_make_another_text(first: str, second: str) -> None:
    assert same_text_key((first, None)) != same_text_key((second, None))


def test_texts_of_training_are_found_in_evaluation_and_counted() -> None:
    found = find_repeats(
        examples(SPORT, ("A goal!", 1), ("Rain", 0), ("rain.", 0), ("Snow", 0)),
        examples(SPORT, ("a goal", 1), ("A GOAL", 1), ("RAIN", 0), ("Sun", 0), ("sun!", 0)),
    )
    assert found.num_train == 4
    assert found.num_overlap == 3
    assert found.overlap == [
        RepeatedText("A goal!", None, {"yes": 1}, {"yes": 2}),
        RepeatedText("Rain", None, {"no": 2}, {"no": 1}),
    ]
    assert found.contradictions == []


def test_labels_contradict_each_other_within_a_part_and_between_the_two() -> None:
    found = find_repeats(
        examples(SPORT, ("in training", 1), ("In Training", 0), ("both", 1)),
        examples(SPORT, ("Both!", 0), ("in evaluation", 0), ("in evaluation?", 1), ("alone", 1)),
    )
    assert [(text.text, text.train, text.eval) for text in found.contradictions] == [
        ("in training", {"yes": 1, "no": 1}, {}),
        ("both", {"yes": 1}, {"no": 1}),
        ("in evaluation", {}, {"no": 1, "yes": 1}),
    ]


def test_pairs_are_the_same_if_both_texts_are() -> None:
    train = examples(SPORT, ("a", 1), ("a", 0), seconds=["b", None])
    found = find_repeats(train, examples(SPORT, ("A", 1), ("a", 1), seconds=["B!", "c"]))
    assert [(text.text, text.second_text) for text in found.overlap] == [("a", "b")]
    assert found.contradictions == []


def test_values_of_a_regression_overlap_and_do_not_contradict() -> None:
    found = find_repeats(examples(SCORE, ("a", 1.5), ("a", 2.0)), examples(SCORE, ("A", 1.75)))
    assert found.overlap == [RepeatedText("a", None, {"1.5": 1, "2": 1}, {"1.75": 1})]
    assert found.contradictions == []


def test_a_part_compared_with_itself_overlaps_whole() -> None:
    part = examples(SPORT, ("a", 1), ("b", 0))
    assert find_repeats(part, part).num_overlap == 2
