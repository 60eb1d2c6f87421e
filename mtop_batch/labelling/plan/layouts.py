"""The layouts of the source files that a run has to look into, and why others cannot be read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from mtop_batch import storage
from mtop_batch.corpus.files import AccessDenied, Layout, MissingColumns, SourceFile, UnreadableSource, read_layout
from mtop_batch.errors import DataError
from mtop_batch.labelling.plan.work import described_inputs
from mtop_batch.lines import shown
from mtop_batch.table.definition import Definition


def read_layouts(
    root: str, stale: Iterable[SourceFile], definition: Definition, *, has_current: bool
) -> tuple[list[tuple[SourceFile, Layout]], list[tuple[str, str]]]:
    """Layouts of the readable files, and the reasons of the unreadable ones.

    Raises:
        AccessRefused: No file may be read, or none any more.
        DataError: No file is usable, and at least one for want of the columns: that is a wrong option, not bad files.
    """

    def read(source: SourceFile) -> tuple[SourceFile, Layout | UnreadableSource]:
        try:
            return source, read_layout(
                root,
                source,
                id_column=definition.id_column,
                inputs=definition.inputs,
                text_columns_required=definition.text_columns_required,
                vector_columns=[spec.column for spec in definition.vector_inputs],
            )
        except UnreadableSource as error:
            return source, error

    results = list(storage.in_threads(read, stale))
    _check_not_all_refused(root, results, read, has_current=has_current)
    readable = [(source, found) for source, found in results if isinstance(found, Layout)]
    bad = [(source.path, found) for source, found in results if isinstance(found, UnreadableSource)]
    without_columns = [(path, reason) for path, reason in bad if isinstance(reason, MissingColumns)]
    if without_columns and not readable and not has_current:
        path, reason = without_columns[0]
        raise DataError(
            f"{shown(storage.join(root, path))} has {reason}; name others with --id-column and --text-columns (the "
            f"tasks read {described_inputs(definition.inputs)})"
        )
    return readable, [(path, str(reason)) for path, reason in bad]


def _check_not_all_refused(
    root: str,
    results: Sequence[tuple[SourceFile, Layout | UnreadableSource]],
    read: Callable[[SourceFile], tuple[SourceFile, Layout | UnreadableSource]],
    *,
    has_current: bool,
) -> None:
    """One file that may not be read is a bad file; where no other may be either, it is the credentials."""
    refused = next(((source, found) for source, found in results if isinstance(found, AccessDenied)), None)
    if refused is None:
        return
    readable = next((source for source, found in results if isinstance(found, Layout)), None)
    none_is_readable = not has_current if readable is None else isinstance(read(readable)[1], AccessDenied)
    if none_is_readable:
        source, error = refused
        raise error.as_storage_error(storage.join(root, source.path))
