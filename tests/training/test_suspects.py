"""Examples that are likely to be labelled wrongly."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from mtop_batch.data.raw_examples import RawExamples
from mtop_batch.errors import DataError
from mtop_batch.tasks import Task
from mtop_batch.training.evaluation.label_report import ERROR_COLUMNS
from mtop_batch.training.evaluation.suspects import find_suspects

Vectors = npt.NDArray[np.floating]


def clouds(counts: tuple[int, ...], spread: float = 0.5, seed: int = 0) -> tuple[RawExamples, Vectors]:
    """Texts whose vectors lie around a centre for each label."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(counts)), counts)
    vectors = np.eye(len(counts), 8)[labels] * 3 + spread * rng.normal(size=(len(labels), 8))
    task = Task("topic", labels=tuple(f"label {index}" for index in range(len(counts))))
    texts = [f"text {row}" for row in range(len(labels))]
    return RawExamples(task, "there", True, texts, None, labels.astype(np.int64), []), vectors.astype(np.float16)


def flip(raw: RawExamples, rows: list[int]) -> None:
    raw.labels[rows] = (raw.labels[rows] + 1) % len(raw.task.labels)


@pytest.mark.parametrize("counts", [(100, 100), (150, 40), (60, 60, 60, 20)])
def test_labels_that_were_changed_are_found_the_surest_first(counts: tuple[int, ...]) -> None:
    raw, vectors = clouds(counts, spread=0.3)
    changed = [3, 17, 50, 105, sum(counts) - 2]
    flip(raw, changed)
    found = find_suspects(raw, vectors)
    assert found.schema == ERROR_COLUMNS
    assert {f"text {row}" for row in changed} <= set(found["text"].to_pylist())
    assert len(found) <= 2 * len(changed)
    for row in found.to_pylist():
        assert row["label"] != row["predicted"]
    scores = found["score"].to_pylist()
    assert scores[0] == pytest.approx(max(scores), abs=0.1)


def test_clean_labels_raise_no_suspicion() -> None:
    assert len(find_suspects(*clouds((80, 80), spread=0.2))) == 0


def test_a_text_that_is_there_twice_does_not_vouch_for_itself() -> None:
    raw, vectors = clouds((60, 60))
    flip(raw, [5, 6])
    raw.texts[6] = raw.texts[5].upper()
    vectors[6] = vectors[5]
    found = find_suspects(raw, vectors)
    assert found["text"].to_pylist().count("text 5") == 1
    assert "TEXT 5" not in found["text"].to_pylist()
    raw.labels[6] = 0  # a contradiction is known to be wrong, and is told elsewhere
    assert "text 5" not in find_suspects(raw, vectors)["text"].to_pylist()


def test_a_label_with_one_example_is_left_alone() -> None:
    raw, vectors = clouds((40, 40, 1))
    assert "label 2" not in find_suspects(raw, vectors)["label"].to_pylist()


@pytest.mark.parametrize("counts", [(6, 4), (40, 1)])
def test_too_few_examples_say_why_not(counts: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match="too few to tell which are labelled wrongly; it takes 20 and 2"):
        find_suspects(*clouds(counts))
