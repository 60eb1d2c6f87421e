"""The two phases of a training on Ray: each task alone on the frozen backbone, then all tasks together."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar, cast

import ray
from ray.exceptions import RayTaskError

# `ray.train` exports the same, but tells type checkers that it is the first version.
from ray.train.v2.api.config import CheckpointConfig, FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.train.v2.api.exceptions import TrainingFailedError
from ray.train.v2.api.result import Result
from ray.train.v2.torch.torch_trainer import TorchTrainer
from torch import Tensor
from transformers import PreTrainedModel

from mtop_batch.config.sections import Config, TrainConfig
from mtop_batch.engine.events import EventQueue
from mtop_batch.engine.memory import KEEP_FREED_MEMORY
from mtop_batch.engine.monitor import TrainingMonitor
from mtop_batch.engine.run_directory import RunDirectory
from mtop_batch.engine.session import Resources
from mtop_batch.engine.workers import WARM_START_PHASE, MultiTaskJob, SingleTaskJob, train_worker, warm_start
from mtop_batch.errors import JobError, MtopError
from mtop_batch.model.kinds.mtop import MTOPModel
from mtop_batch.training.checkpoint import read_final_weights
from mtop_batch.training.loop import FitResult
from mtop_batch.training.sampling import num_steps
from mtop_batch.training.settings import TaskData, TrainSettings

T = TypeVar("T")

_POLL_S = 1.0
_MAX_TASKS_PER_GPU = 4
_CHECKPOINTS_TO_KEEP = 2
_KEEP_MEMORY = {"env_vars": dict(KEEP_FREED_MEMORY)}


@dataclass(frozen=True)
class Phases:
    """What both phases need.

    Args:
        config: Of the training.
        data: Of every task, in the order of the configuration.
        pad_token_id: Of the tokenizer.
        resources: Of the connected Ray.
        run: Where the phases leave what they have done.
        monitor: Where their events go.
        events: What carries them there.
    """

    config: Config
    data: Sequence[TaskData]
    pad_token_id: int
    resources: Resources
    run: RunDirectory
    monitor: TrainingMonitor
    events: EventQueue

    def single_tasks(self, backbone: PreTrainedModel) -> dict[str, dict[str, Tensor]]:
        """Each task's prompts, pooler and head from a training of its own (paper, section 4.3), side by side.

        What an interrupted run has finished is taken from the run's directory.

        Raises:
            MtopError: A task cannot be trained.
        """
        settings = single_task_settings(self.config.train)
        steps = {d.task.name: num_steps(len(d.train.tokens), settings.batch_size, settings.epochs) for d in self.data}
        kept = {name: self.run.task(name) for name in steps}
        done = {name: tensors for name, tensors in kept.items() if tensors is not None}
        self.monitor.begin_single_tasks(WARM_START_PHASE, steps, done)
        options = single_task_options(len(self.data), self.resources, self.config.train.max_failures)
        train_one = ray.remote(warm_start).options(**options)
        backbone_ref, job = ray.put(backbone), self._single_task_job(settings)
        refs = {
            item.task.name: train_one.remote(backbone_ref, item, job)
            for item in self.data
            if item.task.name not in done
        }

        def keep(name: str, tensors: dict[str, Tensor]) -> None:
            done[name] = tensors
            self.run.keep_task(name, tensors)

        side_by_side(refs, self.monitor, self.events, keep)
        return done

    def all_tasks(self, model: MTOPModel) -> tuple[FitResult, dict[str, Tensor]]:
        """Train all tasks together, from the last checkpoint of this run if there is one.

        Args:
            model: What to begin with; not changed.

        Returns:
            How the run went, and the weights that it chose.

        Raises:
            MtopError: The settings cannot work together, training diverged, or (`JobError`) workers failed too often.
        """
        train = self.config.train
        job = MultiTaskJob(
            settings=multi_task_settings(train),
            precision=train.precision,
            model=ray.put(model),
            data=[ray.put(item) for item in self.data],
            pad_token_id=self.pad_token_id,
            events=self.events,
            run_uri=self.run.uri,
            max_threads=max_threads(),
        )
        filesystem, path = self.run.storage()
        trainer = TorchTrainer(
            train_worker,
            # By reference: Ray Train's controller opens this dictionary, and need not import all that the workers do.
            train_loop_config={"job": ray.put(job)},
            scaling_config=ScalingConfig(num_workers=train.num_workers, use_gpu=self.resources.num_gpus > 0),
            run_config=RunConfig(
                name=self.run.name,
                storage_path=path,
                storage_filesystem=filesystem,
                failure_config=FailureConfig(max_failures=train.max_failures),
                checkpoint_config=CheckpointConfig(num_to_keep=_CHECKPOINTS_TO_KEEP),
                logging_config=LoggingConfig(log_level="ERROR"),
                worker_runtime_env=_KEEP_MEMORY,
            ),
        )
        self.monitor.begin_training()
        result = self._fit(trainer)
        outcome = cast(FitResult | MtopError, result.return_value)
        if isinstance(outcome, MtopError):
            raise outcome
        assert result.checkpoint is not None, "training ends with a checkpoint"
        with result.checkpoint.as_directory() as directory:
            return outcome, read_final_weights(Path(directory))

    def _fit(self, trainer: TorchTrainer) -> Result:
        """Run the trainer beside the main thread, which shows progress meanwhile.

        In the main thread Ray Train would also take Ctrl-C for itself, and end the process as if all were well.
        """
        try:
            return cast(Result, _in_thread(trainer.fit, lambda: self.monitor.poll(self.events)))
        except TrainingFailedError as error:
            failures = self.config.train.max_failures
            raise JobError(
                f"training failed more than {failures} times (train.max_failures = {failures}), at last with "
                f"{_last_line(error)}; the same command goes on from the last checkpoint"
            ) from error

    def _single_task_job(self, settings: TrainSettings) -> SingleTaskJob:
        return SingleTaskJob(
            settings=settings,
            precision=self.config.train.precision,
            prompts_per_task=self.config.model.prompts_per_task,
            prompt_attention=self.config.model.prompt_attention,
            prompt_groups=self.config.prompt_groups(),
            pooler_rank=self.config.model.pooler_rank,
            max_tokens=self.config.backbone.max_tokens,
            pad_token_id=self.pad_token_id,
            events=self.events,
            processes=math.ceil(len(self.data) / self.resources.num_nodes),
            max_threads=max_threads(),
        )


def side_by_side(
    refs: Mapping[str, ray.ObjectRef[T]], monitor: TrainingMonitor, events: EventQueue, keep: Callable[[str, T], None]
) -> None:
    """Wait for trainings of single tasks that run side by side; those still running are ended if one fails.

    Args:
        refs: Task -> what its training will return.
        monitor: Shows how they get on.
        events: What they tell.
        keep: Called with each task and its result, as they come.

    Raises:
        MtopError: A task cannot be trained.
    """
    running = {ref: name for name, ref in refs.items()}
    try:
        while running:
            finished, _ = ray.wait(list(running), timeout=_POLL_S)
            monitor.poll(events)
            for ref in finished:
                name = running.pop(ref)
                keep(name, _result(ref))
                monitor.end_single_task(name)
    finally:
        for ref in running:
            ray.cancel(ref, force=True)


def single_task_options(num_tasks: int, resources: Resources, max_failures: int) -> dict[str, Any]:
    """What Ray gives to each of so many trainings of single tasks: a CPU, or a share of a GPU."""
    options: dict[str, Any] = {"num_cpus": 1, "max_retries": max_failures, "runtime_env": _KEEP_MEMORY}
    if resources.num_gpus:
        per_gpu = min(_MAX_TASKS_PER_GPU, math.ceil(num_tasks / resources.num_gpus))
        options["num_gpus"] = 1 / per_gpu
    return options


def single_task_settings(train: TrainConfig) -> TrainSettings:
    """Those of the single-task phase; it ends with its last weights, and is short, so it takes no checkpoints."""
    phase = train.warm_start
    return TrainSettings(
        epochs=phase.epochs,
        batch_size=phase.batch_size,
        learning_rate=phase.learning_rate,
        weight_decay=train.weight_decay,
        warmup_fraction=train.warmup_fraction,
        max_grad_norm=train.max_grad_norm,
        seed=train.seed,
        evaluate=False,
    )


def multi_task_settings(train: TrainConfig) -> TrainSettings:
    """Those of the multi-task phase."""
    return TrainSettings(
        epochs=train.epochs,
        batch_size=train.batch_size,
        learning_rate=train.learning_rate,
        head_learning_rate=train.head_learning_rate,
        weight_decay=train.weight_decay,
        warmup_fraction=train.warmup_fraction,
        max_grad_norm=train.max_grad_norm,
        alpha=train.alpha,
        seed=train.seed,
    )


def _result(ref: ray.ObjectRef[T]) -> T:
    try:
        return ray.get(ref)
    except RayTaskError as error:
        raise error.cause if isinstance(error.cause, MtopError) else error from error


def _in_thread(function: Callable[[], T], meanwhile: Callable[[], None]) -> T:
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    Thread(target=run, name="ray-train", daemon=True).start()
    while not future.done():
        wait([future], timeout=_POLL_S)
        meanwhile()
    return future.result()


def max_threads() -> int | None:
    """What the user allows by OMP_NUM_THREADS, which Ray sets anew for its workers."""
    value = os.environ.get("OMP_NUM_THREADS", "")
    return int(value) if value.isdigit() and int(value) else None


def _last_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[-1].strip() or type(error).__name__
