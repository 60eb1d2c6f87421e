"""A training as a run of MLflow: its settings, its curves, and where its bundle is."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

import mlflow
from mlflow.entities import Metric

from mtop_batch.config.sections import Config
from mtop_batch.errors import ConfigError, one_line

DEFAULT_EXPERIMENT = "mtop-batch"
_RUN_TAG = "mtop_run"
_MAX_METRICS = 1000  # that the server takes at once


class MLflowRun:
    """One run of MLflow; a training that resumes goes on in that which it began.

    Args:
        client: Of MLflow.
        run_id: Of the run.
        resumed: An earlier process has begun it.
    """

    name = "MLflow"

    def __init__(self, client: Any, run_id: str, *, resumed: bool) -> None:
        self._client, self._run_id, self._resumed = client, run_id, resumed

    @classmethod
    def begin(cls, target: str, run: str, config: Config) -> MLflowRun:
        """Begin a run, or go on in that of an interrupted training.

        Args:
            target: A tracking URI; or the name of an experiment at the URI that MLflow's own settings say.
            run: Names the training: a digest of its configuration and examples.
            config: Of which the settings are logged.

        Raises:
            ConfigError: MLflow does not answer, or refuses.
        """
        is_uri = "://" in target or target.startswith(("file:", "databricks"))
        uri = target if is_uri else None
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", DEFAULT_EXPERIMENT) if is_uri else target
        try:
            client = mlflow.MlflowClient(tracking_uri=uri)
            experiment = client.get_experiment_by_name(name)
            experiment_id = client.create_experiment(name) if experiment is None else experiment.experiment_id
            found = client.search_runs([experiment_id], filter_string=f"tags.{_RUN_TAG} = '{run}'", max_results=1)
            if found and found[0].info.status != "FINISHED":
                run_id = found[0].info.run_id
                client.update_run(run_id, status="RUNNING")
                return cls(client, run_id, resumed=True)
            run_id = client.create_run(experiment_id, tags={_RUN_TAG: run}, run_name=run).info.run_id
            for key, value in _settings(config):
                client.log_param(run_id, key, value)
        except Exception as error:  # of the network, of the server, of what MLflow stores in
            raise ConfigError(
                f"train.mlflow = {target!r} cannot be used: {one_line(error, with_type=True)}; check the address and "
                "that the server answers, or leave the key out"
            ) from error
        return cls(client, run_id, resumed=False)

    def last_step(self, curve: str) -> int:
        """The last step of a curve that MLflow has; -1 if there is none."""
        if not self._resumed:
            return -1
        return max((point.step for point in self._client.get_metric_history(self._run_id, curve)), default=-1)

    def write(self, values: Mapping[str, float], step: int, time_s: float) -> None:
        """Add a point to each of some curves."""
        points = [Metric(curve, value, int(1000 * time_s), step) for curve, value in values.items()]
        for start in range(0, len(points), _MAX_METRICS):
            self._client.log_batch(self._run_id, metrics=points[start : start + _MAX_METRICS])

    def keep(self) -> None:
        """Nothing is left to do: the server has it."""

    def finish(self, output: str) -> None:
        """Say where the bundle is, and that the run is done."""
        self._client.set_tag(self._run_id, "mtop_bundle", output)
        self._client.set_terminated(self._run_id, status="FINISHED")

    def close(self, *, failed: bool) -> None:
        """Say so if the training failed; the same command goes on in this run."""
        if failed:
            self._client.set_terminated(self._run_id, status="FAILED")


def _settings(config: Config) -> Iterator[tuple[str, Any]]:
    """The keys of the sections that say how a model is made and trained; the tasks' data are no settings."""
    for section in ("backbone", "model", "train"):
        yield from _flat(section, getattr(config, section).model_dump(mode="json"))
    yield "tasks", len(config.task)


def _flat(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, of_key in value.items():
            yield from _flat(f"{name}.{key}", of_key)
    elif value is not None:
        yield name, value
