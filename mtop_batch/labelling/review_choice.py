"""Which articles to label by hand next: by how sure a task is of them, where labels differ, by chance, or spread out.

The published table is read file by file, and of each file no more is kept than can still be among the articles wanted,
so a table of any size takes the memory of its largest files.

Shapes: R articles of a published file, M candidates, D width of vectors.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from mtop_batch import storage
from mtop_batch.corpus.files import SourceFile
from mtop_batch.errors import NotInTable
from mtop_batch.table.columns import ENTITY_TYPE, LABELS_TYPE, VECTOR_COLUMN, OutputKind
from mtop_batch.table.footer import PublishedFooter
from mtop_batch.table.names import content_id
from mtop_batch.table.read import PublishedTable
from mtop_batch.table.row_ranges import is_tiling
from mtop_batch.table.runs import list_runs, read_run
from mtop_batch.table.store import StoreListing, list_store, read_label_file, read_label_sets

Strategy = Literal["uncertain", "disagree", "random", "diverse"]

FILLED_IN = pa.list_(pa.struct([field for field in ENTITY_TYPE if field.name != "score"]))
"""Entities as people write them, and as `mtop train` reads them."""

# Articles of which `diverse` chooses: the more there are, the rarer what it finds; their vectors are in memory.
_MIN_CANDIDATES, _CANDIDATES_PER_ARTICLE = 10_000, 20
# What is kept is cut back to the best only when it has become so many times as much.
_SLACK = 4


@dataclass(frozen=True)
class ReviewOptions:
    """The options of `mtop review`.

    Args:
        labels: URI of the label table.
        task: The task whose labels are wanted.
        output: Where to write them: Parquet, or CSV where it ends in `.csv`.
        num_articles: How many articles.
        strategy: "uncertain", the least probable labels; "disagree", labels that differ from another task's or from
            those of another bundle, both sure first; "random"; or "diverse", spread over the stored vectors.
        against: The other task for "disagree"; by default the task's labels by other bundles.
        corpus: Where the articles lie now; by default where the newest run of the task found them.
        partition: Only articles of this hive partition.
        label_column: Name of the column to fill in.
        seed: Of what is random.
    """

    labels: str
    task: str
    output: str
    num_articles: int = 200
    strategy: Strategy = "uncertain"
    against: str | None = None
    corpus: str | None = None
    partition: Mapping[str, str] = field(default_factory=dict)
    label_column: str = "label"
    seed: int = 0


@dataclass(frozen=True)
class ChosenArticle:
    """A chosen article: its place, and what the table says of it."""

    source: SourceFile
    row: int
    text_columns: tuple[str, ...]
    id_column: str
    label: Any
    score: Any


def choose(options: ReviewOptions, kind: OutputKind, table: PublishedTable) -> tuple[list[ChosenArticle], int]:
    """The articles, the first one first, and how many were looked at.

    Args:
        options: What to choose by.
        kind: Of the task's columns.
        table: The published table, with vectors where the strategy is "diverse".

    Raises:
        NotInTable: There are no labels to compare with.
        LabelTableError: A file of the label table cannot be read.
    """
    wanted = options.num_articles
    if options.strategy == "diverse":
        wanted = max(_MIN_CANDIDATES, _CANDIDATES_PER_ARTICLE * wanted)
    best = _Best(wanted)
    other = _OtherLabels(options) if options.strategy == "disagree" and options.against is None else None
    num_read = num_compared = 0
    for footer, rows in table.files():
        if options.task not in footer.tasks:
            continue
        num_read += len(rows)
        compared = rows
        if options.strategy == "disagree":
            found = rows if other is None else other.of(footer)
            if found is None or (options.against is not None and options.against not in footer.tasks):
                continue
            compared = found
            num_compared += len(rows)
        ranks = _ranks(options, kind, footer, rows, compared)
        ranks[~rows["error"].is_null().to_numpy()] = np.nan
        best.add(footer, ranks, rows)
    if options.strategy == "disagree" and not num_compared:
        raise NotInTable(
            f"there are no labels of task {options.task!r} by another bundle to compare with; name another task with "
            "--against"
        )
    articles = best.articles(options.task, kind)
    if options.strategy == "diverse":
        articles = [articles[place] for place in _spread(best.vectors(), options.num_articles, options.seed)]
    return articles, num_read


def _ranks(
    options: ReviewOptions, kind: OutputKind, footer: PublishedFooter, rows: pa.Table, compared: pa.Table
) -> npt.NDArray[np.float64]:
    """(R,) The lower the sooner; NaN for articles that are not to be chosen."""
    if options.strategy == "uncertain":
        return _sureness(rows, options.task, kind)
    if options.strategy == "disagree":
        return _agreement(rows, compared, options, kind)
    ranks = np.random.default_rng((options.seed, zlib.crc32(footer.source.path.encode()))).random(len(rows))
    if options.strategy == "diverse":
        ranks[rows[VECTOR_COLUMN].is_null().to_numpy()] = np.nan
    return ranks


def _sureness(rows: pa.Table, task: str, kind: OutputKind) -> npt.NDArray[np.float64]:
    """(R,) How sure a task is of each article: the probability of its label.

    Of a multi-label task it is that of the least sure of its labels: of all where their scores are stored, else of
    those that the article has; NaN where it has none. Of a token task it is that of the least sure word.
    """
    scores = rows[f"{task}_score"].combine_chunks()
    if kind.kind != "multi-label":
        return np.array(scores.cast(pa.float64()).to_numpy(zero_copy_only=False))
    stored = f"{task}_scores"
    lists = rows[stored].combine_chunks() if stored in rows.column_names else scores
    values = pc.list_flatten(lists).cast(pa.float64()).to_numpy(zero_copy_only=False)
    sureness = np.full(len(rows), np.nan)
    np.fmin.at(sureness, pc.list_parent_indices(lists).to_numpy(), np.maximum(values, 1 - values))
    return sureness


def _agreement(rows: pa.Table, compared: pa.Table, options: ReviewOptions, kind: OutputKind) -> npt.NDArray[np.float64]:
    """(R,) Low where two are sure of different labels, or say values far apart; NaN where they say the same."""
    other = options.against or options.task
    if kind.kind == "regression":
        values, others = (
            table[f"{task}_score"].cast(pa.float64()).to_numpy()
            for table, task in ((rows, options.task), (compared, other))
        )
        apart = np.abs(values - others)
        return np.where(apart > 0, -apart, np.nan)
    mine, theirs = (
        table[f"{task}_label"].combine_chunks() for table, task in ((rows, options.task), (compared, other))
    )
    if kind.kind in ("multi-label", "token"):
        lists = (_lists(labels) for labels in (mine, theirs))
        differ = np.array(
            [a is not None and b is not None and a != b for a, b in zip(*lists, strict=True)],
            bool,
        )
    else:
        differ = pc.not_equal(mine.cast(pa.string()), theirs.cast(pa.string())).fill_null(False)
        differ = differ.to_numpy(zero_copy_only=False)
    sure = [_sureness(rows, options.task, kind), _sureness(compared, other, kind)]
    # A list without labels says nothing of how sure it is: as sure as its threshold.
    both = np.minimum(*(np.nan_to_num(each, nan=0.5) for each in sure))
    return np.where(differ, -both, np.nan)


def _lists(labels: pa.Array) -> list[Any]:
    """What stands in lists: labels, or entities, of which how sure they are is no part."""
    rows: list[Any] = labels.to_pylist()
    if labels.type == LABELS_TYPE:
        return rows
    keys = [field.name for field in FILLED_IN.value_type]
    return [None if row is None else [tuple(entity[key] for key in keys) for entity in row] for row in rows]


class _OtherLabels:
    """Labels of a task by other bundles than the one that is published, as far as the store has them.

    Args:
        options: Whose task.
    """

    def __init__(self, options: ReviewOptions) -> None:
        self._labels, self._task = storage.absolute(options.labels), options.task
        self._listing: StoreListing = list_store(self._labels)
        runs = (read_run(self._labels, run).wanted.fingerprints.get(self._task) for run in list_runs(self._labels))
        newest = {fingerprint: place for place, fingerprint in reversed(list(enumerate(runs)))}
        sets = [found for found in read_label_sets(self._labels, self._listing) if self._task in found.fingerprints]
        # Those of the newest runs first.
        self._sets = sorted(sets, key=lambda found: newest.get(found.fingerprints[self._task], len(newest)))

    def of(self, footer: PublishedFooter) -> pa.Table | None:
        """The columns of the task for a published file's rows; None if no other bundle has labelled them all."""
        stored = self._listing.of(footer.source.path, content_id(footer.source))
        for found in self._sets:
            files = stored.get(found.name, {})
            if found.fingerprints[self._task] == footer.tasks[self._task].fingerprint:
                continue
            if is_tiling(files, footer.num_rows):
                columns = OutputKind(footer.tasks[self._task].kind).names(self._task)
                return pa.concat_tables(
                    [read_label_file(self._labels, files[rows], columns)[1] for rows in sorted(files)]
                ).unify_dictionaries()
        return None


