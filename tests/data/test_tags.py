"""Tags: how they are read, what words they come to, and the likeliest legal ones."""

from __future__ import annotations

from itertools import pairwise, product

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtop_batch.data.entities.spans import Entities, count_entities
from mtop_batch.data.entities.tags import entities_of_tags, find_entities, legal_tags, tags_of_words
from mtop_batch.tasks import NO_TAG

TYPES = ("PER", "LOC")


@pytest.mark.parametrize(
    ("scheme", "tags"),
    [
        ("IOB2", "B-PER I-PER O B-LOC B-LOC I-LOC B-PER"),
        ("IOB1", "I-PER I-PER O I-LOC B-LOC I-LOC I-PER"),
        ("BIOES", "B-PER E-PER O S-LOC B-LOC E-LOC S-PER"),
        ("BILOU", "B-PER L-PER O U-LOC B-LOC L-LOC U-PER"),
    ],
)
def test_all_schemes_say_the_same(scheme: str, tags: str) -> None:
    assert entities_of_tags(tags.split(), TYPES) == [(0, 2, 0), (3, 4, 1), (4, 6, 1), (6, 7, 0)]


@pytest.mark.parametrize("tag", ["B-ORG", "PER", "X-PER", "", "B-", "-PER", "o"])
def test_other_tags_are_refused(tag: str) -> None:
    with pytest.raises(ValueError, match=f"^{tag}$"):
        entities_of_tags(["O", tag], TYPES)


def legal(tags: tuple[int, ...]) -> bool:
    return all(not after or after % 2 or before in (after - 1, after) for before, after in pairwise((0, *tags)))


def slowly(log_probabilities: npt.NDArray[np.float32]) -> float:
    """The likelihood of the likeliest legal tags, by trying all."""
    num_words, num_tags = log_probabilities.shape
    rows = log_probabilities.astype(np.float64)
    return max(
        sum(row[tag] for row, tag in zip(rows, tags, strict=True))
        for tags in product(range(num_tags), repeat=num_words)
        if legal(tags)
    )


@given(st.lists(st.integers(1, 5), min_size=1, max_size=6), st.sampled_from([1, 2]), st.integers(0, 2**32 - 1))
def test_decoding_finds_the_likeliest_legal_tags(lengths: list[int], num_types: int, seed: int) -> None:
    logits = 3 * np.random.default_rng(seed).normal(size=(sum(lengths), 2 * num_types + 1))
    found = (logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))).astype(np.float32)
    starts = np.cumsum([0, *lengths])
    is_first = np.isin(np.arange(sum(lengths)), starts)
    tags = legal_tags(found, is_first)
    for start, stop in pairwise(starts):
        own = tuple(tags[start:stop].tolist())
        assert legal(own)
        said = found[start:stop].astype(np.float64)[np.arange(stop - start), list(own)].sum()
        assert said == pytest.approx(slowly(found[start:stop]), abs=1e-9)


def test_no_entity_goes_on_into_another_text_or_row() -> None:
    words = np.array([[0, 0, 2], [1, 0, 2], [0, 0, 2]], np.int32)
    said = np.log(np.array([[0.1, 0.8, 0.1], [0.1, 0.3, 0.6], [0.1, 0.3, 0.6]], np.float32))
    found, least = find_entities(words, np.array([0, 0, 1]), said, num_rows=3)
    assert [found.row(row) for row in range(3)] == [[(0, 0, 2, 0), (1, 0, 2, 0)], [(0, 0, 2, 0)], []]
    np.testing.assert_allclose(least, [0.3, 0.3, 1.0], rtol=1e-6)
    np.testing.assert_allclose(found.scores, [0.8, 0.3, 0.3], rtol=1e-6)


@given(st.data())
def test_spans_become_tags_and_spans_again(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=9))
    starts = np.cumsum([0, *(size + 1 for size in sizes)])[:-1]
    words = np.array([[0, start, start + size] for start, size in zip(starts, sizes, strict=True)], np.int32)
    bounds = sorted(data.draw(st.sets(st.integers(0, len(sizes)), max_size=6)))
    entities = [
        (0, int(words[first, 1]), int(words[stop - 1, 2]), data.draw(st.integers(0, 1)))
        for first, stop in pairwise(bounds)
        if data.draw(st.booleans())
    ]
    special = np.array([[-1, 0, 0]], np.int32)
    tags, num_uneven = tags_of_words(np.concatenate([special, words, special]), entities)
    assert (tags[0], tags[-1], num_uneven) == (NO_TAG, NO_TAG, 0)
    sure = np.log(np.full((len(words), 5), 1e-3, np.float32))
    sure[np.arange(len(words)), tags[1:-1]] = np.log(0.996)
    found, _ = find_entities(words, np.zeros(len(words), np.int64), sure, num_rows=1)
    assert found.row(0) == entities


def test_an_entity_that_begins_inside_a_word_is_widened_and_counted() -> None:
    words = np.array([[0, 0, 4], [0, 5, 9]], np.int32)
    tags, num_uneven = tags_of_words(words, [(0, 2, 9, 1)])
    assert (tags.tolist(), num_uneven) == ([3, 4], 1)
    tags, num_uneven = tags_of_words(words, [(0, 0, 2, 0), (0, 3, 9, 1), (0, 20, 22, 0)])
    assert (tags.tolist(), num_uneven) == ([1, 3], 2)


SENTENCES = [
    ("B-PER I-PER O B-LOC O", "B-PER I-PER O B-LOC O"),
    ("B-PER I-PER O B-LOC O", "B-PER O O B-LOC B-LOC"),
    ("B-LOC I-LOC B-LOC O O", "B-LOC I-LOC I-LOC O O"),
    ("O O O O B-PER", "O O O O B-LOC"),
    ("O O O O O", "O O B-PER I-PER O"),
]


def entities(which: int) -> Entities:
    return Entities.from_rows(
        [
            [(0, first, stop, label) for first, stop, label in entities_of_tags(pair[which].split(), TYPES)]
            for pair in SENTENCES
        ]
    )


def test_entities_are_counted_as_seqeval_does() -> None:
    total, person, place = count_entities(entities(0), entities(1), 2)
    # f1_score, precision_score and recall_score of seqeval 1.2.2 with mode="strict" and scheme=IOB2.
    assert (total.f1, total.precision, total.recall) == pytest.approx((0.4, 3 / 8, 3 / 7))
    assert (person.f1, place.f1) == pytest.approx((1 / 3, 4 / 9))
    assert (person.given, place.given) == (3, 4)


@given(st.lists(st.tuples(*[st.lists(st.integers(0, 4), min_size=6, max_size=6)] * 2), min_size=1, max_size=5))
def test_counts_are_those_of_seqeval(pairs: list[tuple[list[int], list[int]]]) -> None:
    metrics, scheme = pytest.importorskip("seqeval.metrics"), pytest.importorskip("seqeval.scheme")
    names = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]

    def mended(tags: list[int]) -> list[str]:
        found = [0]
        for tag in tags:
            found.append(tag - 1 if tag and not tag % 2 and found[-1] not in (tag, tag - 1) else tag)
        return [names[tag] for tag in found[1:]]

    sides = [[mended(pair[side]) for pair in pairs] for side in (0, 1)]
    rows = [
        Entities.from_rows([[(0, *entity) for entity in entities_of_tags(tags, TYPES)] for tags in side])
        for side in sides
    ]
    expected = metrics.f1_score(*sides, mode="strict", scheme=scheme.IOB2, zero_division=0)
    given, found = rows
    assert count_entities(given, found, 2)[0].f1 == pytest.approx(expected)
