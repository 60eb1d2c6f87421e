"""What a labelling run tells Prometheus while it goes on, through the exporter that Ray has on each node.

Ray exports a counter `x` as `ray_x_total` and a gauge `x` as `ray_x`. How a run ends is not here, for a process that
has ended is not scraped: exit code, report and `--notify` say that.
"""

from __future__ import annotations

from collections.abc import Mapping

from ray.util.metrics import Counter, Gauge

from mtop_batch.labelling.run.stages import UnitResult

COUNTERS: Mapping[str, str] = {
    "mtop_articles_labelled": "Articles that got labels.",
    "mtop_articles_with_errors": "Articles that cannot be labelled.",
    "mtop_cells": "Cells (articles x tasks) that were computed.",
    "mtop_tokens": "Tokens that went through the model, without padding.",
    "mtop_read_seconds": "Seconds of reading, over all processes.",
    "mtop_tokenise_seconds": "Seconds of tokenising, over all processes.",
    "mtop_model_seconds": "Seconds in which labelling actors were at work.",
    "mtop_write_seconds": "Seconds of writing, over all processes.",
    "mtop_retries": "Requests that storage did not answer.",
    "mtop_unreadable_files": "Units of source files that cannot be read.",
    "mtop_actors_lost": "Labelling actors that were lost and replaced.",
}
GAUGES: Mapping[str, str] = {
    "mtop_articles_planned": "Articles that the run is to label.",
    "mtop_articles_left": "Those that are still to be labelled.",
    "mtop_actors": "Labelling actors that there are to be.",
    "mtop_units_waiting": "Units that wait for storage.",
}
_IN_PLACE_OF_MODEL = ("probes", "decide")
"""Stages of units for which no model runs."""
EXPORTED = frozenset([*(f"ray_{name}_total" for name in COUNTERS), *(f"ray_{name}" for name in GAUGES)])
"""The names under which Prometheus finds them."""


class RunMetrics:
    """The metrics of a run; make it when Ray is connected.

    Args:
        labels: The label table, by which runs are told apart.
        num_articles: That the run is to label.
        num_actors: Labelling actors that there are to be.
    """

    def __init__(self, labels: str, num_articles: int, num_actors: int) -> None:
        self._counters = {name: Counter(name, about, tag_keys=("labels",)) for name, about in COUNTERS.items()}
        self._gauges = {name: Gauge(name, about, tag_keys=("labels",)) for name, about in GAUGES.items()}
        for metric in (*self._counters.values(), *self._gauges.values()):
            metric.set_default_tags({"labels": labels})
        self._left = num_articles
        self._gauges["mtop_articles_planned"].set(num_articles)
        self._gauges["mtop_articles_left"].set(num_articles)
        self._gauges["mtop_actors"].set(num_actors)
        self._gauges["mtop_units_waiting"].set(0)

    def unit_done(self, result: UnitResult) -> None:
        """Count a unit."""
        self._left -= result.rows
        self._gauges["mtop_articles_left"].set(max(0, self._left))
        self._count("mtop_articles_labelled", result.labelled)
        self._count("mtop_articles_with_errors", result.errors)
        self._count("mtop_cells", result.cells)
        self._count("mtop_tokens", result.num_tokens)
        self._count("mtop_retries", result.retries)
        self._count("mtop_unreadable_files", int(result.unreadable is not None))
        for stage, seconds in result.seconds.items():
            self._count(f"mtop_{'model' if stage in _IN_PLACE_OF_MODEL else stage}_seconds", seconds)

    def actor_lost(self) -> None:
        """Count a labelling actor that another one replaces."""
        self._count("mtop_actors_lost", 1)

    def waiting(self, num_units: int) -> None:
        """So many units wait for storage now."""
        self._gauges["mtop_units_waiting"].set(num_units)

    def _count(self, name: str, amount: float) -> None:
        if amount > 0:  # Ray refuses 0
            self._counters[name].inc(amount)
