"""Labelled texts: read, checked, and tokenised once. R rows, V tokens in the vocabulary."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from mtop_batch.data.entities.spans import Entities
from mtop_batch.data.entities.tags import tags_of_words
from mtop_batch.data.entities.values import read_entities
from mtop_batch.data.input_vectors import InputVectors, check_vector_column, vectors_of_rows
from mtop_batch.data.label_values import Labels, LabelValues, read_labels
from mtop_batch.data.labelled_tokens import IntArray, LabelledTokens
from mtop_batch.data.raw_examples import RawExamples
from mtop_batch.data.sources import Part, read_columns
from mtop_batch.data.text_rows import TEXT_SAYS_NOTHING, text_column, text_rows
from mtop_batch.data.tokens import TextTokenizer, Tokens
from mtop_batch.errors import DataError
from mtop_batch.lines import listed
from mtop_batch.tasks import LabelBy, Task, VectorInput

Source = str | Sequence[str]

logger = logging.getLogger(__name__)
_MOST_WARNINGS = 20


@contextmanager
def few_warnings(most: int = _MOST_WARNINGS) -> Iterator[None]:
    """While the block runs, the log has the first warnings of each kind, and in the end how many there were more."""
    counts = Counter[str]()

    def is_one_of_the_first(record: logging.LogRecord) -> bool:
        counts[record.msg] += 1
        return counts[record.msg] <= most

    logger.addFilter(is_one_of_the_first)
    try:
        yield
    finally:
        logger.removeFilter(is_one_of_the_first)
        for count in counts.values():
            if count > most:
                logger.warning("and %d more warnings like the last of these", count - most)


def load_examples(
    task: Task,
    source: Source,
    label_column: str,
    *,
    training: bool = True,
    label_by: LabelBy | None = None,
    inputs: Sequence[VectorInput] = (),
) -> RawExamples:
    """Read the examples of a task from one source.

    A row without any text (`data.text_rows`), or without label, or with vectors that cannot be used
    (`data.input_vectors`), is skipped.

    Args:
        task: Names the text columns and the allowed labels (`data.label_values` says how a label is written).
        source: See `mtop_batch.data.sources.read_columns`; or several, one after the other. A hub data set's split is
            by default "train" for training and "validation" for evaluation.
        label_column: Where the labels are.
        training: The examples are to learn from, so that each label needs one; otherwise a label without example is
            only worth a warning in the log.
        label_by: What numbers in the label column are; None decides by the values.
        inputs: What the model reads beside the texts.

    Raises:
        DataError: The source does not exist or lacks a column, a column has the wrong type, a label is not one of the
            task's, no example is left, or a label has none to learn from.
        LabelTableError: The storage cannot be reached or refuses.
    """
    return _load(task, [(source, training)], label_column, label_by, inputs)[0]


def load_train_and_eval(
    task: Task,
    train: Source,
    eval_: Source,
    label_column: str,
    label_by: LabelBy | None = None,
    inputs: Sequence[VectorInput] = (),
) -> tuple[RawExamples, RawExamples]:
    """Read the training and the evaluation examples of a task, whose labels are read in one way.

    Arguments and errors are those of `load_examples`.
    """
    first, second = _load(task, [(train, True), (eval_, False)], label_column, label_by, inputs)
    return first, second


def tokenise_examples(raw: RawExamples, text_tokenizer: TextTokenizer) -> LabelledTokens:
    """The same examples as tokens, but for those whose texts say nothing.

    Raises:
        DataError: No example is left, or a label has none to learn from.
    """
    return tokenise_with_texts(raw, text_tokenizer)[0]


def tokenise_with_texts(raw: RawExamples, text_tokenizer: TextTokenizer) -> tuple[LabelledTokens, RawExamples]:
    """What `tokenise_examples` returns, and the very same examples as texts."""
    tokens = text_tokenizer.encode(raw.texts, raw.seconds, words=raw.task.is_token)
    kept = np.flatnonzero(tokens.lengths)
    tags = None if raw.entities is None else _tags(raw, raw.entities, tokens)
    examples = LabelledTokens(tokens, raw.labels, None, raw.entities, tags, raw.vectors)
    if text_tokenizer.max_windows > 1:
        counts = tokens.num_windows(text_tokenizer.max_tokens)
        windows = tokens.windows(text_tokenizer.max_tokens)
        examples = replace(examples, tokens=windows, counts=counts)
        if raw.task.combine == "first":
            examples = replace(examples, tokens=windows.take(counts.cumsum() - counts), counts=None)
    if len(kept) == len(raw):
        return examples, raw
    examples = examples.take(kept)
    _check(raw, examples.labels, Counter({TEXT_SAYS_NOTHING: len(raw) - len(kept)}))
    return examples, raw.take(kept)


def _tags(raw: RawExamples, entities: Entities, tokens: Tokens) -> IntArray:
    """(T,) The tags of all tokens of a token task's examples; the log is told how many entities do not fit words."""
    words = np.empty((0, 3), np.int32) if tokens.words is None else tokens.words
    found = [
        tags_of_words(words[tokens.offsets[row] : tokens.offsets[row + 1]], entities.row(row))
        for row in range(len(raw))
    ]
    if num_uneven := sum(uneven for _, uneven in found):
        logger.warning(
            "task %r: %s: %d of %d entities begin or end inside a word; they are learned as whole words, and found as "
            "such they do not count as right",
            raw.task.name,
            raw.source,
            num_uneven,
            len(entities.values),
        )
    return np.concatenate([np.empty(0, np.int64), *(tags for tags, _ in found)])


