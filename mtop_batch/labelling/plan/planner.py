"""From two URIs to a plan: lists the corpus and the label table, and reads the footers that the plan depends on.

Source files whose published file shows all that is wanted are neither opened nor looked up in the store. So a run that
finds nothing to do costs two listings, and one footer per published file in scope.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

from mtop_batch import storage
from mtop_batch.corpus.files import Layout, SourceFile
from mtop_batch.corpus.listing import Listing, list_corpus
from mtop_batch.corpus.paths import in_partition, parse_partitions, partition_keys
from mtop_batch.errors import ConfigError, DamagedLabelFile
from mtop_batch.labelling.plan.layouts import read_layouts
from mtop_batch.labelling.plan.removals import check_same_corpus, other_corpus
from mtop_batch.labelling.plan.staleness import Staleness, relevant_sets
from mtop_batch.labelling.plan.work import Plan, Unit
from mtop_batch.storage.local import FileInfo
from mtop_batch.table.definition import VECTOR, Definition
from mtop_batch.table.names import content_id, directories, displaced, published_path, source_path_of
from mtop_batch.table.published import TableSchema, list_published, read_published, read_table_schema
from mtop_batch.table.store import LabelFile, StoreListing, list_store, read_footer, read_label_sets


def plan_labels(
    corpus: str,
    labels: str,
    definition: Definition,
    *,
    partitions: Sequence[str] = (),
    allow_empty: bool = False,
    prune: bool = False,
) -> Plan:
    """Compare a corpus with its label table, and plan what makes every wanted cell current. Writes nothing.

    Args:
        corpus: A directory or prefix with Parquet files anywhere below, or one file.
        labels: The label table; it need not exist yet.
        definition: What is wanted.
        partitions: `key=value` filters on hive partitions, all of which must hold.
        allow_empty: No source file, nor one that is gone, need be in the partition.
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
    listing = list_corpus(corpus, labels)
    columns = read_table_schema(labels) or TableSchema()
    names = columns.with_tasks(definition.kinds).arrow.names
    published = list_published(labels)
    known = map(source_path_of, published)
    found = listing.in_partition(wanted_partition, known=known, allow_empty=allow_empty)
    in_scope, bad = _without_bad_paths(found, listing.sources, names)
    current_rows = _shown(labels, definition, in_scope, published, columns)

    stale = [source for source in in_scope if source not in current_rows]
    layouts, unreadable = read_layouts(listing.root, stale, definition, has_current=bool(current_rows))
    # Vectors are not published: the store is asked for them.
    look = [*(source for source, _ in layouts), *(current_rows if VECTOR in definition.fingerprints else ())]
    staleness, damaged = _read_staleness(labels, definition, look)
    without_vectors = [
        source
        for source, num_rows in current_rows.items()
        if VECTOR in definition.fingerprints and not staleness.has_vectors(source, num_rows)
    ]
    more_layouts, more_unreadable = read_layouts(listing.root, without_vectors, definition, has_current=True)
    current = [(source, num_rows) for source, num_rows in current_rows.items() if source not in set(without_vectors)]
    readable = sorted([*layouts, *more_layouts], key=lambda item: item[0].path)
    targets = {published_path(source.path) for source, _ in layouts}
    gone = displaced(published, targets)
    plan = replace(
        build_plan(staleness, definition.fingerprints, current, readable),
        to_publish=tuple(source for source, _ in layouts),
        corpus=listing.root,
        labels=labels,
        passes=definition.passes,
        text_limits=definition.text_limits,
        unreadable=(*bad, *unreadable, *more_unreadable),
        ignored_files=tuple(listing.ignored),
        hidden_files=tuple(listing.hidden),
        damaged=tuple(damaged),
        displaced=tuple(gone),
        orphaned=tuple(
            path for path in _orphaned(labels, published, listing, wanted_partition) if path not in set(gone)
        ),
        num_published=len(published),
        other_corpus=other_corpus(labels, listing.root) if gone or targets & published.keys() else "",
        prune=prune,
        inputs=definition.inputs,
    )
    if plan.prune and plan.orphaned:
        check_same_corpus(plan)
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
        below = storage.path_below(inner, outer)
        if below is not None and not storage.is_hidden(f"{below}/"):
            raise ConfigError(
                f"--labels {labels} and --corpus {corpus} lie in each other, so one would be read as the other; "
                "use separate directories, or keep the labels below one whose name starts with '_'"
            )


def _without_bad_paths(
    sources: Sequence[SourceFile], all_sources: Sequence[SourceFile], columns: Collection[str]
) -> tuple[list[SourceFile], list[tuple[str, str]]]:
    """The source files whose labels can be published, and the others with the reason.

    Readers give a partition key a column of its name, and would see only one of the two. And what is a directory on one
    storage may be a file as well on another, but not in the published table.
    """
    all_paths = {published_path(source.path) for source in all_sources}
    good, bad = [], []
    for source in sources:
        key = next((key for key in partition_keys([source.path]) if key in columns), None)
        if key is not None:
            reason = f"its partition key {key!r} is also a column of the label table; rename the directory"
            bad.append((source.path, reason))
        elif not all_paths.isdisjoint(directories(published_path(source.path))):
            reason = "a directory above it has the name of another source file, whose labels are there; rename one"
            bad.append((source.path, reason))
        else:
            good.append(source)
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
    labels: str, published: Mapping[str, FileInfo], listing: Listing, partition: Mapping[str, str]
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
