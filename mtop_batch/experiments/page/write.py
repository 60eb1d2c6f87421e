"""Writes the page of results and its plots from the records."""

from __future__ import annotations

from pathlib import PurePosixPath

from mtop_batch import storage
from mtop_batch.experiments.page.page import results_page
from mtop_batch.experiments.page.plots import results_plots
from mtop_batch.experiments.runs.records import read_records


def write_results(results: str) -> str:
    """Write `<results>.md`, and the plots into `<results>`.

    Args:
        results: The directory of the records.

    Returns:
        The page.

    Raises:
        ConfigError: matplotlib is not installed.
        DataError: A file is no record.
        LabelTableError: The storage cannot be reached or refuses.
    """
    results = results.rstrip("/")
    records = read_records(results)
    name = PurePosixPath(results).name
    images = {}
    for file, title, content in results_plots(records):
        storage.write_bytes(storage.join(results, file), content)
        images[title] = f"{name}/{file}"
    page = f"{results}.md"
    storage.write_bytes(page, results_page(records, name, images).encode())
    return page
