"""What `mtop predict` does: texts of arguments or standard input, each task asked about as many texts as it reads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from mtop_batch.data.sources import read_columns
from mtop_batch.errors import ConfigError, DataError
from mtop_batch.lines import counted, listed
from mtop_batch.precision import PrecisionChoice
from mtop_batch.tasks import Task, VectorInput, select_tasks

_UTF8_MARK = b"\xef\xbb\xbf"
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")


@dataclass(frozen=True)
class Given:
    """A text, perhaps with a second one, or the reason why it is none."""

    text: str
    second: str | None = None
    error: str | None = None


def read_lines(lines: Iterable[bytes]) -> Iterator[Given]:
    """The lines of a file in UTF-8, with or without a byte order mark, ended as on any system.

    Raises:
        ConfigError: The file is UTF-16.
    """
    for number, line in enumerate(lines):
        if number == 0:
            if line.startswith(_UTF16_MARKS):
                raise ConfigError("standard input is UTF-16; convert it to UTF-8, as `iconv -f utf-16 -t utf-8` does")
            line = line.removeprefix(_UTF8_MARK)
        line = line.removesuffix(b"\n").removesuffix(b"\r")
        yield _given(line, f"line {number + 1}")


def of_arguments(texts: Sequence[str], seconds: Sequence[str]) -> list[Given]:
    """The texts of the command line, each with its second one if there are any.

    Raises:
        ConfigError: There are not as many second texts as texts.
    """
    given = [_given(text.encode(errors="surrogateescape"), f"text {number}") for number, text in enumerate(texts, 1)]
    if not seconds:
        return given
    if len(seconds) != len(texts):
        raise ConfigError(
            f"--second is given {counted(len(seconds), 'time')} for {counted(len(texts), 'text')}; give it once for "
            "each text, or put a tab between the two"
        )
    others = [
        _given(text.encode(errors="surrogateescape"), f"second text {number}") for number, text in enumerate(seconds, 1)
    ]
    return [
        Given(first.text, second.text, first.error or second.error) for first, second in zip(given, others, strict=True)
    ]


def _given(data: bytes, name: str) -> Given:
    try:
        error = f"{name} has NUL characters, as UTF-16 does; write it as UTF-8" if b"\0" in data else None
        return Given(data.decode(), error=error)
    except UnicodeDecodeError:
        return Given(data.decode(errors="replace"), error=f"{name} is not valid UTF-8")


def predict(
    model: str,
    given: Sequence[Given],
    precision: PrecisionChoice,
    note: Callable[[str], None],
    tasks: Sequence[str] = (),
    inputs: str | None = None,
) -> list[dict[str, Any]]:
    """A row for each text: `text`, `second` if there is one, the columns of the tasks, and `error`.

    `<task>_scores` has the calibrated probability of each label, by its name, whatever the label table keeps.
    `<task>_abstained` says of a task that may abstain whether it does, `<task>_corrected` of one with rules whether one
    of them has changed its label. Entities of a token task have their `text` too, and as `column` the key of the text
    that they are in: "text" or "second".

    Tasks on pairs are asked about texts that have a second one, by itself or after a tab. Where a bundle has tasks on
    single texts too, they are left out for the others; where it has none, they are asked about the first text alone, as
    about an article without a body. Either is noted.

    Args:
        model: The bundle.
        given: The texts.
        precision: Of the model.
        note: Takes a line for people.
        tasks: The wanted ones; all if none is named.
        inputs: Parquet with what stands beside the texts, a row for each text, for models that read such vectors.

    Raises:
        TaskError: There is no such task.
        DataError: The file lacks a column, or has more or fewer rows than there are texts.
        ConfigError: There are second texts, and no task reads two.
        BundleError: The bundle is missing or damaged.
    """
    from mtop_batch.labelling.run.predictor import Predictor
    from mtop_batch.model.bundle.bundle import load_bundle
    from mtop_batch.table.columns import OutputKind

    bundle = load_bundle(model)
    bundle.model.set_tasks(replace(task, scores="all") for task in bundle.model.tasks if task.has_labels_of_texts)
    wanted = set(select_tasks(tasks or bundle.model.task_names, bundle.model.task_names))
    beside = _read_inputs(inputs, bundle.model.vector_inputs, len(given), note)
    asked_about = [task for task in bundle.model.tasks if task.name in wanted]
    names = {size: [task.name for task in asked_about if len(task.text) == size] for size in (1, 2)}
    if names[2]:
        given = [_split(item) for item in given]
    elif any(item.second is not None for item in given):
        raise ConfigError(f"no task of the bundle {model} reads two texts; leave --second out")
    num_alone = sum(item.second is None and not item.error and bool(item.text.strip()) for item in given)
    if names[2] and num_alone:
        note(_explained(names[2], leaves_out=bool(names[1]), alone=num_alone, rows=len(given)))
    pairs = [row for row, item in enumerate(given) if item.second is not None or not names[1]]
    asked = {1: range(len(given)), 2: pairs}
    rows: list[dict[str, Any]] = [{} for _ in given]
    for size, of_size in names.items():
        if not of_size or not asked[size]:
            continue
        predictor = Predictor(bundle.model, bundle.tokenizer, precision=precision, tasks=of_size)
        items = [given[row] for row in asked[size]]
        texts = [None if item.error else item.text for item in items]
        seconds = [item.second for item in items] if size == 2 else None
        own = {name: column.take(pa.array(asked[size])) for name, column in beside.items()}
        table = predictor.predict(texts, seconds, inputs=own, corrections=True)
        for row, item, found in zip(asked[size], items, table.to_pylist(), strict=True):
            # A row is in error if no task has anything to say of it.
            error = found.pop("error")
            found |= _named_scores(predictor.tasks, found) | _abstained(predictor.tasks, found)
            found |= _entities(predictor.tasks, found, item)
            rows[row] |= found | {"error": error if "error" not in rows[row] else rows[row]["error"] and error}
    columns = [column for task in asked_about for column in (*OutputKind.of(task).names(task.name), *_marks(task))]
    return [_row(item, row, columns) for item, row in zip(given, rows, strict=True)]


def _read_inputs(
    path: str | None, inputs: Sequence[VectorInput], num_texts: int, note: Callable[[str], None]
) -> dict[str, pa.Array]:
    """What stands beside the texts, by column."""
    names = [spec.column for spec in inputs]
    if path is None:
        if names:
            note(f"labels are those of texts alone: the model also reads {listed(names)}; give them by --inputs")
        return {}
    if not names:
        raise ConfigError("the model reads nothing beside texts; leave --inputs out")
    table = pa.concat_tables([part.table for part in read_columns(path, names)])
    if len(table) != num_texts:
        raise DataError(f"--inputs {path} has {counted(len(table), 'row')} for {counted(num_texts, 'text')}")
    return {name: table[name].combine_chunks() for name in names}


def _named_scores(tasks: Sequence[Task], row: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """The columns `<task>_scores` of a row that has labels, by label."""
    columns = {f"{task.name}_scores": task.labels for task in tasks if task.scores == "all"}
    return {
        column: dict(zip(labels, row[column], strict=True))
        for column, labels in columns.items()
        if row[column] is not None
    }


def _entities(tasks: Sequence[Task], row: Mapping[str, Any], item: Given) -> dict[str, list[dict[str, Any]]]:
    """The columns `<task>_label` of token tasks: each entity with the characters that it is."""
    found = {}
    for task in tasks:
        entities = row[f"{task.name}_label"] if task.is_token else None
        if entities is not None:
            keys = {task.text[0]: "text", task.text[-1]: "second" if len(task.text) == 2 else "text"}
            texts = {"text": item.text, "second": item.second or ""}
            found[f"{task.name}_label"] = [
                {
                    "text": texts[keys[entity["column"]]][entity["start"] : entity["end"]],
                    **entity,
                    "column": keys[entity["column"]],
                }
                for entity in entities
            ]
    return found


def _abstained(tasks: Sequence[Task], row: Mapping[str, Any]) -> dict[str, bool]:
    """Where a task that may abstain does: the score is there, and no label."""
    return {
        f"{task.name}_abstained": row[f"{task.name}_label"] is None
        for task in tasks
        if task.decision.abstain_below and row[f"{task.name}_score"] is not None
    }


def _marks(task: Task) -> list[str]:
    """What else is said of a task."""
    decision = task.decision
    marks = {f"{task.name}_abstained": decision.abstain_below, f"{task.name}_corrected": decision.rules}
    return [name for name, is_said in marks.items() if is_said]


def _split(item: Given) -> Given:
    text, tab, second = item.text.partition("\t")
    return Given(text, second, item.error) if tab and item.second is None else item


def _explained(pairs: Sequence[str], *, leaves_out: bool, alone: int, rows: int) -> str:
    of_texts = "" if alone == rows else f" for {alone} of {counted(rows, 'text')}"
    way_out = "give the second by --second, or after a tab"
    if leaves_out:
        return f"left out{of_texts}, because they read two texts: {listed(pairs)}; {way_out}"
    return f"warning: all tasks read two texts, and are asked about the first alone{of_texts}; {way_out}"


def _row(item: Given, found: dict[str, Any], columns: Sequence[str]) -> dict[str, Any]:
    second = {} if item.second is None else {"second": item.second}
    values = {column: found.get(column) for column in columns}
    return {"text": item.text, **second, **values, "error": item.error or found.get("error")}
