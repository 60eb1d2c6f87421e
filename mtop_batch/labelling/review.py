"""`mtop review`: which articles to label by hand next, written as a table with an empty column to fill in.

`review_choice` chooses them from the published table; then their texts are read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, get_args

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from mtop_batch import storage
from mtop_batch.corpus.files import UnreadableSource, read_layout
from mtop_batch.errors import ConfigError, TaskError
from mtop_batch.labelling.plan.sample import Block
from mtop_batch.labelling.review_choice import FILLED_IN, ChosenArticle, ReviewOptions, Strategy, choose
from mtop_batch.labelling.run.read_rows import read_unit
from mtop_batch.lines import did_you_mean
from mtop_batch.table.columns import ENTITIES_TYPE, LABELS_TYPE, OutputKind
from mtop_batch.table.read import open_table
from mtop_batch.table.runs import list_runs, read_run

__all__ = ["ReviewOptions", "Strategy", "choose_articles"]

_Place = tuple[str, int]
"""A source file, and a row of it."""
_Texts = tuple[Any, dict[str, str | None]]
"""An article's id, and its texts by column."""


def choose_articles(options: ReviewOptions) -> dict[str, Any]:
    """Choose articles, and write them.

    Returns:
        How many were written, how many were looked at, and what could not be read: JSON-ready.

    Raises:
        ConfigError: An option cannot work, or there is a file at the output already.
        NotInTable: Nothing is published, there is no vector, or there are no labels to compare with.
        TaskError: The table does not have a task.
        LabelTableError: A file of the label table cannot be read.
    """
    kind = _check(options)
    output = storage.file_place(options.output, "--output")
    if storage.exists(output):
        raise ConfigError(
            f"--output: there is a file at {options.output} already, and somebody may have filled it in; name another"
        )
    tasks = [options.task, *([options.against] if options.against else [])]
    table = open_table(options.labels, tasks, options.partition, vectors=options.strategy == "diverse")
    corpus = storage.absolute(options.corpus or _corpus_of(options))
    chosen, num_read = choose(options, kind, table)
    articles, unreadable = _with_texts(chosen, corpus, options, kind)
    _write(output, articles)
    return {
        "output": options.output,
        "task": options.task,
        "strategy": options.strategy,
        "articles": len(articles),
        "articles_read": num_read,
        "unreadable_files": [{"path": path, "reason": reason} for path, reason in sorted(unreadable.items())],
    }


def _check(options: ReviewOptions) -> OutputKind:
    """Refuse what cannot work; the kind of the task's columns."""
    if options.strategy not in get_args(Strategy):
        raise ConfigError(f"--strategy {options.strategy!r} is not one of {', '.join(get_args(Strategy))}")
    if options.num_articles < 1:
        raise ConfigError(f"--n {options.num_articles}: ask for at least one article")
    if options.against is not None and options.strategy != "disagree":
        raise ConfigError(f"--against goes with --strategy disagree, and the strategy is {options.strategy!r}")
    kinds = open_table(options.labels, None, None).columns.kinds
    for task in filter(None, (options.task, options.against)):
        if task not in kinds:
            raise TaskError(
                f"the label table {options.labels} has no task {task!r}; {did_you_mean(task, list(kinds))}tasks: "
                f"{', '.join(kinds)}"
            )
    kind = kinds[options.task]
    if options.against is not None and (options.against == options.task or kinds[options.against].kind != kind.kind):
        raise ConfigError(f"--against {options.against}: name another task of the same kind ({kind.kind})")
    if kind.kind == "regression" and options.strategy == "uncertain":
        raise ConfigError(
            f"task {options.task!r} is a regression, whose values have no probability; use another --strategy"
        )
    if kind.kind in ("multi-label", "token") and options.output.lower().endswith(".csv"):
        what = "entities" if kind.kind == "token" else "labels"
        raise ConfigError(f"task {options.task!r} has lists of {what}, which a CSV file cannot hold; write Parquet")
    taken = {"id", *kind.names(options.task)}
    if options.label_column in taken:
        raise ConfigError(f"--label-column {options.label_column!r} is the name of another column; name another")
    return kind


