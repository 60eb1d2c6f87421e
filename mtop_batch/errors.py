"""The exceptions users see.

    MtopError
    ├── ConfigError       a configuration file, option or backbone that cannot work
    ├── TaskError         a task definition that cannot work
    ├── DataError         training data whose schema or labels do not fit
    ├── BundleError       a model bundle that is missing, damaged or of another version
    ├── LabelTableError   a label table or corpus that cannot be read or written
    │   ├── StorageError      storage that does not answer, or refuses
    │   │   ├── AccessRefused
    │   │   └── StorageFull
    │   ├── PathTaken
    │   ├── DamagedLabelFile
    │   ├── NotInTable
    │   └── LeaseLost
    └── JobError          a job that ended before its work was done

Every message says what is wrong, the offending value, what is allowed and what to do next. A bad *row* or
a bad *file of a corpus* is data, not an exception: it is recorded and passed over.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from mtop_batch.lines import without_secrets


class MtopError(Exception):
    """Base of all errors raised on purpose; `exit_code` is what the `mtop` command exits with."""

    exit_code = 2

    def __str__(self) -> str:
        return without_secrets(super().__str__())


class ConfigError(MtopError):
    """A configuration, command option or backbone that cannot work; raised before any work starts."""


class TaskError(MtopError):
    """A task definition that cannot work, or a task name that a bundle does not have."""


class DataError(MtopError):
    """Labelled data whose columns, types or labels do not fit its task."""


class BundleError(MtopError):
    """A bundle that is missing, incomplete, damaged, or written by another version."""


class LabelTableError(MtopError):
    """A corpus or label table that cannot be listed, read or written; the same command resumes."""

    exit_code = 1


class StorageError(LabelTableError):
    """Storage that does not answer, or refuses; trying again may help."""


class AccessRefused(StorageError):
    """Storage that answers, and refuses: credentials are missing, wrong, expired or not enough, or there is no bucket.

    Says nothing about files: what is refused is neither absent nor damaged.
    """


class StorageFull(StorageError):
    """A disk without room; trying again at once does not help."""


class PathTaken(LabelTableError):
    """A file that cannot be written where it belongs: there is a directory, or a directory above it is a file."""


class DamagedLabelFile(LabelTableError):
    """A file among the label files that is no label file, or not a readable one."""


class NotInTable(LabelTableError):
    """What is asked of a label table is not there, or there is no label table: the request is wrong, not the table."""

    exit_code = 2


class LeaseLost(LabelTableError):
    """This run may not write any more; trying again is of no use."""


class JobError(MtopError):
    """A job that ended before its work was done, for another reason than its input; the same command resumes."""

    exit_code = 1


def one_line(error: BaseException, *, with_type: bool = False) -> str:
    """The line of an error's message that says most: the first, or the last where there is a traceback.

    Args:
        error: The error; one without a message gives its type.
        with_type: Begin with the type, as the last line of a traceback does.

    >>> one_line(ValueError("\\n no such column\\n  in part 3")), one_line(KeyError("x"), with_type=True)
    ('no such column', "KeyError: 'x'")
    """
    lines = [line.strip() for line in without_secrets(str(error)).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    if any("Traceback" in line for line in lines):
        return lines[-1]
    return f"{type(error).__name__}: {lines[0]}" if with_type else lines[0]


@contextmanager
def at_the_start() -> Iterator[None]:
    """Before any work, access that is refused is a wrong option; later it is an accident.

    Raises:
        ConfigError: Access was refused.
    """
    try:
        yield
    except AccessRefused as error:
        raise ConfigError(str(error)) from error
