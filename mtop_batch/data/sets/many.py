"""Hundreds of correlated tasks from texts at hand, as a platform has whose customers each sort articles their own way.

The set of "Exceeding the Limits of Visual-Linguistic Multi-Task Learning" (section 3.1), made of public texts.

There are many *sites*. Each belongs to one source of labelled texts and has some of its labels, some of its texts, and
a coarser grouping of its labels of its own. So a site gives two tasks over the same texts: `<site>_fine` and
`<site>_coarse`. Sizes are drawn log-uniformly and labels are unevenly frequent, so some tasks have fifty examples and
some ten thousand.

A text is in the same part everywhere (`mtop_batch.data.sets.parts`): none is in the training part of one task and in
the test part of another. A site is drawn by the seed, its own number and its source, so the first fifty of five hundred
sites are those of fifty.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import parse_qsl

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
from sklearn.cluster import AgglomerativeClustering
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer

from mtop_batch import storage
from mtop_batch.data.sets.parts import PARTS, Part, Shares
from mtop_batch.data.sets.task_files import TaskExamples, write_tasks
from mtop_batch.data.sources import read_columns
from mtop_batch.errors import DataError
from mtop_batch.lines import listed
from mtop_batch.tasks import Task

EVAL_FRACTION, TEST_FRACTION = 0.1, 0.2
"""The paper splits 80 to 20; what is evaluated during training comes out of the 80."""
LEAST_LABELS = 4
"""Of a site, so that two groups of two are a task too."""
LEAST_PER_LABEL = 5
"""Examples of a site for each of its labels, on average."""
SIZES = "tasks.csv"
_ATTEMPTS = 100
_SOURCE_OPTIONS = ("text", "label")
_DIMENSIONS = 32
"""Of the space in which labels are compared."""
_OWN_VIEW = 0.5
"""How far sites differ in what they hold for alike: noise, relative to a label's own vector."""


@dataclass(frozen=True)
class Source:
    """Labelled texts that sites draw from.

    Args:
        name: What its sites are called after.
        texts: (R,) No text twice.
        labels: (R,) Indices into `names`.
        names: (C,) The labels.
        vectors: (C, V) What is alike about the labels' texts, of length 1.
        parts: (R,) "train", "eval" or "test".
    """

    name: str
    texts: pa.Array
    labels: npt.NDArray[np.int64]
    names: Sequence[str]
    vectors: npt.NDArray[np.float64]
    parts: npt.NDArray[np.str_]


def build_many(
    sources: Mapping[str, str],
    output: str,
    *,
    sites: int = 50,
    least: int = 50,
    most: int = 10_000,
    seed: int = 0,
    whole: Mapping[str, str] | None = None,
) -> dict[str, dict[Part, int]]:
    """Make two tasks of each of many sites, and very large ones.

    Writes `<output>/<task>/train.parquet`, `eval.parquet` and `test.parquet`, columns `text` and `label`,
    `<output>/tasks.csv` with the sizes of all tasks, and, last, `<output>/tasks.toml`, which a configuration names as
    its `tasks`. Nothing is written if the data does not fit.

    Args:
        sources: Name -> `PATH?text=COLUMN&label=COLUMN`: labelled Parquet, or a hub data set, as in a task's `train`.
            The columns are `text` and `label` unless named. Of a column of lists the rows with one label are taken.
            Rows without text or label, and texts with several labels, are left out.
        output: A directory or prefix. If it is relative, so are the paths in `tasks.toml`.
        sites: How many; they take turns at the sources. 0 for none.
        least: Fewest texts of a site.
        most: Most texts of a site. A site of a smaller source has at most all of that.
        seed: Of all draws.
        whole: Name -> a source of which all texts and labels are one task of that name.

    Returns:
        The number of examples in each part of every task, in the order of `tasks.toml`.

    Raises:
        DataError: A source lacks a column, or has too few texts or labels.
        TaskError: The name of a source cannot be part of a task's name.
        LabelTableError: The storage cannot be reached or refuses; files already written stay.
    """
    if not (sources and sites) and not whole:
        raise DataError("no source is given; name at least one labelled Parquet file, and at least one site of it")
    shares = Shares(EVAL_FRACTION, TEST_FRACTION, seed)
    read = [read_source(name, location, shares, least) for name, location in sources.items()]
    tasks, rows = [], []
    for number in range(sites if read else 0):
        source = read[number % len(read)]
        made = draw_site(source, number, seed, least, most)
        tasks += made
        rows += [{"source": source.name, **_sizes(task)} for task in made]
    for name, location in (whole or {}).items():
        tasks.append(whole_task(name, read_source(name, location, shares, least)))
        rows.append({"source": name, **_sizes(tasks[-1])})
    storage.write_bytes(storage.join(storage.absolute(output), SIZES), _csv(pa.Table.from_pylist(rows)))
    return write_tasks(output, tasks, "mtop build-many")


