"""The exceptions users see.

    MtopError
    ├── ConfigError       a configuration file, option or backbone that cannot work
    ├── TaskError         a task definition that cannot work
    ├── DataError         training data whose schema or labels do not fit
    ├── BundleError       a model bundle that is missing, damaged or of another version
    ├── LabelTableError   a label table or corpus that cannot be read or written
    │   ├── DamagedLabelFile
    │   └── LeaseLost
    └── JobError          a job that ended before its work was done

Every message says what is wrong, the offending value, what is allowed and what to do next. A bad *row* or
a bad *file of a corpus* is data, not an exception: it is recorded and passed over.
"""

from __future__ import annotations


class MtopError(Exception):
    """Base of all errors raised on purpose; `exit_code` is what the `mtop` command exits with."""

    exit_code = 2


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


class DamagedLabelFile(LabelTableError):
    """A file among the label files that is no label file, or not a readable one."""


class LeaseLost(LabelTableError):
    """This run may not write any more; trying again is of no use."""


class JobError(MtopError):
    """A job that ended before its work was done, for another reason than its input; the same command resumes."""

    exit_code = 1
