"""The trainings that a selection asks for, side by side on Ray; their records lie beside the configuration's output."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

import ray

from mtop_batch import storage
from mtop_batch.config.sections import Config
from mtop_batch.engine.monitoring.progress import Progress
from mtop_batch.engine.session import Resources, ray_session
from mtop_batch.engine.side_by_side import processes_per_node, side_by_side
from mtop_batch.engine.training.single_tasks import max_threads, ray_options
from mtop_batch.engine.training.workers import use_threads
from mtop_batch.lines import counted
from mtop_batch.model.encoder.head_masks import check_heads
from mtop_batch.precision import PrecisionChoice
from mtop_batch.selection.jobs import Job, Jobs
from mtop_batch.selection.prompt_groups import needs_trainings, open_tasks, with_like_groups
from mtop_batch.selection.records import KeptRecords, Record, record_uri, unfinished_of
from mtop_batch.selection.run_job import run_job
from mtop_batch.training.one_process import Encoder
from mtop_batch.training.settings import TaskData, single_worker
from mtop_batch.training.unfinished import Unfinished, discard_finished


def kept_beside(config: Config) -> str:
    """Where the records of a configuration's trainings lie unless they are wanted elsewhere."""
    return storage.absolute(config.output).rstrip("/") + ".selection"


@dataclass(frozen=True)
class _Shared:
    """What every worker is told.

    Args:
        data: Reference to the examples of all tasks.
        encoder: Reference to the encoder.
        kept: Directory of the records, for what is unfinished; None to keep nothing there.
        precision: As in the configuration.
        processes: How many share a node.
        max_threads: None for as many as there are cores.
    """

    data: ray.ObjectRef[Mapping[str, TaskData]]
    encoder: ray.ObjectRef[Encoder]
    kept: str | None
    precision: PrecisionChoice
    processes: int
    max_threads: int | None

    def unfinished(self, job: Job) -> Unfinished:
        """What an interrupted job left."""
        return unfinished_of(self.kept, job)


def run_job_remotely(job: Job, shared: _Shared) -> Record:
    """A Ray task: one training.

    Raises:
        MtopError: As `run_job`.
    """
    use_threads(shared.processes, shared.max_threads)
    data, encoder = ray.get([shared.data, shared.encoder])
    worker = single_worker(shared.precision)
    return run_job(job, data, encoder, worker=worker, unfinished=shared.unfinished(job))


@contextmanager
def trainings(
    config: Config, data: Sequence[TaskData], encoder: Encoder, kept: str, progress: Progress
) -> Iterator[tuple[Jobs, KeptRecords]]:
    """The jobs for the tasks of a configuration, and what runs them; Ray starts with the first that is not known.

    Args:
        config: With all tasks.
        data: Of each, in the same order.
        encoder: That of the configuration.
        kept: Directory of the records.
        progress: Where to show how it gets on.

    Raises:
        ConfigError: The heads of the encoder cannot be had one by one.
    """
    check_heads(encoder.backbone)
    discard_finished(kept, lambda digest: storage.is_file(record_uri(kept, digest)))
    by_name = {item.task.name: item for item in data}
    with ExitStack() as until_done:
        started: list[tuple[Resources, ray.ObjectRef[Mapping[str, TaskData]], ray.ObjectRef[Encoder]]] = []

        def execute(jobs: Sequence[Job]) -> Iterator[tuple[Job, Record]]:
            if not started:
                resources = until_done.enter_context(ray_session())
                started.append((resources, ray.put(by_name), ray.put(encoder)))
            resources, data_ref, encoder_ref = started[0]
            is_shared = storage.is_remote(kept) or resources.num_nodes == 1
            shared = _Shared(
                data_ref,
                encoder_ref,
                kept if is_shared else None,
                config.train.precision,
                processes_per_node(len(jobs), resources),
                max_threads(),
            )
            options = ray_options(len(jobs), resources, config.train.max_failures)
            progress.phase(_PHASES[jobs[0].kind], len(jobs), "trainings")
            waiting = partial(progress.advance, 0)
            for job, record in side_by_side(
                run_job_remotely, jobs, shared, options, name_of=lambda job: job.title, waiting=waiting
            ):
                yield job, record
                shared.unfinished(job).discard()
                progress.advance(1, f"{job.title}: {record.score:.4f}")

        yield Jobs(config, by_name, encoder.backbone), KeptRecords(kept, execute)


_PHASES = {
    "measure": "train each task alone and measure its heads",
    "train": "train sets of tasks",
    "explore": "let a bandit draw tasks",
}


def with_groups(config: Config, data: Sequence[TaskData], encoder: Encoder, progress: Progress) -> Config:
    """The configuration with tasks in prompt groups of those that are alike, if it asks for that; else as it is.

    Args:
        config: Of a training.
        data: Of every task, in the order of the configuration.
        encoder: That of the configuration.
        progress: Where to show how it gets on.

    Raises:
        MtopError: A task cannot be trained alone, or the heads of the encoder cannot be had one by one.
    """
    free = open_tasks(config)
    if not needs_trainings(config):
        grouped, known = with_like_groups(config), ""
    else:
        with trainings(config, data, encoder, kept_beside(config), progress) as (jobs, records):
            grouped = with_like_groups(config, jobs, records)
        known = f", {len(records.reused):,} measured before" if records.reused else ""
    if free:
        names = {task.name for task in free}
        groups = {task.prompt_group for task in grouped.task if task.name in names}
        progress.note(f"{counted(len(groups), 'prompt group')} of {counted(len(free), 'task')}{known}")
    return grouped