def _corpus_of(options: ReviewOptions) -> str:
    """The corpus of the newest run that wanted the task."""
    for run in list_runs(storage.absolute(options.labels)):
        record = read_run(storage.absolute(options.labels), run)
        if options.task in record.wanted.fingerprints and record.corpus:
            return record.corpus
    raise ConfigError(f"no run in {options.labels} says where the articles lie; name the place with --corpus")


def _with_texts(
    articles: Sequence[ChosenArticle], corpus: str, options: ReviewOptions, kind: OutputKind
) -> tuple[pa.Table, dict[str, str]]:
    """The table to write, and the source files that cannot be read, with the reasons; their articles are left out."""
    unreadable: dict[str, str] = {}
    found: dict[_Place, _Texts] = {}
    for of_file in _by_file(articles):
        source = of_file[0].source
        try:
            found |= dict(_read_rows(corpus, of_file))
        except UnreadableSource as error:
            unreadable[source.path] = str(error)
    kept = [article for article in articles if (article.source.path, article.row) in found]
    columns = tuple(dict.fromkeys(name for article in articles for name in article.text_columns))
    taken = {"id", *kind.names(options.task)}
    if clash := [name for name in columns if name in taken or name == options.label_column]:
        raise ConfigError(
            f"the text column {clash[0]!r} has the name of another column that is written; if it is that to fill in, "
            "name another --label-column"
        )
    rows = [found[article.source.path, article.row] for article in kept]
    label_type, to_fill_in = {
        "multi-label": (LABELS_TYPE, LABELS_TYPE),
        "token": (ENTITIES_TYPE, FILLED_IN),
        "regression": (pa.float32(), pa.float32()),
    }.get(kind.kind, (pa.string(), pa.string()))
    score_type = pa.list_(pa.float32()) if kind.kind == "multi-label" else pa.float32()
    fields: dict[str, pa.Array] = {"id": pa.array([value for value, _ in rows])}
    for name in columns:
        fields[name] = pa.array([texts.get(name) for _, texts in rows], pa.string())
    if kind.kind == "regression":
        fields[f"{options.task}_score"] = pa.array([article.label for article in kept], label_type)
    else:
        fields[f"{options.task}_label"] = pa.array([article.label for article in kept], label_type)
        fields[f"{options.task}_score"] = pa.array([article.score for article in kept], score_type)
    fields[options.label_column] = pa.nulls(len(kept), to_fill_in)
    return pa.table(fields), unreadable


def _by_file(articles: Sequence[ChosenArticle]) -> Iterator[list[ChosenArticle]]:
    by_path: dict[str, list[ChosenArticle]] = {}
    for article in articles:
        by_path.setdefault(article.source.path, []).append(article)
    yield from (by_path[path] for path in sorted(by_path))


def _read_rows(corpus: str, articles: Sequence[ChosenArticle]) -> Iterator[tuple[_Place, _Texts]]:
    """The id and the texts of articles of one source file.

    Raises:
        UnreadableSource: The file is bad, gone, or no longer the one that was labelled.
    """
    source, columns, id_column = articles[0].source, articles[0].text_columns, articles[0].id_column
    layout = read_layout(corpus, source, id_column=id_column, inputs=[columns], text_columns_required=False)
    wanted = sorted(article.row for article in articles)
    start = 0
    for num_rows in layout.row_groups:
        here = [row for row in wanted if start <= row < start + num_rows]
        start += num_rows
        if not here:
            continue
        unit = Block(source, layout, (here[0], here[-1] + 1)).unit(columns)
        first = unit.rows[0]
        for batch in read_unit(corpus, unit, id_column):
            seconds = batch.seconds or [None] * len(batch)
            for row in here:
                if 0 <= (place := row - first) < len(batch):
                    texts = dict(zip(unit.text_columns, (batch.texts[place], seconds[place]), strict=False))
                    yield (source.path, row), (batch.ids[place].as_py(), texts)
            first += len(batch)


def _write(uri: str, articles: pa.Table) -> None:
    sink = pa.BufferOutputStream()
    if uri.lower().endswith(".csv"):
        pyarrow.csv.write_csv(articles, sink)
    else:
        pq.write_table(articles, sink, compression="zstd")
    storage.write_bytes(uri, sink.getvalue().to_pybytes())
