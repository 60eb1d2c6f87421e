"""The two phases of a training on Ray: each task alone on the frozen backbone, then all tasks together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, fields
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar, cast

import ray

# `ray.train` exports the same, but tells type checkers that it is the first version.
from ray.train.v2.api.config import CheckpointConfig, FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.train.v2.api.exceptions import TrainingFailedError
from ray.train.v2.api.result import Result
from ray.train.v2.torch.torch_trainer import TorchTrainer
from torch import Tensor

from mtop_batch.config.sections import Config, OptimizerConfig, TrainConfig
from mtop_batch.engine import single_tasks
from mtop_batch.engine.events import EventQueue
from mtop_batch.engine.memory import KEEP_FREED_MEMORY
from mtop_batch.engine.monitor import TrainingMonitor
from mtop_batch.engine.run_directory import RunDirectory
from mtop_batch.engine.session import Resources
from mtop_batch.engine.single_tasks import SingleTasks, max_threads
from mtop_batch.engine.workers import WARM_START_PHASE, MultiTaskJob, train_worker
from mtop_batch.errors import JobError, MtopError
from mtop_batch.model.kinds.base import MultiTaskModel
from mtop_batch.model.kinds.mtop import MTOPModel
from mtop_batch.training.checkpoint import read_final_weights
from mtop_batch.training.loop import FitResult
from mtop_batch.training.settings import TaskData, TrainSettings

T = TypeVar("T")

_CHECKPOINTS_TO_KEEP = 2
_KEEP_MEMORY = {"env_vars": dict(KEEP_FREED_MEMORY)}


@dataclass(frozen=True)
class Phases:
    """What both phases need.

    Args:
        config: Of the training.
        data: Of every task, in the order of the configuration.
        resources: Of the connected Ray.
        run: Where the phases leave what they have done.
        monitor: Where their events go.
        events: What carries them there.
    """

    config: Config
    data: Sequence[TaskData]
    resources: Resources
    run: RunDirectory
    monitor: TrainingMonitor
    events: EventQueue

    def single_tasks(self, start: MTOPModel, new_task: Mapping[str, Any]) -> dict[str, dict[str, Tensor]]:
        """Each task's prompts, pooler and head from a training of its own (paper, section 4.3), side by side.

        What an interrupted run has finished is taken from the run's directory.

        Args:
            start: A model without tasks.
            new_task: How a task begins: arguments of `MTOPModel.add_tasks`.

        Raises:
            MtopError: A task cannot be trained.
        """
        tasks = SingleTasks(
            phase=WARM_START_PHASE,
            data=self.data,
            settings=warm_start_settings(self.config.train),
            optimizer=self.config.train,
            new_task=new_task,
            prompt_groups=self.config.prompt_groups(),
        )
        learned = tasks.learn(start, self.resources, self.run, self.monitor, self.events)
        return {name: task.tensors for name, task in learned.items()}

    def all_tasks(self, model: MultiTaskModel) -> tuple[FitResult, dict[str, Tensor]]:
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
            settings=train_settings(train),
            precision=train.precision,
            model=ray.put(model),
            data=[ray.put(item) for item in self.data],
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
        if result.checkpoint is None:
            raise JobError("training ended without a checkpoint; run the same command again")
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
                f"{_last_line(error)}; the same command resumes from the last checkpoint"
            ) from error


def warm_start_settings(train: TrainConfig) -> TrainSettings:
    """Those of the single-task phase; it ends with its last weights, and is short, so it takes no checkpoints."""
    return train_settings(train, **train.warm_start.model_dump(), head_learning_rate=None, alpha=1.0, evaluate=False)


def train_settings(section: OptimizerConfig, **changes: Any) -> TrainSettings:
    """How a section of the configuration says to train, but for some changes."""
    known = {field.name for field in fields(TrainSettings)}
    values = {key: value for key, value in section.model_dump().items() if key in known}
    return TrainSettings(**{**values, **changes})


def _in_thread(function: Callable[[], T], meanwhile: Callable[[], None]) -> T:
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    Thread(target=run, name="ray-train", daemon=True).start()
    while not future.done():
        wait([future], timeout=single_tasks.POLL_S)
        meanwhile()
    return future.result()


def _last_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[-1].strip() or type(error).__name__
