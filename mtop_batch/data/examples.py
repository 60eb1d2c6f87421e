"""Labelled texts: read, checked, and tokenised once. R rows, V tokens in the vocabulary."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from mtop_batch.data.label_values import Labels, read_labels
from mtop_batch.data.sources import Part, read_columns
from mtop_batch.data.text_rows import text_rows
from mtop_batch.data.tokens import TextTokenizer, Tokens
from mtop_batch.errors import DataError
from mtop_batch.tasks import Task

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RawExamples:
    """Labelled texts of one task.

    Args:
        texts: One per example.
        seconds: The second text of each example, None where it has one alone; None if the task has one text column.
        labels: (R,) int64 indices of labels, or float32 values of a regression.
        skipped: Rows that are no examples: their number in the source, over all its files, and the reason.
    """

    texts: list[str]
    seconds: list[str | None] | None
    labels: Labels
    skipped: list[tuple[int, str]]

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True)
class LabelledTokens:
    """Examples of one task as the model takes them.

    Args:
        tokens: R rows.
        labels: (R,) int64 indices of labels, or float32 values of a regression.
    """

    tokens: Tokens
    labels: Labels

    def __len__(self) -> int:
        return len(self.tokens)


def load_examples(task: Task, source: str, label_column: str, *, training: bool = True) -> RawExamples:
    """Read the examples of a task.

    A row without any text (`data.text_rows`), or without label, is skipped.

    Args:
        task: Names the text columns and the allowed labels (`data.label_values` says how a label is written).
        source: See `mtop_batch.data.sources.read_columns`; a hub data set's split is by default "train" for training
            and "validation" for evaluation.
        label_column: Where the labels are.
        training: The examples are to learn from, so that each label needs one; otherwise a label without example is
            only worth a warning in the log.

    Raises:
        DataError: The source does not exist or lacks a column, a column has the wrong type, a label is not one of the
            task's, no example is left, or a label has none to learn from.
        LabelTableError: The storage cannot be reached or refuses.
    """
    parts = read_columns(source, [*task.text, label_column], default_split="train" if training else "validation")
    labels, label_missing = read_labels(task, parts, label_column)
    rows = text_rows([_read_texts(task, parts, column) for column in task.text])
    reasons = pc.if_else(pa.array(label_missing), "label is null", rows.errors)
    kept = reasons.is_null()
    examples = RawExamples(
        texts=rows.texts.filter(kept).to_pylist(),
        seconds=rows.seconds.filter(kept).to_pylist() if len(task.text) == 2 else None,
        labels=labels[kept.to_numpy(zero_copy_only=False)],
        skipped=[(row, reason) for row, reason in enumerate(reasons.to_pylist()) if reason is not None],
    )
    _check(task, source, examples, training)
    return examples


def tokenise_examples(raw: RawExamples, text_tokenizer: TextTokenizer) -> LabelledTokens:
    """The same examples as tokens."""
    return LabelledTokens(text_tokenizer.encode(raw.texts, raw.seconds), raw.labels)


def token_counts(tokens: Iterable[Tokens], vocab_size: int) -> npt.NDArray[np.int64]:
    """How often each token occurs: (V,). Prompts may begin as frequent tokens (section 6.1 of the paper).

    >>> token_counts([Tokens.from_rows([[1, 2], [2]]), Tokens.from_rows([[2]])], vocab_size=4).tolist()
    [0, 1, 3, 0]
    """
    counts = np.zeros(vocab_size, dtype=np.int64)
    for part in tokens:
        counts += np.bincount(part.values, minlength=vocab_size)
    return counts


def _read_texts(task: Task, parts: Sequence[Part], column: str) -> pa.Array:
    """A text column of all parts, one after the other, as large_string."""
    texts = []
    for part in parts:
        kind = part.table.schema.field(column).type
        if not _is_text(kind.value_type if pa.types.is_dictionary(kind) else kind):
            raise DataError(
                f"task {task.name!r}: text column {column!r} of {part.name} has type {kind}, not string; "
                "name another column, or write it as strings"
            )
        for chunk in part.table[column].chunks:
            decoded = chunk.dictionary_decode() if pa.types.is_dictionary(kind) else chunk
            texts.append(decoded.cast(pa.large_string()))
    return pa.concat_arrays([pa.nulls(0, pa.large_string()), *texts])


def _is_text(kind: pa.DataType) -> bool:
    types = pa.types
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind) or types.is_null(kind)


def _check(task: Task, source: str, examples: RawExamples, training: bool) -> None:
    """Refuse examples that nothing can be learned from, and tell the log what is left out."""
    reasons = Counter(reason for _, reason in examples.skipped)
    if not examples.texts:
        found = ", ".join(f"{count} times {reason}" for reason, count in reasons.items()) or "there are no rows"
        raise DataError(f"task {task.name!r}: {source} has no example: {found}; give rows with a text and a label")
    if reasons:
        logger.warning("task %r: %s: %s", task.name, source, dict(reasons))
    if task.kind == "regression":
        return
    counts = np.bincount(examples.labels.astype(np.int64), minlength=len(task.labels))
    without = [label for label, count in zip(task.labels, counts, strict=True) if not count]
    if without and training:
        raise DataError(
            f"task {task.name!r}: {source} has no example of {', '.join(map(repr, without))}, so the task cannot be "
            "learned; add examples, or remove the label from the task"
        )
    if without:
        logger.warning("task %r: %s has no example of %s", task.name, source, ", ".join(map(repr, without)))