def with_label_scale(task: Task, examples: LabelledTokens) -> Task:
    """A regression with the mean and the standard deviation of what it learns from; any other task as it is."""
    if task.kind != "regression":
        return task
    values = examples.labels.astype(np.float64)
    return replace(task, mean=float(values.mean()), std=float(values.std()) or 1.0)


def token_counts(tokens: Iterable[Tokens], vocab_size: int) -> npt.NDArray[np.int64]:
    """How often each token occurs: (V,). Prompts may begin as frequent tokens (section 6.1 of the paper).

    >>> token_counts([Tokens.from_rows([[1, 2], [2]]), Tokens.from_rows([[2]])], vocab_size=4).tolist()
    [0, 1, 3, 0]
    """
    counts = np.zeros(vocab_size, dtype=np.int64)
    for part in tokens:
        counts += np.bincount(part.values, minlength=vocab_size)
    return counts


def _load(
    task: Task,
    sources: Sequence[tuple[Source, bool]],
    label_column: str,
    label_by: LabelBy | None,
    inputs: Sequence[VectorInput],
) -> list[RawExamples]:
    """The examples of each source, given with whether they are to learn from."""
    parts = [
        [
            part
            for place in ([source] if isinstance(source, str) else source)
            for part in read_columns(
                place,
                [*task.text, label_column, *(spec.column for spec in inputs)],
                default_split="train" if training else "validation",
            )
        ]
        for source, training in sources
    ]
    if task.is_token:
        return _load_entities(task, sources, parts, label_column, inputs)
    found = read_labels(task, [part for of_source in parts for part in of_source], label_column, label_by)
    examples = []
    start = 0
    for (source, training), of_source in zip(sources, parts, strict=True):
        rows = slice(start, start + sum(len(part.table) for part in of_source))
        start = rows.stop
        examples.append(_examples(task, _name(source), training, of_source, found[rows], inputs))
        _check(examples[-1], examples[-1].labels, Counter(reason for _, reason in examples[-1].skipped))
    return examples


def _name(source: Source) -> str:
    """What a message calls one or several places."""
    return source if isinstance(source, str) else ", ".join(source)


def _load_entities(
    task: Task,
    sources: Sequence[tuple[Source, bool]],
    parts: Sequence[Sequence[Part]],
    label_column: str,
    inputs: Sequence[VectorInput],
) -> list[RawExamples]:
    """The same of a token task."""
    examples = []
    for (source, training), of_source in zip(sources, parts, strict=True):
        found = read_entities(task, of_source, label_column)
        entities = Entities.from_rows(found.entities)
        raw = RawExamples(
            task=task,
            source=_name(source),
            training=training,
            texts=found.texts,
            seconds=found.seconds,
            labels=entities.has_type(len(task.labels)),
            skipped=found.skipped,
            entities=entities,
        )
        examples.append(_with_vectors(raw, of_source, inputs) if inputs else raw)
        _check(examples[-1], examples[-1].labels, Counter(reason for _, reason in examples[-1].skipped))
    return examples