class _Best:
    """The articles of the lowest rank so far; of equal ones those that came first.

    Args:
        wanted: How many.
    """

    def __init__(self, wanted: int) -> None:
        self._wanted = wanted
        self._footers: list[PublishedFooter] = []
        self._places: npt.NDArray[np.int64] = np.empty((2, 0), np.int64)  # number of the file, row
        self._ranks: npt.NDArray[np.float64] = np.empty(0)
        self._rows: list[pa.Table] = []

    def add(self, footer: PublishedFooter, ranks: npt.NDArray[np.float64], rows: pa.Table) -> None:
        """Look at the R articles of a published file."""
        candidates = np.argsort(ranks, kind="stable")[: self._wanted]
        candidates = candidates[~np.isnan(ranks[candidates])]
        if not len(candidates):
            return
        places = np.stack([np.full(len(candidates), len(self._footers)), candidates])
        self._footers.append(footer)
        self._places = np.concatenate([self._places, places], axis=1)
        self._ranks = np.concatenate([self._ranks, ranks[candidates]])
        self._rows.append(rows.take(pa.array(candidates)))
        if len(self._ranks) > _SLACK * self._wanted:
            self._cut()

    def _cut(self) -> None:
        order = np.argsort(self._ranks, kind="stable")[: self._wanted]
        self._ranks, self._places = self._ranks[order], self._places[:, order]
        if self._rows:
            self._rows = [pa.concat_tables(self._rows).unify_dictionaries().combine_chunks().take(pa.array(order))]

    def articles(self, task: str, kind: OutputKind) -> list[ChosenArticle]:
        """The best, the first one first."""
        self._cut()
        found = []
        for rows in self._rows:
            labels = rows[f"{task}_score" if kind.kind == "regression" else f"{task}_label"].to_pylist()
            scores = [None] * len(rows) if kind.kind == "regression" else rows[f"{task}_score"].to_pylist()
            for number, row, label, score in zip(*self._places.tolist(), labels, scores, strict=True):
                footer = self._footers[number]
                made = footer.tasks[task]
                found.append(ChosenArticle(footer.source, row, made.text_columns, made.id_column, label, score))
        return found

    def vectors(self) -> npt.NDArray[np.float32]:
        """(M, D) The vectors of the same articles."""
        parts = [rows[VECTOR_COLUMN].combine_chunks() for rows in self._rows]
        if not parts:
            return np.empty((0, 1), np.float32)
        values = pc.list_flatten(pa.chunked_array(parts)).to_numpy(zero_copy_only=False)
        matrix: npt.NDArray[np.float32] = values.astype(np.float32).reshape(sum(map(len, parts)), -1)
        return matrix


def _spread(vectors: npt.NDArray[np.float32], wanted: int, seed: int) -> Sequence[int]:
    """Places of vectors that are far from each other: the centres that k-means++ begins with."""
    from sklearn.cluster import kmeans_plusplus  # slow to import

    if len(vectors) <= wanted:
        return range(len(vectors))
    _, places = kmeans_plusplus(vectors, wanted, random_state=seed)
    # Where fewer vectors differ than are wanted, some are drawn twice.
    others = (place for place in range(len(vectors)) if place not in set(places.tolist()))
    different = list(dict.fromkeys(places.tolist()))
    return [*different, *(next(others) for _ in range(wanted - len(different)))]
