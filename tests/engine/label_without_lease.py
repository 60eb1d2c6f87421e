"""`mtop label` without the lease, so that two of them write one label table at once.

PYTHONPATH=. python -m tests.engine.label_without_lease label --model ... --corpus ... --labels ...
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

from mtop_batch.cli.commands import main


class NoLease:
    """In place of a lease and of its token: whoever asks may write."""

    @property
    def token(self) -> NoLease:
        return self

    def check(self) -> None:
        pass


@contextmanager
def no_lease(*_: object, **__: object) -> Iterator[NoLease]:
    yield NoLease()


if __name__ == "__main__":
    from tests.engine import label_without_lease  # Ray's workers import the class from there, not from `__main__`

    with mock.patch("mtop_batch.engine.labelling.label.hold_lease", label_without_lease.no_lease):
        main(sys.argv[1:])
