"""What lies in a corpus: its source files, which of them are in a partition, and what is passed over."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from mtop_batch import storage
from mtop_batch.corpus.files import SourceFile
from mtop_batch.corpus.paths import empty_partition, in_partition, is_source, other_keys, partition_keys
from mtop_batch.errors import ConfigError, DataError
from mtop_batch.lines import shown
from mtop_batch.storage.table_formats import check_plain_files


@dataclass(frozen=True)
class Listing:
    """What lies in a corpus.

    Args:
        root: The directory that paths start from.
        sources: Its source files.
        ignored: Files that are not taken for Parquet.
        hidden: Parquet files that are passed over because a name on their path starts with `_` or `.`.
        dangling: Links that lead nowhere: whether there are source files below them is unknown.
        is_one_file: The corpus is one file of `root`.
    """

    root: str
    sources: Sequence[SourceFile]
    ignored: Sequence[str] = ()
    hidden: Sequence[str] = ()
    dangling: Sequence[str] = ()
    is_one_file: bool = False

    def in_partition(
        self, wanted: Mapping[str, str], *, known: Iterable[str] = (), allow_empty: bool = False
    ) -> list[SourceFile]:
        """The source files of a partition.

        Args:
            wanted: `key=value` filters, all of which must hold.
            known: Paths of files that are gone from the corpus, in which a partition may be all the same.
            allow_empty: No file need be in the partition.

        Raises:
            ConfigError: No file has such a key, or none is in the partition.
        """
        paths = [*(source.path for source in self.sources), *known]
        keys = partition_keys(paths) if wanted else []
        for key, value in wanted.items():
            if key not in keys:
                there = other_keys(key, keys)
                raise ConfigError(f"--partition {key}={value}: the corpus is not partitioned by {key!r}; {there}")
        if not allow_empty and (problem := empty_partition(paths, wanted)):
            raise ConfigError(f"--partition: the corpus has {problem}; correct it, or say --allow-empty")
        return [source for source in self.sources if in_partition(source.path, wanted)]


def list_corpus(corpus: str, labels: str | None = None) -> Listing:
    """List a corpus: the Parquet files below a directory or prefix, or the one file that it is, whatever its name.

    Args:
        corpus: The address of the corpus.
        labels: The label table; where it lies in the corpus it is no part of it.

    Raises:
        DataError: There is no Parquet file, or the files belong to a table that says by itself which of them count.
        StorageError: The storage cannot be reached or refuses.
    """
    listed = storage.list_files(corpus, hidden=True)
    if len(listed) == 1 and storage.is_file(corpus):
        (info,) = listed
        return Listing(corpus.rsplit("/", 1)[0], [SourceFile(info.path, info.size, info.version)], is_one_file=True)
    check_plain_files(corpus, (info.path for info in listed))
    own = None if labels is None else storage.path_below(labels, corpus)
    visible = [info for info in listed if not storage.is_hidden(info.path)]
    sources = [SourceFile(info.path, info.size, info.version) for info in visible if is_source(info.path)]
    ignored = [info.path for info in visible if not is_source(info.path)]
    hidden = [
        info.path
        for info in listed
        if storage.is_hidden(info.path) and is_source(info.path) and not _is_inside(info.path, own)
    ]
    if not sources:
        raise DataError(f"--corpus {corpus}: {_nothing(corpus, ignored, hidden)}; check the path")
    dangling = [info.path for info in visible if info.version == storage.DANGLING_LINK]
    return Listing(corpus, sources, ignored, hidden, dangling)


def _is_inside(path: str, directory: str | None) -> bool:
    return directory is not None and path.startswith(f"{directory}/")


def _nothing(corpus: str, ignored: Collection[str], hidden: Collection[str]) -> str:
    if hidden:
        example = next(iter(hidden))
        return (
            f"its {len(hidden)} Parquet files, such as {shown(example)}, are hidden by a name that starts with '_' or "
            "'.'; rename it, or name one file"
        )
    if not ignored:
        return "there is nothing in it" if storage.exists(corpus) else "it does not exist"
    example = shown(next(iter(ignored)))
    return f"none of its {len(ignored)} files, such as {example}, is a Parquet file by its name (.parquet)"
