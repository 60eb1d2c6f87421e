"""Garbage collection: label files that nothing published needs, and no recent run wanted.

Label files are removed by their exact names, under the table's lease. Readers never notice, for the published table
does not read the store; what is removed and wanted again later is computed again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice

from mtop_batch import storage
from mtop_batch.errors import ConfigError, DamagedLabelFile
from mtop_batch.table.definition import LabelSet, ViewDefinition
from mtop_batch.table.footer import PublishedFooter
from mtop_batch.table.names import content_id, published_path
from mtop_batch.table.published import list_published, read_published
from mtop_batch.table.runs import list_runs, read_run
from mtop_batch.table.store import LabelFile, StoreListing, list_store, read_footer, read_label_sets

KEEP_RUNS = 10
"""Labels of the definitions that this many newest runs wanted are kept, so that they can be published again."""
MAX_SHARE = 0.5


@dataclass(frozen=True)
class Garbage:
    """What can be removed.

    Args:
        files: The label files, with their bytes.
        num_files: Of the whole store.
        num_bytes: Of the whole store.
    """

    files: Mapping[LabelFile, int]
    num_files: int
    num_bytes: int

    @property
    def bytes_to_free(self) -> int:
        """Of the files that can be removed."""
        return sum(self.files.values())

    def __str__(self) -> str:
        return (
            f"{len(self.files):,} of {self.num_files:,} label files can be removed, "
            f"{self.bytes_to_free / 1e6:,.1f} of {self.num_bytes / 1e6:,.1f} MB"
        )


def find_garbage(labels: str, *, keep_runs: int = KEEP_RUNS) -> Garbage:
    """The label files that can be removed. Needed are those that a published file was made of, and those that one of
    the newest runs wanted, of a content that is published or newer.

    Args:
        labels: The label table.
        keep_runs: How many newest runs count.

    Raises:
        LabelTableError: The table cannot be read.
    """
    listing = list_store(labels)  # first: what is written from now on is not garbage
    published = _published(labels)
    needed = {LabelFile(*name) for footer in published.values() for name in footer.label_files}
    wanted = [read_run(labels, run).wanted for run in islice(list_runs(labels), keep_runs)]
    kept_sets = {
        found.name for found in read_label_sets(labels, listing) if any(_matches(view, found) for view in wanted)
    }
    garbage = {
        file: listing.sizes[file]
        for file in listing.sizes
        if file not in needed and not (file.label_set in kept_sets and _may_be_wanted(labels, listing, file, published))
    }
    return Garbage(garbage, len(listing.sizes), sum(listing.sizes.values()))


def remove_garbage(
    labels: str, garbage: Garbage, *, force: bool = False, check: Callable[[], None] = lambda: None
) -> int:
    """Remove label files; returns how many. If it fails, the rest are still there.

    Args:
        labels: The label table.
        garbage: What to remove.
        force: Also if that is most of the store.
        check: Called before each removal; raises if this process may not write any more.

    Raises:
        ConfigError: It is more than half of the store, and not forced.
        LabelTableError: The storage does not answer or refuses.
    """
    if len(garbage.files) > MAX_SHARE * garbage.num_files and not force:
        raise ConfigError(f"{garbage}: that is more than {MAX_SHARE:.0%}; if it is right, give --force")

    def remove(file: LabelFile) -> None:
        check()
        storage.delete(file.uri(labels))

    return sum(1 for _ in storage.in_threads(remove, garbage.files))


def _published(labels: str) -> dict[str, PublishedFooter]:
    """The records of all published files that can be read, by path."""
    infos = list_published(labels)
    found = storage.in_threads(lambda path: read_published(labels, path, infos[path]), infos)
    return {file.path: file.footer for file in found if file.footer is not None}


def _matches(view: ViewDefinition, label_set: LabelSet) -> bool:
    return any(view.matches(label_set.view, task) for task in label_set.fingerprints)


def _may_be_wanted(
    labels: str, listing: StoreListing, file: LabelFile, published: Mapping[str, PublishedFooter]
) -> bool:
    """Whether a label file is of the published content of its source, or of one that is newer."""
    name = listing.names[file]
    footer = published.get(published_path(name.source_path))
    if footer is None or content_id(footer.source) == name.content:
        return True
    try:
        return read_footer(labels, file, listing.sizes[file]).run > footer.run
    except DamagedLabelFile:
        return False