def read_source(name: str, location: str, shares: Shares, least: int) -> Source:
    """Read the labelled texts of a source.

    Raises:
        DataError: A column is missing, or there are fewer than `LEAST_LABELS` labels or `least` texts.
        TaskError: The name cannot be part of a task's name.
    """
    Task(_site_name(name, 0))
    path, _, query = location.rpartition("?") if "?" in location else (location, "", "")
    options = dict(parse_qsl(query, keep_blank_values=True))
    unknown = sorted(set(options) - set(_SOURCE_OPTIONS))
    if unknown:
        raise DataError(f"source {name!r}: {unknown[0]!r} is not an option of {location}; allowed: text, label")
    columns = [options.get(option, option) for option in _SOURCE_OPTIONS]
    rows = pa.concat_tables([_rows(part.table, columns, part.label_names) for part in read_columns(path, columns)])
    texts = rows.group_by("text").aggregate([("label", "min"), ("label", "count_distinct")])
    texts = texts.filter(pc.equal(texts["label_count_distinct"], 1)).sort_by("text")
    names = sorted(pc.unique(texts["label_min"]).to_pylist())
    if len(names) < LEAST_LABELS or len(texts) < least:
        raise DataError(
            f"source {name!r}: {path} has {len(texts):,} texts of {len(names)} labels; a site needs {least:,} texts of "
            f"{LEAST_LABELS} labels; labels: {listed(names)}"
        )
    labels = pc.index_in(texts["label_min"], pa.array(names)).to_numpy().astype(np.int64)
    found = texts["text"].combine_chunks()
    parts = shares.parts(found.to_pylist())
    vectors = label_vectors(found.filter(pa.array(parts == "train")).to_pylist(), labels[parts == "train"], len(names))
    return Source(name, found, labels, names, vectors, parts)


def label_vectors(texts: Sequence[str], labels: npt.NDArray[np.int64], num_labels: int) -> npt.NDArray[np.float64]:
    """(C, V) For each label the mean of its texts' TF-IDF in a space of few dimensions, of length 1."""
    weights = TfidfVectorizer(sublinear_tf=True, max_features=20_000).fit_transform(texts)
    means = np.vstack(
        [
            np.asarray(weights[labels == label].sum(axis=0)) / max(1, (labels == label).sum())
            for label in range(num_labels)
        ]
    )
    dimensions = min(_DIMENSIONS, num_labels - 1, weights.shape[1] - 1)
    vectors = TruncatedSVD(max(dimensions, 1), random_state=0).fit_transform(means)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def draw_site(source: Source, number: int, seed: int, least: int, most: int) -> list[TaskExamples]:
    """The two tasks of a site; the same arguments give the same.

    Labels without a training example are none of the site's, and neither are their other texts.

    Raises:
        DataError: The source is too small for a site with an example in each part.
    """
    for attempt in range(_ATTEMPTS):
        rng = np.random.default_rng([seed, number, attempt])
        rows, learned = _draw_rows(source, rng, least, most)
        if len(learned) >= LEAST_LABELS and set(source.parts[rows]) == set(PARTS):
            break
    else:
        raise DataError(
            f"source {source.name!r} gives no site with {LEAST_LABELS} labels and examples for training, evaluation "
            "and test; give more texts, or ask for larger sites"
        )
    groups = _groups(source.vectors[learned], rng)
    fine = [source.names[label] for label in learned]
    members = [[fine[place] for place in np.flatnonzero(groups == group)] for group in range(groups.max() + 1)]
    places = np.searchsorted(learned, source.labels[rows])
    site = _site_name(source.name, number)
    return [
        _task(f"{site}_fine", fine, places, source, rows),
        _task(f"{site}_coarse", [_group_name(labels) for labels in members], groups[places], source, rows),
    ]


def whole_task(name: str, source: Source) -> TaskExamples:
    """All texts of a source as one task; labels without a training example are none of its, and neither are their
    texts.

    Raises:
        TaskError: No task can have that name.
    """
    learned = np.unique(source.labels[source.parts == "train"])
    rows = np.flatnonzero(np.isin(source.labels, learned))
    places = np.searchsorted(learned, source.labels[rows])
    return _task(name, [source.names[label] for label in learned], places, source, rows)


