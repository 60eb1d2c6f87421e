"""Tags: what a token task says of each word, and the entities that they come to.

Tag 0 is "outside", tag 2 t + 1 begins an entity of type t, and tag 2 t + 2 goes on with it (IOB2). A sequence is legal
if an entity goes on only where one of its type has begun or gone on with the word before, in the same text.

Shapes: W words of all texts together, C tags, E entities.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from mtop_batch.data.entities.spans import Entities, Entity
from mtop_batch.tasks import NO_TAG

OUTSIDE = 0
_TAG_MARKS = {"B": "B", "I": "I", "E": "E", "L": "E", "S": "S", "U": "S"}

IntArray = npt.NDArray[np.int64]
Words = npt.NDArray[np.int32]


def entities_of_tags(tags: Sequence[str], types: Sequence[str]) -> list[tuple[int, int, int]]:
    """The first word, the word after the last, and the type of each entity, from tags as people write them.

    One rule reads IOB2, IOB1, BIOES and BILOU: an entity begins at B, S and U, after anything of another type, and
    after what ends one.

    Raises:
        ValueError: A tag is none of these, or its type is not one of `types`; it is the argument.

    >>> entities_of_tags(["I-LOC", "I-LOC", "O", "B-PER", "I-PER", "B-PER"], ["PER", "LOC"])
    [(0, 2, 1), (3, 5, 0), (5, 6, 0)]
    """
    found: list[tuple[int, int, int]] = []
    goes_on = False
    for place, tag in enumerate(tags):
        if tag == "O":
            goes_on = False
            continue
        mark, dash, name = tag.partition("-")
        if not dash or mark not in _TAG_MARKS or name not in types:
            raise ValueError(tag)
        mark, label = _TAG_MARKS[mark], types.index(name)
        if goes_on and mark in "IE" and found[-1][2] == label:
            found[-1] = (found[-1][0], place + 1, label)
        else:
            found.append((place, place + 1, label))
        goes_on = mark in "BI"
    return found


def tags_of_words(words: Words, entities: Sequence[Entity]) -> tuple[IntArray, int]:
    """The tags of a row's words, and how many of the entities do not begin and end where words do.

    Such an entity is widened to whole words. A word has the first entity that reaches into it.

    Args:
        words: (T, 3) For each token the word that it begins (`data.entities.words`), the text -1 where it begins none.
        entities: Of the row, by place.

    Returns:
        (T,) int64, `NO_TAG` for tokens that begin no word.
    """
    side, start, end = words.T
    tags = np.where(side < 0, NO_TAG, OUTSIDE)
    num_uneven = 0
    for text, first, stop, label in entities:
        inside = (side == text) & (start < stop) & (end > first)
        if not inside.any():
            continue  # it is behind what is read
        num_uneven += start[inside].min() != first or end[inside].max() != stop
        begin = start[inside & (tags == OUTSIDE)].min(initial=np.iinfo(np.int32).max)
        tags[inside & (tags == OUTSIDE)] = 2 * label + 2
        tags[inside & (start == begin)] = 2 * label + 1
    return tags, num_uneven


def find_entities(
    words: Words, rows: IntArray, log_probabilities: npt.NDArray[np.float32], num_rows: int
) -> tuple[Entities, npt.NDArray[np.float32]]:
    """The likeliest legal tags of all words, as entities, and how sure each row is of its least sure word.

    Args:
        words: (W, 3) Row after row, and those of a row by text and place.
        rows: (W,) The row of each, ascending.
        log_probabilities: (W, C) Of each word's tags.
        num_rows: R

    Returns:
        The entities of R rows, each as sure as the least sure of its words; and (R,) float32, the least probability
        of any word's tag, 1 for a row without words.
    """
    is_first = np.ones(len(words), bool)
    is_first[1:] = (np.diff(rows) != 0) | (np.diff(words[:, 0]) != 0)
    tags = legal_tags(log_probabilities, is_first)
    sure = np.exp(np.take_along_axis(log_probabilities, tags[:, None], axis=1)[:, 0])
    least = np.ones(num_rows, np.float32)
    np.minimum.at(least, rows, sure)
    inside = tags > 0
    begins = np.flatnonzero(tags % 2)
    entity_of = np.cumsum(tags % 2)[inside] - 1
    ends = np.zeros(len(begins), np.int32)
    np.maximum.at(ends, entity_of, words[inside, 2])
    scores = np.ones(len(begins), np.float32)
    np.minimum.at(scores, entity_of, sure[inside])
    values = np.column_stack([words[begins, 0], words[begins, 1], ends, tags[begins] // 2]).astype(np.int32)
    offsets = np.append(0, np.bincount(rows[begins], minlength=num_rows).cumsum())
    return Entities(values.reshape(-1, 4), scores, offsets), least


def legal_tags(log_probabilities: npt.NDArray[np.float32], is_first: npt.NDArray[np.bool_]) -> IntArray:
    """(W,) The likeliest legal tags of each text, by the algorithm of Viterbi.

    Where each word's likeliest tag makes a legal sequence, it is the likeliest of all, and nothing is computed.

    Args:
        log_probabilities: (W, C)
        is_first: (W,) Which words are the first of a text.
    """
    tags = log_probabilities.argmax(axis=1)
    goes_on = (tags > 0) & (tags % 2 == 0)
    before = np.append(OUTSIDE, tags[:-1])
    illegal = goes_on & (is_first | ((before != tags) & (before != tags - 1)))
    if not illegal.any():
        return tags
    starts = np.append(np.flatnonzero(is_first), len(tags))
    texts = np.unique(np.searchsorted(starts, np.flatnonzero(illegal), side="right") - 1)
    lengths = np.diff(starts)[texts]
    for same in _alike(lengths):
        within = np.arange(lengths[same].max())
        places = np.minimum(starts[texts[same]][:, None] + within, len(tags) - 1)
        is_word = within < lengths[same][:, None]
        scores = np.where(is_word[..., None], log_probabilities[places].astype(np.float64), 0.0)
        tags[places[is_word]] = _viterbi(scores, lengths[same])[is_word]
    return tags


def _alike(lengths: IntArray) -> list[IntArray]:
    """Texts in groups of similar lengths, so that little of what is computed is padding."""
    order = np.argsort(lengths, kind="stable")
    bounds = np.flatnonzero(np.diff(np.log2(lengths[order]).astype(int))) + 1
    return [order[start:stop] for start, stop in pairwise([0, *bounds.tolist(), len(order)])]


def _viterbi(scores: npt.NDArray[np.float64], lengths: IntArray) -> IntArray:
    """(S, L) The likeliest legal tags of S texts from (S, L, C) scores; what stands behind a text means nothing.

    Any tag may follow any other, but for those that go on: they follow two. So one maximum serves for all of the first.
    """
    num_texts, longest, num_tags = scores.shape
    going_on = np.arange(2, num_tags, 2)
    best = scores[:, 0].copy()
    best[:, going_on] = -np.inf
    came_from = np.zeros((longest, num_texts, num_tags), np.int64)
    final = best.copy()
    for place in range(1, longest):
        came_from[place] = best.argmax(axis=1)[:, None]
        begun_before = best[:, going_on - 1] >= best[:, going_on]
        came_from[place][:, going_on] = np.where(begun_before, going_on - 1, going_on)
        best = np.take_along_axis(best, came_from[place], axis=1) + scores[:, place]
        final[lengths > place] = best[lengths > place]
    tags = np.zeros((num_texts, longest), np.int64)
    texts = np.arange(num_texts)
    tag = final.argmax(axis=1)
    for place in range(longest - 1, -1, -1):
        is_last = place == lengths - 1
        tag = np.where(is_last, final.argmax(axis=1), tag)
        tags[:, place] = tag
        tag = np.where(place < lengths, came_from[place, texts, tag], tag)
    return tags