def _with_vectors(raw: RawExamples, parts: Sequence[Part], inputs: Sequence[VectorInput]) -> RawExamples:
    """Those of the examples whose vectors can be used, with these."""
    vectors, reasons = _read_vectors(raw.task, parts, inputs)
    rows = np.setdiff1d(np.arange(len(reasons)), [row for row, _ in raw.skipped])
    own = reasons.take(pa.array(rows))
    bad = [(int(row), reason) for row, reason in zip(rows, own.to_pylist(), strict=True) if reason is not None]
    with_all = replace(raw, vectors=tuple(of.take(rows) for of in vectors), skipped=sorted([*raw.skipped, *bad]))
    return with_all.take(np.flatnonzero(own.is_null()))


def _examples(
    task: Task,
    source: str,
    training: bool,
    parts: Sequence[Part],
    found: LabelValues,
    inputs: Sequence[VectorInput],
) -> RawExamples:
    texts, problems = zip(*(_read_texts(task, parts, column) for column in task.text), strict=True)
    rows = text_rows(texts)
    vectors, of_vectors = _read_vectors(task, parts, inputs)
    # What is wrong with a column says more than that another one has no text.
    reasons = pc.if_else(pa.array(found.missing), "label is null", pc.coalesce(*problems, rows.errors, of_vectors))
    kept = reasons.is_null()
    kept_rows = np.flatnonzero(kept.to_numpy(zero_copy_only=False))
    return RawExamples(
        task=task,
        source=source,
        training=training,
        texts=rows.texts.filter(kept).to_pylist(),
        seconds=rows.seconds.filter(kept).to_pylist() if len(task.text) == 2 else None,
        labels=found.labels[kept_rows],
        skipped=[(row, reason) for row, reason in enumerate(reasons.to_pylist()) if reason is not None],
        label_by=found.label_by,
        vectors=tuple(of.take(kept_rows) for of in vectors),
    )


def _read_vectors(
    task: Task, parts: Sequence[Part], inputs: Sequence[VectorInput]
) -> tuple[tuple[InputVectors, ...], pa.Array]:
    """What stands beside the texts of all rows, and why some of it cannot be used."""
    for spec in inputs:
        for part in parts:
            check_vector_column(part.table[spec.column], spec, part.name, f"task {task.name!r}: ")
    found = [
        vectors_of_rows(inputs, [part.table[spec.column].combine_chunks() for spec in inputs], len(part.table))
        for part in parts
    ]
    if not inputs or not found:
        return (), pa.nulls(sum(len(part.table) for part in parts), pa.string())
    of_inputs = zip(*(vectors for vectors, _ in found), strict=True)
    return tuple(map(InputVectors.concat, of_inputs)), pa.concat_arrays([reasons for _, reasons in found])


def _read_texts(task: Task, parts: Sequence[Part], column: str) -> tuple[pa.Array, pa.Array]:
    """A text column of all parts, one after the other, as `text_column` has it."""
    found = [text_column(part.table[column], column, part.name, f"task {task.name!r}: ") for part in parts]
    texts, problems = zip(*found, strict=True)
    return pa.concat_arrays(texts), pa.concat_arrays(problems)


def _check(examples: RawExamples, labels: Labels, reasons: Counter[str]) -> None:
    """Refuse examples that nothing can be learned from, and tell the log what is left out.

    Args:
        examples: Whose they are.
        labels: Of those that are left.
        reasons: How often an example was left out for what reason.
    """
    task, source, training = examples.task, examples.source, examples.training
    if not len(labels):
        found = ", ".join(f"{count} times {reason}" for reason, count in reasons.items()) or "there are no rows"
        raise DataError(f"task {task.name!r}: {source} has no example: {found}; give rows with a text and a label")
    if reasons:
        logger.warning("task %r: %s: %s", task.name, source, dict(reasons))
    if task.kind == "regression":
        return
    if labels.ndim == 2:
        counts = labels.sum(axis=0)
    else:
        counts = np.bincount(labels.astype(np.int64), minlength=len(task.labels))
    without = [label for label, count in zip(task.labels, counts, strict=True) if not count]
    missing = listed([repr(label) for label in without])
    if without and training:
        raise DataError(
            f"task {task.name!r}: {source} has no example of {missing}, so the task cannot be "
            "learned; add examples, or remove the label from the task"
        )
    if without:
        logger.warning("task %r: %s has no example of %s", task.name, source, missing)
