"""transformers without its bars and remarks: a job's log has lines of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """While the block runs, transformers draws no progress bars and logs errors only; then all is as it was."""
    verbosity, draws_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if draws_bars:
            logging.enable_progress_bar()
