"""From two URIs to a plan: lists the corpus and the label table, and reads the footers that the plan depends on.

Source files whose published file shows all that is wanted are neither opened nor looked up in the store. So a run that
finds nothing to do costs two listings, and one footer per published file in scope.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from mtop_batch import storage
from mtop_batch.corpus.files import Layout, MissingColumns, SourceFile, UnreadableSource, read_layout
from mtop_batch.corpus.paths import in_partition, is_source, parse_partitions, partition_keys
from mtop_batch.errors import ConfigError, DamagedLabelFile, DataError
from mtop_batch.labelling.plan.staleness import Staleness, relevant_sets
from mtop_batch.labelling.plan.work import Plan, Unit
from mtop_batch.storage.local import FileInfo
from mtop_batch.table.definition import VECTOR, Definition
from mtop_batch.table.names import content_id, published_path, source_path_of
from mtop_batch.table.published import TableSchema, list_published, read_published, read_table_schema
from mtop_batch.table.runs import list_runs, read_run
from mtop_batch.table.store import LabelFile, StoreListing, list_store, read_footer, read_label_sets


def plan_labels(
    corpus: str,
    labels: str,
    definition: Definition,
    *,
    partitions: Sequence[str] = (),
    prune: bool = False,
) -> Plan:
    """Compare a corpus with its label table, and plan what makes every wanted cell current. Writes nothing.

    Args:
        corpus: A directory or prefix with Parquet files anywhere below, or one file.
        labels: The label table; it need not exist yet.
        definition: What is wanted.
        partitions: `key=value` filters on hive partitions, all of which must hold.
        prune: The run is to remove published files whose source file is gone: in the partition, if one is given, and
            none where the corpus is a single file.

    Raises:
        ConfigError: The label table and the corpus lie in each other, a partition filter cannot work, or files are to
            be removed because of another corpus than the table's newest run knew.
        DataError: There is no corpus, or none of its readable files has the columns.
        StorageError: Corpus or label table cannot be reached.
    """
    wanted_partition = parse_partitions(partitions)
    corpus, labels = storage.absolute(corpus), storage.absolute(labels)
    _check_apart(corpus, labels)
    listing = _list_corpus(corpus)
    columns = read_table_schema(labels) or TableSchema()
    names = columns.with_tasks(definition.kinds).arrow.names
    in_scope, shadowing = _without_shadowing(_filter(listing.sources, wanted_partition), names)
    published = list_published(labels)
    shown = _shown(labels, definition, in_scope, published, columns)

    stale = [source for source in in_scope if source not in shown]
    layouts, unreadable = _read_layouts(listing.root, stale, definition, has_current=bool(shown))
    # Vectors are not published: the store is asked for them.
    look = [*(source for source, _ in layouts), *(shown if VECTOR in definition.fingerprints else ())]
    staleness, damaged = _read_staleness(labels, definition, look)
    without_vectors = [
        source
        for source, num_rows in shown.items()
        if VECTOR in definition.fingerprints and not staleness.has_vectors(source, num_rows)
    ]
    more_layouts, more_unreadable = _read_layouts(listing.root, without_vectors, definition, has_current=True)
    current = [(source, num_rows) for source, num_rows in shown.items() if source not in set(without_vectors)]
    readable = sorted([*layouts, *more_layouts], key=lambda item: item[0].path)
    plan = replace(
        build_plan(staleness, definition.fingerprints, current, readable),
        to_publish=tuple(source for source, _ in layouts),
        corpus=listing.root,
        labels=labels,
        unreadable=(*shadowing, *unreadable, *more_unreadable),
        ignored_files=tuple(listing.ignored),
        damaged=tuple(damaged),
        orphaned=tuple(_orphaned(labels, published, listing, wanted_partition)),
        prune=prune,
    )
    if plan.prune and plan.orphaned:
        _check_same_corpus(plan, corpus)
    return plan


def build_plan(
    staleness: Staleness,
    tasks: Collection[str],
    current: Iterable[tuple[SourceFile, int]],
    stale: Iterable[tuple[SourceFile, Layout]],
) -> Plan:
    """The plan for the readable source files in scope.

    Args:
        staleness: What the store holds.
        tasks: The wanted tasks.
        current: The source files that need no work, with their rows.
        stale: The other source files.
    """
    num_files = num_articles = 0
    units: list[Unit] = []
    reasons: Counter[str] = Counter()
    for _, num_rows in current:
        num_files += 1
        num_articles += num_rows
    for source, layout in stale:
        units_of_file = staleness.units(source, layout)
        units += units_of_file
        reasons += staleness.reasons(source, units_of_file)
        num_files += 1
        num_articles += sum(layout.row_groups)
    rows_wanting: Counter[tuple[str, ...]] = Counter()
    for unit in units:
        rows_wanting[unit.tasks] += unit.num_rows
    planned: Counter[str] = Counter()
    for wanted, num_rows in rows_wanting.items():
        planned.update(dict.fromkeys(wanted, num_rows))
    return Plan(
        units=tuple(units),
        num_files=num_files,
        num_articles=num_articles,
        cells_total=num_articles * len(tasks),
        cells_planned=planned.total(),
        reasons=reasons,
        planned_per_task={task: planned[task] for task in tasks},
    )


def _check_apart(corpus: str, labels: str) -> None:
    """The label table must not be listed as corpus, nor the corpus as label files."""
    for outer, inner in ((corpus, labels), (labels, corpus)):
        outer_path, inner_path = (
            (uri if storage.is_remote(uri) else os.path.realpath(uri)).rstrip("/") + "/" for uri in (outer, inner)
        )
        if inner_path.startswith(outer_path) and not storage.is_hidden(inner_path[len(outer_path) : -1]):
            raise ConfigError(
                f"--labels {labels} and --corpus {corpus} lie in each other, so one would be read as the other; "
                "use separate directories, or keep the labels below one whose name starts with '_'"
            )


@dataclass(frozen=True)
class _Listing:
    """What lies in a corpus.

    Args:
        root: The directory that paths start from.
        sources: Its source files.
        ignored: Files that are not taken for Parquet.
        dangling: Links that lead nowhere: whether there are source files below them is unknown.
        is_one_file: The corpus is one file of `root`.
    """

    root: str
    sources: list[SourceFile]
    ignored: list[str]
    dangling: list[str]
    is_one_file: bool


def _list_corpus(corpus: str) -> _Listing:
    listed = storage.list_files(corpus)
    sources = [SourceFile(info.path, info.size, info.version) for info in listed if is_source(info.path)]
    ignored = [info.path for info in listed if not is_source(info.path)]
    if not sources:
        found = f"none of its {len(ignored)} files, such as {ignored[0]}," if ignored else "nothing there"
        raise DataError(f"--corpus {corpus}: {found} is a Parquet file by its name (.parquet); check the path")
    dangling = [info.path for info in listed if info.version == storage.DANGLING_LINK]
    is_one_file = len(listed) == 1 and storage.is_file(corpus)
    return _Listing(corpus.rsplit("/", 1)[0] if is_one_file else corpus, sources, ignored, dangling, is_one_file)


def _filter(sources: Sequence[SourceFile], wanted: Mapping[str, str]) -> list[SourceFile]:
    keys = partition_keys(source.path for source in sources) if wanted else []
    for key in wanted:
        if key not in keys:
            known = f"partition keys: {', '.join(keys)}" if keys else "its paths have no key=value directories"
            raise ConfigError(f"--partition {key}={wanted[key]}: the corpus is not partitioned by {key!r}; {known}")
    return [source for source in sources if in_partition(source.path, wanted)]


def _without_shadowing(
    sources: Sequence[SourceFile], columns: Collection[str]
) -> tuple[list[SourceFile], list[tuple[str, str]]]:
    """The source files without a partition key that has the name of a column, and the others with that as the reason.

    Readers give a partition key a column of its name, and would see only one of the two.
    """
    good, bad = [], []
    for source in sources:
        key = next((key for key in partition_keys([source.path]) if key in columns), None)
        if key is None:
            good.append(source)
        else:
            bad.append(
                (source.path, f"its partition key {key!r} is also a column of the label table; rename the directory")
            )
    return good, bad


def _shown(
    labels: str,
    definition: Definition,
    sources: Sequence[SourceFile],
    published: Mapping[str, FileInfo],
    schema: TableSchema,
) -> dict[SourceFile, int]:
    """The source files whose published file shows the wanted labels of their present content, with their rows."""
    if not schema.kinds.keys() >= set(definition.label_tasks):
        return {}
    there = [source for source in sources if published_path(source.path) in published]

    def read(source: SourceFile) -> int | None:
        path = published_path(source.path)
        found = read_published(labels, path, published[path])
        if found.footer is None or not found.has_columns(schema):
            return None
        is_shown = found.shows(source, definition.view, definition.label_tasks)
        return found.footer.num_rows if is_shown and found.footer.has_rows else None

    rows = storage.in_threads(read, there)
    return {source: num_rows for source, num_rows in zip(there, rows, strict=True) if num_rows is not None}


def _orphaned(
    labels: str, published: Mapping[str, FileInfo], listing: _Listing, partition: Mapping[str, str]
) -> list[str]:
    """Published files in scope whose source file is known to be gone, and whose rows are still there."""
    if listing.is_one_file:
        return []
    known = {source.path for source in listing.sources}
    unknown = tuple(f"{link}/" for link in listing.dangling)
    found = sorted(
        path
        for path in published
        if source_path_of(path) not in known and in_partition(path, partition) and not path.startswith(unknown)
    )
    files = storage.in_threads(lambda path: read_published(labels, path, published[path]), found)
    return [file.path for file in files if file.footer is None or file.footer.has_rows]


def _check_same_corpus(plan: Plan, corpus: str) -> None:
    """A mistyped corpus must not empty the table: to it, the labels of all other files are orphaned."""
    newest = next(iter(list_runs(plan.labels)), None)
    known = read_run(plan.labels, newest).corpus if newest else None
    if known != corpus:
        raise ConfigError(
            f"--prune would remove {len(plan.orphaned):,} published files, such as {plan.orphaned[0]}, because "
            f"--corpus {corpus} does not have their source files; but the newest run on {plan.labels} was for "
            f"{known or 'an unknown corpus'}. If the corpus has moved, run once without --prune"
        )


def _read_staleness(
    labels: str, definition: Definition, sources: Iterable[SourceFile]
) -> tuple[Staleness, list[LabelFile]]:
    """What the store holds of these source files, and which of their label files are damaged."""
    contents = {(source.path, content_id(source)) for source in sources}
    if not contents:
        return Staleness(definition, (), StoreListing({})), []
    listing = list_store(labels)
    label_sets = read_label_sets(labels, listing)
    # A set of which no file could be read is of unknown definition: its files are damaged ones.
    matter = {label_set.name for label_set in relevant_sets(definition, label_sets)}
    matter |= set(listing.label_sets) - {label_set.name for label_set in label_sets}
    files = [file for file, name in listing.names.items() if file.label_set in matter and name[:2] in contents]

    def is_damaged(file: LabelFile) -> bool:
        try:
            read_footer(labels, file, listing.sizes[file])
        except DamagedLabelFile:
            return True
        return False

    damaged = [file for file, bad in zip(files, storage.in_threads(is_damaged, files), strict=True) if bad]
    return Staleness(definition, label_sets, listing, damaged), damaged


def _read_layouts(
    root: str, stale: Iterable[SourceFile], definition: Definition, *, has_current: bool
) -> tuple[list[tuple[SourceFile, Layout]], list[tuple[str, str]]]:
    """Layouts of the readable files, and the reasons of the unreadable ones.

    Raises:
        DataError: No file is usable, and at least one for want of the columns: that is a wrong option, not bad files.
    """

    def read(source: SourceFile) -> tuple[SourceFile, Layout | UnreadableSource]:
        try:
            return source, read_layout(
                root,
                source,
                id_column=definition.id_column,
                text_columns=definition.text_columns,
                text_columns_required=definition.text_columns_required,
            )
        except UnreadableSource as error:
            return source, error

    results = list(storage.in_threads(read, stale))
    readable = [(source, found) for source, found in results if isinstance(found, Layout)]
    bad = [(source.path, found) for source, found in results if isinstance(found, UnreadableSource)]
    without_columns = [(path, reason) for path, reason in bad if isinstance(reason, MissingColumns)]
    if without_columns and not readable and not has_current:
        path, reason = without_columns[0]
        raise DataError(f"{storage.join(root, path)} has {reason}; name others with --id-column and --text-columns")
    return readable, [(path, str(reason)) for path, reason in bad]