def _draw_rows(
    source: Source, rng: np.random.Generator, least: int, most: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Some rows of some labels, and those of the labels that have training examples."""
    size = _log_uniform(rng, least, min(most, len(source.texts)))
    num_labels = _log_uniform(rng, LEAST_LABELS, min(len(source.names), max(LEAST_LABELS, size // LEAST_PER_LABEL)))
    chosen = np.sort(rng.choice(len(source.names), num_labels, replace=False))
    own, counts = _quotas(source, chosen, size, rng)
    drawn = [rng.choice(rows, count, replace=False) for rows, count in zip(own, counts, strict=True)]
    rows = rng.permutation(np.concatenate(drawn))
    learned = np.unique(source.labels[rows[source.parts[rows] == "train"]])
    return rows[np.isin(source.labels[rows], learned)], learned


def _site_name(source: str, number: int) -> str:
    return f"{source}_{number:04d}"


def _rows(table: pa.Table, columns: Sequence[str], label_names: Mapping[str, list[str]]) -> pa.Table:
    """The columns `text` and `label`, both strings, of the rows that have both."""
    text, label = table[columns[0]], table[columns[1]]
    if pa.types.is_list(label.type) or pa.types.is_large_list(label.type):
        single = pc.fill_null(pc.equal(pc.list_value_length(label), 1), False)
        text, label = text.filter(single), pc.list_element(label.filter(single), 0)
    names = label_names.get(columns[1])
    if names is not None:
        label = pa.array([names[index] if index is not None and index >= 0 else None for index in label.to_pylist()])
    found = pa.table({"text": text.cast(pa.string()), "label": label.cast(pa.string())}).drop_null()
    return found.filter(pc.not_equal(pc.utf8_trim_whitespace(found["text"]), ""))


def _log_uniform(rng: np.random.Generator, least: int, most: int) -> int:
    """A whole number from `least` to `most`, whose logarithm is uniform."""
    return min(most, max(least, round(float(np.exp(rng.uniform(np.log(least), np.log(max(least, most))))))))


def _quotas(
    source: Source, chosen: npt.NDArray[np.int64], size: int, rng: np.random.Generator
) -> tuple[list[npt.NDArray[np.int64]], list[int]]:
    """The rows of each chosen label, and how many of them the site has: labels are unevenly frequent."""
    own = [np.flatnonzero(source.labels == label) for label in chosen]
    shares = np.exp(rng.normal(size=len(chosen))) * [len(rows) for rows in own]
    wanted = np.maximum(2, np.round(size * shares / shares.sum())).astype(int)
    return own, [min(len(rows), int(count)) for rows, count in zip(own, wanted, strict=True)]


def _groups(vectors: npt.NDArray[np.float64], rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """(C,) The group of each of a site's labels: those whose texts are alike, as this site sees it."""
    count = len(vectors)
    num_groups = int(rng.integers(2, max(2, count // 2) + 1)) if count > 2 else count
    seen = vectors + _OWN_VIEW * rng.normal(size=vectors.shape) / np.sqrt(vectors.shape[1])
    found = AgglomerativeClustering(min(num_groups, count)).fit_predict(seen)
    return np.unique(found, return_inverse=True)[1].astype(np.int64)


def _group_name(labels: Sequence[str]) -> str:
    """A group is called after its first label; no other group has that."""
    return labels[0] if len(labels) == 1 else f"{labels[0]} and {len(labels) - 1} more"


def _task(
    name: str, labels: Sequence[str], places: npt.NDArray[np.int64], source: Source, rows: npt.NDArray[np.int64]
) -> TaskExamples:
    table = pa.table({"text": source.texts.take(rows), "label": pa.array(labels, pa.string()).take(places)})
    parts: dict[Part, pa.Table] = {part: table.filter(source.parts[rows] == part) for part in PARTS}
    return TaskExamples(Task(name, labels=tuple(labels)), parts)


def _sizes(examples: TaskExamples) -> dict[str, str | int]:
    sizes: dict[str, str | int] = {part: len(examples.parts[part]) for part in PARTS}
    return {"task": examples.task.name, "labels": len(examples.task.labels), **sizes}


def _csv(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pa_csv.write_csv(table, sink)
    return sink.getvalue()
